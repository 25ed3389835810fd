"""The compiled functions of a run, and its state in and out of checkpoints."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.sharding import batch_sharding, replicated
from experiments.training.measurement import Measurement, idle_measurement
from experiments.training.preconditioning import build_refresh, counters
from experiments.training.setup import DeviceBatch, Setup
from experiments.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """The compiled functions of a training step, and what goes with them.

    Each is compiled once, for one shape of micro-batch: no size of the batch and no
    measurement makes another compilation.
    """

    accumulate: Callable[..., Any]
    apply: Callable[..., Any]
    zero_sums: Callable[[], Any]  # an empty accumulation
    measurement: Measurement | None  # the functions of steps that measure
    refresh: Callable[[TrainState], TrainState] | None  # where the loop refreshes
    counters: Callable[[TrainState], Any] | None  # of Shampoo, outliving the state
    temporary_bytes: int


class _Compiler:
    """Lowers and compiles functions of one run; keeps the programs."""

    def __init__(self, setup: Setup, example: DeviceBatch):
        self._setup = setup
        self.state = setup.abstract_state
        self.sharding = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        self.whole = replicated(setup.mesh)
        self.sums = jax.eval_shape(setup.zero_sums)
        self.sums_sharding = setup.sums_sharding()
        self.batch = jax.tree.map(
            lambda rows: jax.ShapeDtypeStruct(rows.shape, rows.dtype), dict(example)
        )
        self.number = jax.ShapeDtypeStruct((), np.int32)
        self.temporary_bytes = 0

    def compile(
        self, function: Callable[..., Any], arguments: tuple, **options: Any
    ) -> Callable[..., Any]:
        """A compiled function that takes its turn."""
        program = jax.jit(function, **options).lower(*arguments).compile()
        analysis = program.memory_analysis()
        self.temporary_bytes = max(self.temporary_bytes, analysis.temp_size_in_bytes)
        return self._setup.in_turn(program)

    def accumulate(self) -> Callable[..., Any]:
        return self.compile(
            self._setup.accumulate(),
            (self.state, self.sums, self.batch, self.number),
            in_shardings=(
                self.sharding,
                self.sums_sharding,
                self._setup.batch_sharding(),
                self.whole,
            ),
            out_shardings=self.sums_sharding,
            donate_argnums=1,
        )

    def apply(self) -> Callable[..., Any]:
        controlled = self._setup.batch_rule.controller is not None
        measurement = idle_measurement() if controlled else None
        return self.compile(
            self._setup.apply(),
            (self.state, self.sums, self.number, self.number, measurement),
            in_shardings=(
                self.sharding,
                self.sums_sharding,
                self.whole,
                self.whole,
                self.whole,
            ),
            out_shardings=(self.sharding, self.sums_sharding, self.whole),
            donate_argnums=(0, 1),
        )

    def measurement(self) -> Measurement | None:
        functions = self._setup.measurement
        if functions is None:
            return None
        draws = jax.eval_shape(functions.empty)
        stacked = batch_sharding(self._setup.mesh)
        return Measurement(
            empty=self.compile(functions.empty, (), out_shardings=stacked),
            accumulate=self.compile(
                functions.accumulate,
                (self.state, self.sums, draws, self.batch, self.number),
                in_shardings=(
                    self.sharding,
                    self.sums_sharding,
                    stacked,
                    stacked,
                    self.whole,
                ),
                out_shardings=(self.sums_sharding, stacked),
                donate_argnums=(1, 2),
            ),
            finish=self.compile(
                functions.finish,
                (draws,),
                in_shardings=(stacked,),
                out_shardings=self.whole,
            ),
        )

    def refresh(self) -> Callable[[TrainState], TrainState] | None:
        if not self._setup.refresh_every:
            return None
        return self.compile(
            build_refresh(self._setup.plan),
            (self.state,),
            in_shardings=(self.sharding,),
            out_shardings=self.sharding,
            donate_argnums=0,
        )


def compile_step(setup: Setup, example: DeviceBatch) -> CompiledStep:
    """Compiles everything for the run's layout and a micro-batch like this."""
    compiler = _Compiler(setup, example)
    zero_sums = jax.jit(setup.zero_sums, out_shardings=compiler.sums_sharding)
    copied = None
    if setup.plan is not None:
        copied = setup.in_turn(jax.jit(counters, out_shardings=compiler.whole))
    accumulate, apply = compiler.accumulate(), compiler.apply()
    measurement, refresh = compiler.measurement(), compiler.refresh()
    return CompiledStep(
        accumulate=accumulate,
        apply=apply,
        zero_sums=setup.in_turn(zero_sums),
        measurement=measurement,
        refresh=refresh,
        counters=copied,
        temporary_bytes=compiler.temporary_bytes,
    )


def stored_state(setup: Setup, state: TrainState) -> TrainState:
    """A state as checkpoints hold it, the same on every mesh."""
    return setup.in_turn(setup.padding.remove)(state)


def state_from_stored(setup: Setup, stored: TrainState) -> TrainState:
    """The inverse of `stored_state`, in the layout of this run."""
    return setup.in_turn(setup.padding.add)(stored, setup.init)
