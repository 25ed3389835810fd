"""Measurements made by hand, and a controller that is run over them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.noise_scale.batch_size_config import BatchSizeConfig
from optim_jax.noise_scale.controller import batch_size_controller


class Measured(NamedTuple):
    """The part of a `NoiseScale` that a controller reads."""

    noise_sq: Any
    signal_sq: Any
    valid: Any = True


def config(**changes):
    """Every step is measured and nothing is averaged unless asked for."""
    options = {"theta": 0.5, "init_batch": 8, "every": 1} | {
        "ema_noise": 0.0,
        "ema_signal": 0.0,
    }
    return BatchSizeConfig(**(options | changes))


def states(options, measurements, state=None, first_step=0):
    """The state after every step, the one before the first included; not jitted."""
    init, update = batch_size_controller(options)
    found = [init() if state is None else state]
    for step, measurement in enumerate(measurements, first_step):
        found.append(update(found[-1], Measured(*measurement), jnp.int32(step)))
    return found


def batches(options, measurements):
    """The batch that every step is taken with, and the one after the last."""
    return [int(state.batch_size) for state in states(options, measurements)]


def scanner(options):
    """A jitted scan: (noises, signals, valids) of all steps -> the stacked states."""
    init, update = batch_size_controller(options)

    @jax.jit
    def run(noises, signals, valids):
        def body(state, inputs):
            step, *measurement = inputs
            after = update(state, Measured(*measurement), step)
            return after, (state, after)

        steps = jnp.arange(len(noises))
        return jax.lax.scan(body, init(), (steps, noises, signals, valids))[1]

    def call(measurements):
        columns = zip(*(Measured(*pair) for pair in measurements), strict=True)
        dtypes = (np.float32, np.float32, bool)
        return run(*map(np.asarray, columns, dtypes))

    return call
