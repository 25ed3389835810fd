"""What a run tells: rows of metrics, the bar on the terminal, status and summary."""

import time
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from experiments.training.metrics import MetricsWriter
from experiments.training.progress import Progress
from experiments.training.run_directory import RunDirectory
from experiments.training.sample_clock import SampleClock
from experiments.training.setup import Setup
from experiments.training.throughput import ThroughputMeter, mfu


class Recorder:
    """Turns what the loop sees into rows, on process 0 only.

    Args:
      setup: the run's parts.
      directory: its folder.
      clock: tells what is due.
      start_step: the step the run starts or goes on from.
      start_samples: rows trained on before it.
      resume: whether earlier rows of the run are kept.
      wall_before: training seconds of the run this one continues.
    """

    def __init__(
        self,
        setup: Setup,
        directory: RunDirectory,
        clock: SampleClock,
        *,
        start_step: int,
        start_samples: int,
        resume: bool,
        wall_before: float,
    ):
        self._config = setup.config
        self._directory = directory
        self._clock = clock
        self._setup = setup
        self._devices = list(setup.mesh.devices.flat)
        self._state_copies = _state_copies(setup.abstract_state)
        self._wall_before = wall_before
        self._skipped_steps = 0
        self._target: dict[str, float] = {}  # filled when the target is reached
        self.meter = ThroughputMeter(unit=setup.prediction_name)
        self._writer = MetricsWriter(
            directory.path,
            tensorboard=setup.config.logging.tensorboard,
            resume_step=start_step if resume else None,
            enabled=jax.process_index() == 0,
        )
        self._progress = Progress(
            total=setup.config.steps,
            initial=clock.units(start_samples),
            enabled=setup.config.logging.progress,
            unit=setup.prediction_name,
        )

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exception) -> None:
        self._progress.close()
        self._writer.close()

    def seconds(self) -> float:
        """Training seconds so far, those of continued runs included."""
        return self._wall_before + self.meter.seconds

    def flush(self) -> None:
        """Hands all rows to the system."""
        self._writer.flush()

    def is_due(self, before: int, after: int) -> bool:
        """Whether the metrics of a step are written: every `logging.every` units.

        Args:
          before: rows trained on before the step.
          after: rows trained on after it.
        """
        due = self._clock.is_due(self._config.logging.every, before, after)
        return due or after >= self._clock.total

    def training(
        self,
        step: int,
        before: int,
        after: int,
        values: Mapping[str, Any],
        extra: Mapping[str, float] | None = None,
    ) -> None:
        """One step's metrics, written where it is due.

        Args:
          step: completed steps.
          before: rows trained on before the step.
          after: rows trained on after it.
          values: of the compiled step.
          extra: more of them, by metric name.
        """
        self.meter.count(self._tokens(after - before))
        if not self.is_due(before, after):
            return
        names = ("loss", "objective", "grad_norm", "update_norm", "param_norm", "lr")
        # A line search has no rate.
        read = jax.device_get({name: values[name] for name in names if name in values})
        row = {f"train/{name}": float(value) for name, value in read.items()}
        row["train/batch_size"] = float(after - before)
        row["optim/skipped_steps"] = float(self._skipped_steps)
        row |= extra or {}
        rates = self.meter.window()
        if rates:
            row |= rates | self._mfu(rates[self.meter.rate_name])
        self._write(step, after, "train", row)
        self._progress.update(
            self._clock.units(after),
            loss=row["train/loss"],
            per_s=rates.get(self.meter.rate_name),
        )

    def evaluation(self, step: int, samples: int, metrics: Mapping[str, float]) -> None:
        """One evaluation, by `eval/` name."""
        self._write(step, samples, "eval", dict(metrics))
        self._progress.evaluated(self._clock.units(samples), metrics)

    def skipped(self, reason: str) -> None:
        """A step that was left out because something in it was not finite."""
        self._skipped_steps += 1
        logging.warning("step skipped: %s", reason)

    def target_reached(self, step: int, samples: int) -> None:
        """Notes when the target was reached."""
        self._target = {
            "steps_to_target": step,
            "samples_to_target": samples,
            "seconds_to_target": round(self.seconds(), 3),
        }

    def finish(
        self,
        status: str,
        reason: str,
        step: int,
        samples: int,
        evaluation: Mapping[str, float],
    ) -> dict[str, Any]:
        """Writes summary and status; returns the summary row."""
        summary = {
            "status": status,
            "reason": reason,
            "step": step,
            "samples": samples,
            self._setup.prediction_name: self._tokens(samples),
            "wall_s": round(self.seconds(), 3),
            "optimizer": self._config.optimizer.name,
            "optim/state_copies": round(self._state_copies, 4),
            "optim/skipped_steps": self._skipped_steps,
            **evaluation,
            **self.meter.totals(),
            **self._target,
        }
        self._writer.write_summary(summary)
        self._directory.write_status(
            status, step=step, reason=reason, finished_at=time.time(), **self._target
        )
        return summary

    def _mfu(self, per_s: float) -> dict[str, float]:
        ratio, label = mfu(
            self._setup.flops_per_prediction * per_s,
            self._devices,
            dtype=self._setup.compute_dtype,
        )
        return {f"perf/{label}": ratio}

    def _tokens(self, samples: int) -> int:
        return samples * self._setup.predictions_per_row

    def _write(
        self, step: int, samples: int, split: str, row: dict[str, float]
    ) -> None:
        self._writer.write(
            step, split, row, wall_s=self.seconds(), tokens=self._tokens(samples)
        )


def _state_copies(abstract_state: Any) -> float:
    """Bytes of the optimizer's state over bytes of the parameters."""

    def size(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    return size(abstract_state.opt_state) / size(abstract_state.params)
