"""A training step that measures the noise scale, step by step, and what it leaves.

The trainer's own compiled functions, on one batch that lies on the device and on one
device. Beside them: how much a measurement reduces over several ranks, read from its
program without running it.
"""

import dataclasses
import gc
import math
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr, jaxprs_in_params
from jax.sharding import AbstractMesh, AxisType

from experiments.benchmarks.bare_loop import benchmark_config
from experiments.benchmarks.trees import parameter_count
from experiments.config import TrainConfig
from experiments.training.compilation import compile_step
from experiments.training.measurement import (
    Measured,
    build_measurement,
    idle_measurement,
)
from experiments.training.setup import build_setup
from experiments.training.state import zero_gradient_sum

_MESH_AXES = ("data", "fsdp", "model")
_COLLECTIVES = {
    "all_gather",
    "all_gather_invariant",
    "all_to_all",
    "ppermute",
    "psum",
    "psum_invariant",
    "reduce_scatter",
}

# Two micro-batches: the fewest draws that one device can measure on.
MICRO_BATCHES = 2


def measuring_config(
    preset: TrainConfig, *, optimizer: str, geometry: str, method: str, every: int
) -> TrainConfig:
    """The preset in micro-batches; it measures, and its batch stays as it is.

    Args:
      preset: the run.
      optimizer: its name.
      geometry: of the noise scale; `none` measures nothing.
      method: how the spectral one is computed, `eigh` or `matmul`.
      every: steps between measurements.
    """
    size = preset.batch.size
    return dataclasses.replace(
        benchmark_config(preset, preset.steps),
        optimizer=dataclasses.replace(preset.optimizer, name=optimizer),
        batch=dataclasses.replace(
            preset.batch,
            micro_batch=size // MICRO_BATCHES,
            adaptive=geometry,
            max_size=size,
        ),
        noise_scale=dataclasses.replace(preset.noise_scale, method=method, every=every),
    )


@dataclasses.dataclass(frozen=True)
class MeasurementMemory:
    """Bytes per byte of the parameters.

    Attributes:
      left: that live after a measuring step and did not before it.
      held: draws, from the first micro-batch to the end of the measurement.
      temporary: largest peak of the buffers that the functions of the measurement
        allocate for themselves.
      plain_temporary: the same for the functions of other steps.
    """

    left: float
    held: float
    temporary: float
    plain_temporary: float


@dataclasses.dataclass(frozen=True)
class Reductions:
    """Elements that each rank gets from collectives, over the number of parameters.

    Attributes:
      accumulate: in each micro-batch of a measuring step; plain steps sum the gradient
        there as well.
      finish: beside that, once per measurement.
    """

    accumulate: float
    finish: float


class TrainingRun:
    """A run that is advanced by hand.

    Args:
      config: of the run.
    """

    def __init__(self, config: TrainConfig):
        self._setup = setup = build_setup(config, jax.devices()[:1])
        self._micro_batches = config.batch.size // config.batch.micro_size
        self._size = np.int32(config.batch.size)
        with jax.set_mesh(setup.mesh):
            self._batch = setup.place(next(setup.data.train))
            self._compiled = compile_step(setup, self._batch)
            self._state = setup.initial_state()
            self._sums = self._compiled.zero_sums()
        self.measured: Measured | None = None  # the newest, as the trainer keeps it

    def plain(self) -> Any:
        """A step that measures nothing."""
        functions = self._compiled
        for index in range(self._micro_batches):
            self._sums = functions.accumulate(
                self._state, self._sums, self._batch, np.int32(index)
            )
        idle = None if functions.measurement is None else idle_measurement()
        return self._apply(idle)

    def measuring(self) -> Any:
        """A step that measures."""
        functions = self._compiled.measurement
        draws = functions.empty()
        for index in range(self._micro_batches):
            self._sums, draws = functions.accumulate(
                self._state, self._sums, draws, self._batch, np.int32(index)
            )
        self.measured = functions.finish(draws)
        return self._apply(self.measured.noise)

    def window(self, steps: int) -> Any:
        """So many steps, the first of which measures if the run does."""
        measures = self._compiled.measurement is not None
        metrics = self.measuring() if measures else self.plain()
        for _ in range(steps - 1):
            metrics = self.plain()
        return metrics

    def memory(self) -> MeasurementMemory:
        """What a measurement holds and leaves; advances the run by two steps."""
        functions = self._compiled.measurement
        self.measured = None
        before = _live_bytes(self.plain())
        after = _live_bytes(self.measuring())
        params = _bytes(self._state.params)
        plain, measuring = (
            max(f.memory_analysis().temp_size_in_bytes for f in programs)
            for programs in (
                (self._compiled.accumulate, self._compiled.apply),
                (functions.accumulate, functions.finish),
            )
        )
        return MeasurementMemory(
            left=(after - before) / params,
            held=_bytes(functions.empty()) / params,
            temporary=measuring / params,
            plain_temporary=plain / params,
        )

    def reductions(self, ranks: int) -> Reductions:
        """What a measuring step reduces over data-parallel ranks, were there so many.

        Read from the program for an abstract mesh: nothing is compiled.
        """
        setup = self._setup
        kinds = (AxisType.Auto,) * len(_MESH_AXES)
        mesh = AbstractMesh((ranks, 1, 1), _MESH_AXES, axis_types=kinds)
        state = jax.eval_shape(setup.init)
        functions = build_measurement(setup.model, setup.config, mesh, state.params)
        draws = jax.eval_shape(functions.empty)
        sums = jax.eval_shape(zero_gradient_sum, state.params)
        rows = ranks * setup.config.noise_scale.splits
        batch = {
            name: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)
            for name, leaf in self._batch.items()
        }
        accumulate = jax.make_jaxpr(functions.accumulate)(
            state, sums, draws, batch, np.int32(0)
        )
        finish = jax.make_jaxpr(functions.finish)(draws)
        parameters = parameter_count(state.params)
        return Reductions(
            accumulate=collected_elements(accumulate.jaxpr) / parameters,
            finish=collected_elements(finish.jaxpr) / parameters,
        )

    def _apply(self, measurement: Any) -> Any:
        self._state, self._sums, metrics = self._compiled.apply(
            self._state, self._sums, self._size, self._size, measurement
        )
        return metrics


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _live_bytes(metrics: Any) -> int:
    """Bytes of all arrays once a step has ended and its metrics are dropped."""
    jax.block_until_ready(metrics)
    of_metrics = _bytes(metrics)
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays()) - of_metrics


def collected_elements(jaxpr: Jaxpr) -> int:
    """Elements that a rank gets from all collectives of a program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in _COLLECTIVES:
            total += sum(math.prod(out.aval.shape) for out in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            total += collected_elements(inner)
    return total
