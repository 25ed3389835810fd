"""The training loop: dispatch step t, then look at the metrics of step t - 1.

The device never waits for logging. The loop drains (waits for the last dispatched
step) only where something must be exact: before an evaluation, before a checkpoint
and at the end.
"""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from experiments.config_fields import to_dict
from experiments.provenance import provenance
from experiments.training.batch_path import BatchPathRecorder
from experiments.training.checkpoints import Checkpoints
from experiments.training.compilation import (
    CompiledStep,
    compile_step,
    state_from_stored,
    stored_state,
)
from experiments.training.measurement import (
    Measured,
    idle_measurement,
    measurement_metrics,
    require_independent_draws,
)
from experiments.training.preconditioning import counter_metrics
from experiments.training.preemption import PreemptionGuard
from experiments.training.recording import Recorder
from experiments.training.run_directory import RunDirectory
from experiments.training.sample_clock import SampleClock
from experiments.training.search_step import search_metrics
from experiments.training.setup import DeviceBatch, Setup
from experiments.training.state import TrainState


class Stop(NamedTuple):
    """Why a run ended."""

    status: str  # finished | target_reached | preempted | diverged
    reason: str  # one clause for a person


class _Dispatched(NamedTuple):
    """Metrics of a step that may still be running."""

    step: int  # completed steps, this one included
    before: int  # rows trained on before it
    after: int
    values: dict[str, Any]
    counters: Any  # of Shampoo, where they are due
    measured: Measured | None  # the newest measurement of the noise scale


