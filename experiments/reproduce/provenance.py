"""What a result file says about how it was made."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import time
from typing import Any

_PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "optim-jax")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def available_cores() -> int:
    """Cores this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _commit() -> str:
    """The commit of the checkout, with `+` when files differ from it."""
    folder = pathlib.Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _accelerators() -> list[str]:
    """Names of NVIDIA devices, without starting an accelerator backend here."""
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return listing.stdout.split("\n")[:-1]


def provenance(command: str) -> dict[str, Any]:
    """Command, date, commit, versions and machine, for the head of a result file.

    Args:
      command: what a reader types to make the result again.

    Returns:
      Plain values for JSON.
    """
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in _PACKAGES},
        },
        "machine": {
            "system": platform.system(),
            "processor": _processor(),
            "cores": available_cores(),
            "accelerators": _accelerators(),
        },
    }


def command_line() -> str:
    """The command that is running, as a reader would type it."""
    return " ".join(["python -m experiments.reproduce", *sys.argv[1:]])
