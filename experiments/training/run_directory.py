"""The folder of one run: what lies where, who may write, how it ended."""

import json
import os
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

STATUSES = (
    "running",
    "preempted",
    "target_reached",
    "diverged",
    "finished",
    "failed",
)

# Any of these makes a folder the folder of a run.
_TRACES = ("run_status.json", "config.json", "metrics.jsonl", "checkpoints")


class RunDirectory:
    """One run's folder, made or found again.

    Only process 0 writes; on several processes all construct it together.

    Attributes:
      path: the folder.
    """

    def __init__(self, path: str | pathlib.Path, *, resume: bool = False):
        """Creates the folder, or checks that it may be used.

        Args:
          path: of the folder; parents are created.
          resume: whether a run that lies in it is to be continued. An empty or new
            folder is fine either way.

        Raises:
          ValueError: the folder holds a run and `resume` is False, or it cannot be
            created or written. Nothing has been changed then.
        """
        self.path = pathlib.Path(path).absolute()
        self._writes = jax.process_index() == 0
        problem = self._prepare(resume) if self._writes else ""
        if jax.process_count() > 1:
            refused = multihost_utils.broadcast_one_to_all(np.array(bool(problem)))
            if bool(refused) and not problem:
                problem = f"process 0 cannot use the output directory {self.path}"
        if problem:
            raise ValueError(problem)

    @property
    def config(self) -> pathlib.Path:
        """The whole configuration, as JSON."""
        return self.path / "config.json"

    @property
    def provenance(self) -> pathlib.Path:
        """Where the result came from, as JSON; of the newest start."""
        return self.path / "provenance.json"

    @property
    def status(self) -> pathlib.Path:
        """How the run stands or ended, as JSON."""
        return self.path / "run_status.json"

    @property
    def metrics(self) -> pathlib.Path:
        """One JSON object per event (`metrics.py` writes it)."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> pathlib.Path:
        """The folder of `checkpoints.py`."""
        return self.path / "checkpoints"

    def start(self, config: dict, provenance: dict) -> None:
        """Claims the folder: writes what the run is, and that it is running."""
        if self._writes:
            write_json(self.config, config)
            write_json(self.provenance, provenance)
        self.write_status("running")

    def write_status(self, status: str, **facts: Any) -> None:
        """Writes `run_status.json`.

        Args:
          status: one of `STATUSES`.
          **facts: what else is worth knowing, such as `step` or `steps_to_target`.
        """
        if status not in STATUSES:
            raise ValueError(
                f"status must be one of {', '.join(STATUSES)}, got {status!r}"
            )
        if self._writes:
            write_json(self.status, {"status": status, **facts})

    def read_status(self) -> dict | None:
        """What `run_status.json` says; None where there is none."""
        if not self.status.exists():
            return None
        return json.loads(self.status.read_text())

    def _prepare(self, resume: bool) -> str:
        """Creates the folder; returns what is in the way, if anything is."""
        if self.path.exists() and not self.path.is_dir():
            return f"output directory {self.path} is a file"
        found = [name for name in _TRACES if (self.path / name).exists()]
        if found and not resume:
            return (
                f"output directory {self.path} already holds a run ({found[0]}); "
                "resume it, or choose another directory"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            return f"output directory {self.path} cannot be written: {error}"
        return ""


def write_json(path: pathlib.Path, content: Any) -> None:
    """Replaces a JSON file as a whole: a reader sees the old or the new one."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Replaces a text file as a whole: a reader sees the old or the new one."""
    # In the same folder, because a rename is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
