"""Where a result came from: versions, commit, machine. Written beside every result."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "optax", "flax", "orbax-checkpoint", "numpy")
_ROOT = pathlib.Path(__file__).resolve().parents[1]


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a trajectory."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version()} | versions


def git_commit() -> str | None:
    """The checkout's commit, with `+changes` if files differ; None outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    completed = subprocess.run(
        ["git", *arguments], cwd=_ROOT, check=True, capture_output=True, text=True
    )
    return completed.stdout.strip()


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2] for line in lines if "model name" in line]
        return names[0].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Processor, cores and accelerators, without names that identify the host."""
    devices = jax.devices()
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


def provenance() -> dict[str, Any]:
    """All of it, JSON-able."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": git_commit(),
        "versions": package_versions(),
        "machine": machine(),
    }
