"""Exponential averages of noise and signal, and which measurements may enter them."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Measurement(Protocol):
    """What the averages read: a `NoiseScale` or the state of `track_noise_scale`."""

    @property
    def noise_sq(self) -> jax.Array: ...  # noqa: D102

    @property
    def signal_sq(self) -> jax.Array: ...  # noqa: D102

    @property
    def valid(self) -> jax.Array: ...  # noqa: D102


class Reading(NamedTuple):
    """A measurement in float32.

    Attributes:
      noise_sq: float32 (), squared dual norm of the noise.
      signal_sq: float32 (), squared dual norm of the signal.
      usable: bool (), valid and finite.
    """

    noise_sq: jax.Array
    signal_sq: jax.Array
    usable: jax.Array


def read(measurement: Measurement) -> Reading:
    """Converts a measurement and says whether it may enter an average."""
    noise = jnp.asarray(measurement.noise_sq, jnp.float32)
    signal = jnp.asarray(measurement.signal_sq, jnp.float32)
    finite = jnp.isfinite(noise) & jnp.isfinite(signal)
    return Reading(noise, signal, jnp.asarray(measurement.valid, bool) & finite)


def average(ema: jax.Array, value: jax.Array, decay: Any) -> jax.Array:
    r"""Returns :math:`\beta e + (1 - \beta) v` in float32."""
    # A Python number is subtracted from one in double precision.
    if not isinstance(decay, float):
        decay = jnp.asarray(decay, jnp.float32)
    rest = jnp.asarray(1.0 - decay, jnp.float32)
    return jnp.asarray(decay, jnp.float32) * ema + rest * value


def weight_of_values(decay: float, ticks: jax.Array) -> jax.Array:
    r"""Returns :math:`1 - \beta^t`, by which an average that began at zero is divided.

    Args:
      decay: a Python number in [0, 1).
      ticks: t, number of values averaged; 0 is taken as 1.
    """
    if decay == 0.0:
        return jnp.ones([], jnp.float32)
    # Accurate where beta^t is close to 1, as a float32 power would not be.
    ticks = jnp.maximum(ticks, 1).astype(jnp.float32)
    return -jnp.expm1(ticks * np.log(decay).astype(np.float32))


def count_if(condition: jax.Array, count: jax.Array) -> jax.Array:
    """Adds 1 where the condition holds; a counter stays at its largest value."""
    return jnp.where(condition, jnp.asarray(optax.safe_increment(count)), count)
