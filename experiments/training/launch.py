"""Starting a run: check the request, then train."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from experiments.click_config import CLICK_FREE_ON_RESUME, ClickTrainConfig
from experiments.config import FREE_ON_RESUME, TrainConfig
from experiments.training.checkpoints import Checkpoints
from experiments.training.click_setup import build_click_setup
from experiments.training.loop import TrainingLoop
from experiments.training.resume import require_same_trajectory
from experiments.training.run_directory import RunDirectory
from experiments.training.setup import Setup, build_setup
from experiments.training.throughput import mfu


class RunResult(NamedTuple):
    """How a run ended."""

    status: str  # finished | target_reached | preempted | diverged
    step: int  # updates applied
    summary: dict[str, Any]  # the row of summary.json
    message: str  # one line for a person


class Prepared(NamedTuple):
    """A run whose request was checked; nothing has been compiled yet."""

    setup: Setup
    directory: RunDirectory
    loop: TrainingLoop

    def run(self) -> RunResult:
        """Trains."""
        # Measures the peak of unknown devices once, on one device: outside the mesh.
        mfu(0.0, dtype=self.setup.compute_dtype)
        with jax.set_mesh(self.setup.mesh):
            stop, summary = self.loop.run()
        message = f"{stop.status}: {stop.reason}"
        if "eval/loss" in summary:
            message += f"; validation loss {summary['eval/loss']:.4f}"
        return RunResult(
            stop.status, self.loop.step, summary, f"{message}; {self.directory.path}"
        )


def prepare(
    config: TrainConfig | ClickTrainConfig,
    output_dir: str | pathlib.Path,
    *,
    resume: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Prepared:
    """Checks a request against data, devices and what the folder already holds.

    Args:
      config: the run.
      output_dir: its folder; must not hold another run unless `resume`.
      resume: go on from the newest checkpoint in the folder, if there is one.
      devices: to use; all of the run's by default.

    Raises:
      ValueError, OSError, ImportError: one sentence that names what to change.
    """
    directory = RunDirectory(output_dir, resume=resume)
    clicks = isinstance(config, ClickTrainConfig)
    setup = (build_click_setup if clicks else build_setup)(config, devices)
    if resume:
        _require_same_run(setup, directory)
    with jax.set_mesh(setup.mesh):
        loop = TrainingLoop(setup, directory, resume=resume)
    return Prepared(setup, directory, loop)


def _require_same_run(setup: Setup, directory: RunDirectory) -> None:
    checkpoints = Checkpoints(directory.checkpoints, keep=setup.config.checkpoint.keep)
    saved = checkpoints.read_metadata()
    checkpoints.close()
    if saved is not None:
        clicks = isinstance(setup.config, ClickTrainConfig)
        free = CLICK_FREE_ON_RESUME if clicks else FREE_ON_RESUME
        require_same_trajectory(saved["trajectory"], setup.trajectory, free)


def run(
    config: TrainConfig | ClickTrainConfig,
    output_dir: str | pathlib.Path,
    *,
    resume: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> RunResult:
    """Trains as configured; notebooks and tests call this.

    Arguments and errors are those of `prepare`.
    """
    return prepare(config, output_dir, resume=resume, devices=devices).run()


def read_summary(output_dir: str | pathlib.Path) -> dict[str, Any] | None:
    """The summary row of a run that has ended; None if it has not."""
    path = pathlib.Path(output_dir) / "summary.json"
    return json.loads(path.read_text()) if path.exists() else None
