"""The batch size that a noise scale asks for, as a state that jit and scan carry."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optim_jax.noise_scale.averages import (
    Measurement,
    average,
    count_if,
    read,
    weight_of_values,
)
from optim_jax.noise_scale.batch_grid import GUARD, INT32_MAX, round_to_grid
from optim_jax.noise_scale.batch_size_config import BatchSizeConfig
from optim_jax.noise_scale.momentum import momentum_batch_size

# A signal below this fraction of the noise is none.
_NO_SIGNAL = 1e-12


class BatchSizeState(NamedTuple):
    """State of a `batch_size_controller`.

    Attributes:
      noise_ema: float32 (), N, average of the squared noise that began at zero and is
        not divided by 1 - beta^ticks.
      signal_ema: float32 (), M, likewise of the squared signal; may be negative.
      ticks: int32 (), t, measurements that entered the averages.
      batch_size: int32 (), B, samples of the next step.
      samples_seen: int32 (), samples of all steps taken; stays at 2^31 - 1.
      skipped: int32 (), measurements refused as invalid or not finite.
      pending_batch: int32 (), the batch decided on; `batch_size` if in force.
      pending_steps: int32 (), updates until it is; 0 if in force.
      lr_scale: float32 (), (B / B_0)^lr_power, factor of the learning rate.
    """

    noise_ema: jax.Array
    signal_ema: jax.Array
    ticks: jax.Array
    batch_size: jax.Array
    samples_seen: jax.Array
    skipped: jax.Array
    pending_batch: jax.Array
    pending_steps: jax.Array
    lr_scale: jax.Array


class BatchSizeController(NamedTuple):
    """A pair of pure functions.

    Attributes:
      init: `init() -> BatchSizeState`.
      update: `update(state, measurement, step) -> BatchSizeState`.
    """

    init: Callable[[], BatchSizeState]
    update: Callable[[BatchSizeState, Measurement, Any], BatchSizeState]


def batch_size_controller(config: BatchSizeConfig) -> BatchSizeController:
    r"""Adapts the batch size to the noise scale, and the learning rate to the batch.

    Once per F steps the squared dual norms of noise and signal, :math:`\nu^2` and
    :math:`s^2`, enter two averages, and the batch follows their ratio:

    .. math::

      N \leftarrow \beta^N N + (1 - \beta^N) \nu^2, \quad
      M \leftarrow \beta^M M + (1 - \beta^M) s^2,

      B \leftarrow \max \left( \left\lceil
      \frac{N / (1 - (\beta^N)^t)}{\theta^2 M / (1 - (\beta^M)^t)}
      \right\rceil, B \right), \quad \omega = (B / B_0)^p.

    The request is rounded to the grid, its growth is capped, and it is clipped, in
    this order. A measurement that is invalid or not finite changes nothing but
    `skipped`. Where the averaged signal is not above 1e-12 of the averaged noise the
    request is `max_batch`, if there is one.

    `update` is called after every optimizer step k, counted from 0 and taken with
    `state.batch_size` samples and `state.lr_scale`. It reads the measurement if k is a
    multiple of F and ignores it otherwise, whatever it holds. It is one trace for all
    steps and is safe in `jit` and `scan`.

    ======================== ==================================
    paper                    here
    ======================== ==================================
    :math:`\beta^N, \beta^M` `ema_noise`, `ema_signal`
    F                        `every`
    I                        `warmup_samples`, in samples
    :math:`\omega`           `lr_scale`
    ======================== ==================================

    Args:
      config: the options.

    Returns:
      A `BatchSizeController(init, update)`. Its state is a tree of arrays: a restored
      one repeats the sequence of batches bit by bit.

    Raises:
      ValueError: `config` is no `BatchSizeConfig`.

    References:
      Naganuma et al., Adaptive Batch Sizes Using Non-Euclidean Gradient Noise Scales
      for Stochastic Sign and Spectral Descent, 2026, arXiv 2602.03001, Algorithm 1.
      The paper starts the averages at an unstated value: zero, and the division, are
      derived here. So are the options beside theta, the decays, F and I.
    """
    if not isinstance(config, BatchSizeConfig):
        raise ValueError(f"config must be a BatchSizeConfig, got {config!r}")
    return BatchSizeController(
        init=functools.partial(_init, config), update=functools.partial(_update, config)
    )


def _init(config: BatchSizeConfig) -> BatchSizeState:
    def integer(value: int) -> jax.Array:
        return jnp.asarray(value, jnp.int32)

    return BatchSizeState(
        noise_ema=jnp.zeros([], jnp.float32),
        signal_ema=jnp.zeros([], jnp.float32),
        ticks=integer(0),
        batch_size=integer(config.init_batch),
        samples_seen=integer(0),
        skipped=integer(0),
        pending_batch=integer(config.init_batch),
        pending_steps=integer(0),
        lr_scale=jnp.ones([], jnp.float32),
    )


def _update(
    config: BatchSizeConfig, state: BatchSizeState, measurement: Measurement, step: Any
) -> BatchSizeState:
    reading = read(measurement)
    due = jnp.asarray(step) % config.every == 0
    ticked = due & reading.usable
    noise = average(state.noise_ema, reading.noise_sq, config.ema_noise)
    signal = average(state.signal_ema, reading.signal_sq, config.ema_signal)
    noise_ema = jnp.where(ticked, noise, state.noise_ema)
    signal_ema = jnp.where(ticked, signal, state.signal_ema)
    ticks = count_if(ticked, state.ticks)

    request = _requested_size(config, noise_ema, signal_ema, ticks, state.batch_size)
    decided = ticked & (state.samples_seen >= config.warmup_samples)
    pending = jnp.where(
        decided,
        _allowed_size(config, request, state.batch_size),
        state.pending_batch,
    )
    wait = jnp.where(decided, config.apply_lag, jnp.maximum(state.pending_steps - 1, 0))
    batch_size = jnp.where(wait == 0, pending, state.batch_size)
    return BatchSizeState(
        noise_ema=noise_ema,
        signal_ema=signal_ema,
        ticks=ticks,
        batch_size=batch_size,
        samples_seen=_saturating_sum(state.samples_seen, state.batch_size),
        skipped=count_if(due & ~reading.usable, state.skipped),
        pending_batch=pending,
        pending_steps=wait,
        lr_scale=_lr_scale(config, batch_size),
    )


def _requested_size(
    config: BatchSizeConfig,
    noise_ema: jax.Array,
    signal_ema: jax.Array,
    ticks: jax.Array,
    batch_size: jax.Array,
) -> jax.Array:
    """The real number of samples asked for, float32."""
    noise = noise_ema / weight_of_values(config.ema_noise, ticks)
    signal = signal_ema / weight_of_values(config.ema_signal, ticks)
    has_signal = signal > _NO_SIGNAL * noise
    # An average of gradients is worth a larger batch than each of them.
    worth = momentum_batch_size(1.0, config.momentum)
    ratio = noise / jnp.where(has_signal, signal, 1.0)
    size = ratio / (config.theta**2 * worth)
    without = batch_size if config.max_batch is None else config.max_batch
    return jnp.where(has_signal, size, jnp.asarray(without, jnp.float32))


def _allowed_size(
    config: BatchSizeConfig, request: jax.Array, batch_size: jax.Array
) -> jax.Array:
    """The request on the grid, with capped growth, within the limits."""
    size = round_to_grid(request, config.quantum, config.rounding)
    if config.max_growth is not None:
        reach = batch_size.astype(jnp.float32) * config.max_growth
        most = round_to_grid(reach, config.quantum, "floor")
        size = jnp.minimum(size, jnp.maximum(most, batch_size))
    least = batch_size
    if not config.monotone:
        # The real request, not the rounded one: rounding alone shrinks no batch.
        band = batch_size.astype(jnp.float32) * (1.0 - config.hysteresis)
        is_below = request * (1.0 + GUARD) < band
        least = jnp.where(is_below, config.init_batch, batch_size)
    most = INT32_MAX if config.max_batch is None else config.max_batch
    return jnp.clip(size, least, most)


def _saturating_sum(total: jax.Array, more: jax.Array) -> jax.Array:
    """The sum of two int32 that are not negative, or the largest int32."""
    return jnp.where(total > INT32_MAX - more, INT32_MAX, total + more)


def _lr_scale(config: BatchSizeConfig, batch_size: jax.Array) -> jax.Array:
    """From the batch itself: a running product of ratios would drift."""
    ratio = batch_size.astype(jnp.float32) / config.init_batch
    return ratio**config.lr_power