class TrainingLoop:
    """One run from its first (or resumed) step to its end.

    Args:
      setup: the run's parts.
      directory: its folder, already claimed.
      resume: whether to go on from the newest checkpoint in it.

    Raises:
      CheckpointError: if there are checkpoints but none of them fits.
    """

    def __init__(self, setup: Setup, directory: RunDirectory, *, resume: bool):
        self._setup = setup
        self._config = config = setup.config
        self._directory = directory
        self._checkpoints = Checkpoints(
            directory.checkpoints, keep=config.checkpoint.keep
        )
        self._wall_before = 0.0  # training seconds of the run this one continues
        restored = self._restore() if resume else None
        self.state = setup.initial_state() if restored is None else restored
        self.step = int(self.state.step)
        self.samples = int(self.state.samples) * setup.rows_per_count
        self._before = self.samples  # rows trained on before the last step
        self._clock = SampleClock(config.batch.size, config.total_samples)
        self._resumes = restored is not None
        self._measured: Measured | None = None
        self._whole_step = True  # the data position belongs to the state
        self._dispatched: _Dispatched | None = None
        self._saved_step = self._evaluated_step = -1
        self._evaluation: dict[str, float] = {}  # the newest, by eval/ name

    def _restore(self) -> TrainState | None:
        restored = self._checkpoints.restore_latest(
            self._setup.padding.stored, self._setup.data.train
        )
        if restored is None:
            logging.warning("nothing to resume from yet: starting at step 0")
            return None
        self._wall_before = restored.metadata["wall_s"]
        return state_from_stored(self._setup, restored.state)

    def run(self) -> tuple[Stop, dict[str, Any]]:
        """Trains until the last step, a target, a signal or a divergence.

        Returns:
          Why it ended, and the summary row that was written.

        Raises:
          Whatever went wrong, after the last whole step was saved if it was good.
        """
        self._provenance = provenance()
        self._directory.start(to_dict(self._config), self._provenance)
        self._evaluator = self._setup.evaluator()
        compiled = self._compile(self._evaluator.example)
        self._recorder = Recorder(
            self._setup,
            self._directory,
            self._clock,
            start_step=self.step,
            start_samples=self.samples,
            resume=self._resumes,
            wall_before=self._wall_before,
        )
        self._path = BatchPathRecorder(
            self._directory.path, enabled=jax.process_index() == 0
        )
        self._path.start(self.samples)
        try:
            with PreemptionGuard() as self._guard, self._recorder:
                stop = self._train(compiled)
                self._checkpoints.wait()
                summary = self._recorder.finish(
                    stop.status,
                    stop.reason,
                    self.step,
                    self.samples,
                    self._evaluation,
                )
        except BaseException as error:
            self._rescue(error)
            raise
        finally:
            self._checkpoints.close()
        return stop, summary

    def _compile(self, example: DeviceBatch) -> CompiledStep:
        started = time.perf_counter()
        compiled = compile_step(self._setup, example)
        logging.info(
            "compiled in %.1f s; %.1f MB of temporaries",
            time.perf_counter() - started,
            compiled.temporary_bytes / 1e6,
        )
        return compiled

    def _train(self, compiled: CompiledStep) -> Stop:
        if self.samples >= self._clock.total:  # a finished run was resumed
            return self._boundary() or Stop("finished", "no sample was left")
        sums = compiled.zero_sums()
        size = self._batch_size()
        self._recorder.meter.start()
        while True:
            self._path.note(self.samples, size)
            # The last step takes what is left.
            rows = min(size, self._clock.total - self.samples)
            sums, measurement = self._accumulate(compiled, sums, rows)
            self.state, sums, metrics = compiled.apply(
                self.state,
                sums,
                np.int32(rows // self._setup.rows_per_count),
                np.int32(size),
                measurement,
            )
            self.step += 1
            self._before, self.samples = self.samples, self.samples + rows
            if compiled.refresh and self.step % self._setup.refresh_every == 0:
                self.state = compiled.refresh(self.state)
            self._whole_step = True
            stop = self._inspect(self._dispatch(compiled, metrics)) or self._boundary()
            if stop:
                return stop
            size = self._next_batch_size(size)

    def _accumulate(self, compiled: CompiledStep, sums: Any, rows: int) -> Any:
        """The gradient sums of a step, and what the controller is told."""
        train, place = self._setup.data.train, self._setup.place
        every, functions = self._config.noise_scale.every, compiled.measurement
        measures = functions is not None and self.step % every == 0
        draws = functions.empty() if measures else None
        for index in range(rows // self._config.batch.micro_size):
            batch = next(train)
            self._whole_step = False
            batch, index = place(batch), np.int32(index)
            if measures:
                sums, draws = functions.accumulate(
                    self.state, sums, draws, batch, index
                )
            else:
                sums = compiled.accumulate(self.state, sums, batch, index)
        if functions is None:
            return sums, None
        if not measures:
            return sums, idle_measurement()
        first, self._measured = self._measured is None, functions.finish(draws)
        if first:
            require_independent_draws(self._measured)
        return sums, self._measured.noise

    def _batch_size(self) -> int:
        """The size of the next step, where a run begins or goes on."""
        if self.state.batch is not None:
            return int(self.state.batch.batch_size)
        return self._setup.batch_rule.size_at(self.samples)

    def _next_batch_size(self, size: int) -> int:
        """The size of the next step; waits for the device only where it may change."""
        every, lag = self._config.noise_scale.every, self._config.batch.apply_lag
        if self.state.batch is not None and (self.step - 1) % every != lag:
            return size
        return self._batch_size()

    def _dispatch(
        self, compiled: CompiledStep, metrics: dict[str, Any]
    ) -> _Dispatched | None:
        """Notes a step under way and returns the one before it."""
        counted = None
        if compiled.counters and self._recorder.is_due(self._before, self.samples):
            counted = compiled.counters(self.state)
        previous = self._dispatched
        self._dispatched = _Dispatched(
            self.step, self._before, self.samples, metrics, counted, self._measured
        )
        return previous

    def _inspect(self, dispatched: _Dispatched | None) -> Stop | None:
        """Reads one step's metrics: logs them when due, stops on a non-finite one."""
        if dispatched is None:
            return None
        step, values = dispatched.step, dispatched.values
        extra = {}
        if dispatched.counters:
            extra |= counter_metrics(dispatched.counters, self._setup.plan)
        if dispatched.measured and self._recorder.is_due(*dispatched[1:3]):
            extra |= measurement_metrics(dispatched.measured)
        if "search" in values and self._recorder.is_due(*dispatched[1:3]):
            extra |= search_metrics(values["search"])
        if not values["healthy"]:
            found = self._describe_nonfinite(step, values)
            if self._config.stopping.on_nonfinite == "stop":
                return Stop("diverged", found)
            self._recorder.skipped(found)
        self._recorder.training(
            step, dispatched.before, dispatched.after, values, extra
        )
        return None

    def _describe_nonfinite(self, step: int, values: dict[str, Any]) -> str:
        names = self._setup.gradient_names
        finite = np.isfinite(jax.device_get(values["leaf_squared_norms"]))
        if finite.all():
            return f"the loss of step {step} is {float(values['loss'])}"
        leaf = names[int(np.argmin(finite))]
        return f"the gradient of {leaf} at step {step} is not finite"

    def _drain(self) -> Stop | None:
        """Waits for the last dispatched step and reads its metrics."""
        dispatched, self._dispatched = self._dispatched, None
        return self._inspect(dispatched)

    def _boundary(self) -> Stop | None:
        """What is due after a step: evaluation, checkpoint, or the end."""
        config, span = self._config, (self._before, self.samples)
        last = self.samples >= self._clock.total
        evaluate = last or self._clock.is_due(config.evaluation.every, *span)
        save = last or self._clock.is_due(config.checkpoint.every, *span)
        preempted = self._guard.requested or self._checkpoints.reached_preemption(
            self.step
        )
        late = self._recorder.seconds() > config.stopping.max_seconds
        if not (evaluate or save or preempted or late):
            return None
        stop = self._drain()
        self._recorder.meter.stop()
        if stop is None and evaluate:
            stop = self._evaluate()
        if stop is None:
            stop = self._end(last=last, preempted=preempted, late=late)
        if save or stop is not None:
            self._save(stop)
        if stop is None:
            self._recorder.meter.start()
        return stop

    def _end(self, *, last: bool, preempted: bool, late: bool) -> Stop | None:
        if last:
            return Stop("finished", f"{self.step} steps done")
        if preempted:
            return Stop("preempted", f"preempted at step {self.step}, state saved")
        if late:
            seconds = self._config.stopping.max_seconds
            return Stop("finished", f"stopping.max_seconds={seconds} passed")
        return None

    def _evaluate(self) -> Stop | None:
        metrics = self._evaluator(self.state.params, self.state.opt_state)
        self._evaluation, self._evaluated_step = metrics, self.step
        self._recorder.evaluation(self.step, self.samples, metrics)
        loss = metrics["eval/loss"]
        if not np.isfinite(loss):
            return Stop(
                "diverged", f"the validation loss at step {self.step} is {loss}"
            )
        reached = self._setup.reached_target(metrics)
        if reached:
            self._recorder.target_reached(self.step, self.samples)
            return Stop("target_reached", f"{reached} at step {self.step}")
        return None

    def _save(self, stop: Stop | None) -> None:
        """Saves this step unless it diverged: the last good one stays the newest."""
        if stop is not None and stop.status == "diverged":
            return
        if self._saved_step == self.step:
            return
        self._recorder.flush()
        self._checkpoints.save(
            self.step,
            stored_state(self._setup, self.state),
            self._setup.data.train,
            {
                "trajectory": self._setup.trajectory,
                "wall_s": self._recorder.seconds(),
                "mesh": dict(self._setup.mesh.shape),
                **self._provenance,
            },
            self._evaluation if self._evaluated_step == self.step else None,
        )
        self._saved_step = self.step

    def _rescue(self, error: BaseException) -> None:
        """After an exception: saves the last whole step if it was good.

        Between two micro-batches the data is ahead of the state, and on several
        processes the others may be elsewhere: then the last checkpoint must do.
        """
        reason = f"{type(error).__name__}: {error}"
        self._directory.write_status("failed", step=self.step, reason=reason)
        alone = jax.process_count() == 1
        if isinstance(error, Exception) and self._whole_step and alone:
            try:
                self._save(self._drain())
                self._checkpoints.wait()
            except Exception:  # the first error is the one to report
                logging.exception("the state at the failure could not be saved")
