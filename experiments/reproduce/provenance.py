"""What a result file says about how it was made."""

import datetime
import os
import platform
import subprocess
import sys
from typing import Any

from experiments.provenance import cpu_model, git_commit, package_versions


def available_cores() -> int:
    """Cores this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def accelerators() -> list[str]:
    """Names of NVIDIA devices, without starting a backend that would claim them."""
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
    return listing.stdout.splitlines()


def provenance(command: str) -> dict[str, Any]:
    """Command, date, commit, versions and machine, for the head of a result file.

    Args:
      command: what a reader types to make the result again.

    Returns:
      Plain values for JSON.
    """
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "commit": git_commit() or "unknown",
        "versions": package_versions(),
        "machine": {
            "system": platform.system(),
            "processor": cpu_model(),
            "cores": available_cores(),
            "accelerators": accelerators(),
        },
    }


def command_line() -> str:
    """The command that is running, as a reader would type it."""
    return " ".join(["python -m experiments.reproduce", *sys.argv[1:]])
