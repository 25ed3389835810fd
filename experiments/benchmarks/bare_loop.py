"""The trainer's compiled functions without the trainer, for comparisons."""

import dataclasses
import time

import jax
import numpy as np

from experiments.config import TrainConfig
from experiments.training.compilation import compile_step
from experiments.training.setup import Setup


def benchmark_config(preset: TrainConfig, steps: int) -> TrainConfig:
    """The preset, evaluated once and logging as usual."""
    return dataclasses.replace(
        preset,
        steps=steps,
        evaluation=dataclasses.replace(preset.evaluation, every=steps, batches=1),
        checkpoint=dataclasses.replace(preset.checkpoint, every=0),
    )


def bare_seconds(setup: Setup, steps: int) -> float:
    """Seconds for `steps` steps of the compiled functions alone."""
    batch = setup.place(next(setup.data.train))
    compiled = compile_step(setup, batch)
    state, sums, zero = setup.initial_state(), compiled.zero_sums(), np.int32(0)
    rows = setup.config.batch.size
    jax.block_until_ready((state, sums))
    started = time.perf_counter()
    for _ in range(steps):
        for _ in range(rows // setup.config.batch.micro_size):
            sums = compiled.accumulate(state, sums, batch, zero)
        state, sums, metrics = compiled.apply(
            state, sums, np.int32(rows), np.int32(rows), None
        )
    jax.block_until_ready((state, metrics))
    return time.perf_counter() - started
