"""Checkpoints of a run: state, data position and metadata, saved together.

The only file that touches Orbax's `CheckpointManager` (asynchronous saves, committed
by an atomic rename; the v0 interface, the one Grain has a handler for). Reading is in
`checkpoint_reading.py`.

One checkpoint holds three items:

* `state`: the array leaves, by path (`opt_state/0/mu/w`). Tree structure, `None`
  and empty nodes come from the tree the caller wants to have filled.
* `data`: the position of the Grain iterator, one file per process.
* `record`: JSON with the caller's metadata, the metrics, and shape, dtype and
  checksum of every leaf (TensorStore does not notice a damaged byte).
"""

import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from grain import checkpoint as grain_checkpoint
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from experiments.training.checkpoint_reading import (
    CheckpointError,
    Restored,
    agree,
    attempt,
    read_checkpoint,
    read_record,
)
from experiments.training.leaves import checksums, named_leaves, signature

__all__ = ["CheckpointError", "Checkpoints", "Restored"]

_MAX_STEPS_LISTED = 4096  # checkpoints in one folder, when processes agree on them


class Checkpoints:
    """The checkpoints in one folder.

    Nothing is created or removed before the first `save`, so that reading a run
    leaves it as it was.
    """

    def __init__(
        self, directory: str | pathlib.Path, *, keep: int, metric: str = "eval/loss"
    ):
        """Describes the folder; touches nothing.

        Args:
          directory: one folder per checkpoint will lie in here, named by its step.
          keep: number of newest checkpoints that are kept, >= 1.
          metric: the checkpoint with the lowest value of this is kept besides.
        """
        if not keep >= 1:
            raise ValueError(f"keep must be >= 1, got {keep}")
        self.directory = pathlib.Path(directory).absolute()
        self._keep = keep
        self._metric = metric
        self._metric_of: dict[int, float] = {}  # step -> metric, of those that have it
        self._unreadable: set[int] = set()  # set aside before the next save
        self._manager: ocp.CheckpointManager | None = None

    def save(
        self,
        step: int,
        state: Any,
        iterator: grain.DatasetIterator | None,
        metadata: dict,
        metrics: dict[str, float] | None,
    ) -> None:
        """Saves in the background; the arrays may be donated right afterwards.

        A second save of the same step does nothing. An earlier save that failed in
        the background raises here, in `wait` or in `close`.

        Args:
          step: completed steps.
          state: tree of arrays. On several processes, global arrays.
          iterator: whose position is saved, or None.
          metadata: anything that JSON can hold.
          metrics: at this step; decides which checkpoint is the best.
        """
        manager = self._open_manager()
        if step in manager.all_steps():
            return
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        leaves = named_leaves(state)
        record = {
            "metadata": metadata,
            "metrics": metrics,
            "leaves": {name: signature(leaf) for name, leaf in leaves.items()},
            "checksums": checksums(leaves),
            "has_data": iterator is not None,
            "processes": jax.process_count(),
        }
        items = {
            # Zero-size arrays have nothing to save, and Orbax refuses them.
            "state": ocp.args.StandardSave(
                {name: leaf for name, leaf in leaves.items() if np.size(leaf)}
            ),
            "record": ocp.args.JsonSave(json.loads(json.dumps(record))),
        }
        if iterator is not None:
            items["data"] = grain_checkpoint.CheckpointSave(iterator)
        self._note_metric(step, metrics)
        manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore_latest(
        self, abstract_state: Any, iterator: grain.DatasetIterator | None = None
    ) -> Restored | None:
        """Restores the newest checkpoint that can be read.

        A torn one is passed over with a warning, and is set aside (renamed) before
        the next `save`. State and data position always come from the same step; the
        iterator does not move unless the restore succeeds.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` with shardings (any mesh), or
            of arrays. Any part of the saved tree will do, under the same paths.
          iterator: moved to the saved position, in place; None leaves data alone.

        Returns:
          What was saved, or None where there is no checkpoint at all.

        Raises:
          CheckpointError: none can be read, or they are of another model (names the
            first leaf that differs) or of another number of processes.
        """
        failures: dict[int, str] = {}
        for step in reversed(self.steps()):
            restored, failure = read_checkpoint(
                self.directory / str(step), abstract_state, iterator
            )
            if restored is not None:
                self._report_fallback(failures, step)
                return restored
            failures[step] = failure
        if failures:
            raise self._all_unreadable(failures)
        return None

    def restore_best(
        self, abstract_state: Any, iterator: grain.DatasetIterator | None = None
    ) -> Restored | None:
        """Restores the checkpoint with the lowest metric, or None if none has one."""
        step = self.best_step()
        if step is None:
            return None
        return self.restore_step(step, abstract_state, iterator)

    def restore_step(
        self,
        step: int,
        abstract_state: Any,
        iterator: grain.DatasetIterator | None = None,
    ) -> Restored:
        """Restores the checkpoint of this step, or raises a `CheckpointError`."""
        steps = self.steps()
        if step not in steps:
            raise CheckpointError(
                f"{self.directory} has no checkpoint of step {step}; "
                f"it has {', '.join(map(str, steps)) or 'none'}"
            )
        restored, failure = read_checkpoint(
            self.directory / str(step), abstract_state, iterator
        )
        if restored is None:
            raise self._all_unreadable({step: failure})
        return restored

    def read_metadata(self) -> dict | None:
        """The metadata of the newest checkpoint whose record can be read.

        Needs no model, so that a changed configuration is found before anything is
        compiled. None where there is no checkpoint.
        """
        failures: dict[int, str] = {}
        for step in reversed(self.steps()):
            record, failures[step] = self._read_record(step)
            if record is not None:
                return record["metadata"]
        if failures:
            raise self._all_unreadable(failures)
        return None

    def steps(self) -> list[int]:
        """The steps with a checkpoint, readable or not, in increasing order."""
        found = []
        if self.directory.is_dir():
            found = [int(p.name) for p in self.directory.iterdir() if _is_step(p)]
        if jax.process_count() == 1:
            return sorted(found)
        # Processes must walk through the same list, whatever they happen to see.
        padded = np.full(_MAX_STEPS_LISTED, -1, np.int32)
        newest = sorted(found)[-_MAX_STEPS_LISTED:]
        padded[: len(newest)] = newest
        padded = multihost_utils.broadcast_one_to_all(padded)
        return sorted(int(step) for step in padded if step >= 0)

    def best_step(self) -> int | None:
        """The step with the lowest metric; the earliest of equals."""
        for step in self.steps():
            record, _ = self._read_record(step)
            self._note_metric(step, record["metrics"] if record else {})
        return self._best_of(self.steps())

    def reached_preemption(self, step: int) -> bool:
        """Whether all processes agreed to stop at this step after a SIGTERM.

        Call it every step on every process. Always False in a single process, which
        has its own handler (`preemption.py`).
        """
        return ocp.utils.reached_preemption(step)

    def wait(self) -> None:
        """Blocks until the save in the background is on disk."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases the threads; the object may be used again."""
        if self._manager is not None:
            manager, self._manager = self._manager, None
            manager.close()

    # Saving.

    def _open_manager(self) -> ocp.CheckpointManager:
        if self._manager is None:
            for step in self.steps():
                record, _ = self._read_record(step)
                if record is None:
                    self._unreadable.add(step)
                else:
                    self._note_metric(step, record["metrics"])
            self._set_unreadable_aside()
            options = ocp.CheckpointManagerOptions(
                preservation_policy=_NewestAndBest(self._keep, self._best_of),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
            )
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        elif self._set_unreadable_aside():
            self._manager.reload()
        return self._manager

    def _set_unreadable_aside(self) -> bool:
        """Renames them: their steps will be saved again, and nothing is lost."""
        if not self._unreadable:
            return False
        self.wait()
        if jax.process_index() == 0:
            for step in sorted(self._unreadable):
                torn, aside = self.directory / str(step), f"{step}.unreadable"
                number = sum(p.name.startswith(aside) for p in torn.parent.iterdir())
                if torn.exists():
                    torn.rename(torn.parent / f"{aside}.{number}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("unreadable checkpoints set aside")
        for step in self._unreadable:
            self._metric_of.pop(step, None)
        self._unreadable.clear()
        return True

    def _note_metric(self, step: int, metrics: dict[str, float]) -> None:
        value = metrics.get(self._metric, math.nan)
        if math.isfinite(value):
            self._metric_of[step] = value

    def _best_of(self, steps: Sequence[int]) -> int | None:
        ranked = [(self._metric_of[s], s) for s in steps if s in self._metric_of]
        return min(ranked)[1] if ranked else None

    # Reading.

    def _read_record(self, step: int) -> tuple[dict | None, str]:
        return agree(*attempt(lambda: read_record(self.directory / str(step))))

    def _report_fallback(self, failures: dict[int, str], step: int) -> None:
        self._unreadable |= set(failures)
        for torn, reason in failures.items():
            logging.warning(
                "The checkpoint of step %d in %s cannot be read (%s); "
                "going on from the checkpoint of step %d.",
                torn,
                self.directory,
                reason,
                step,
            )

    def _all_unreadable(self, failures: dict[int, str]) -> CheckpointError:
        reasons = "; ".join(f"step {s}: {reason}" for s, reason in failures.items())
        return CheckpointError(
            f"no checkpoint in {self.directory} can be read: {reasons}"
        )


class _NewestAndBest(PreservationPolicy):
    """Keeps the newest `keep` steps and, besides them, the best one."""

    def __init__(self, keep: int, best_of: Callable[[Sequence[int]], int | None]):
        self._keep = keep
        self._best_of = best_of

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """One decision per checkpoint."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*sorted(steps)[-self._keep :], self._best_of(steps)}
        return [step in kept for step in steps]


def _is_step(path: pathlib.Path) -> bool:
    # Unfinished saves carry a suffix until they are committed.
    return path.is_dir() and path.name.isascii() and path.name.isdigit()
