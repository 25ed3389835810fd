"""What a noise and a signal, each squared, are worth as a measurement."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class NoiseScale(NamedTuple):
    r"""A measurement.

    Attributes:
      noise_sq: (), :math:`\nu^2`, squared dual norm of the noise of one sample.
      signal_sq: (), :math:`s^2`, squared dual norm of the gradient; an estimate without
        bias may be negative.
      value: (), :math:`\nu^2 / s^2` in samples: 0 without noise, infinite for a signal
        <= 0 under noise, 0 where not valid.
      valid: bool (), both are finite, one is not zero, and there were two draws.
      leaf_noise: tree of :math:`\nu_l`, not squared, before block weights; None unless
        asked for, `optax.MaskedNode` where a leaf does not count.
      leaf_signal: tree of :math:`s_l`; a negative estimate of :math:`s_l^2` has a
        negative root.
    """

    noise_sq: jax.Array
    signal_sq: jax.Array
    value: jax.Array
    valid: jax.Array
    leaf_noise: Any = None
    leaf_signal: Any = None


def measurement_of(
    noise_sq: Any,
    signal_sq: Any,
    count: Any,
    *,
    leaf_noise: Any = None,
    leaf_signal: Any = None,
) -> NoiseScale:
    """Says what noise and signal are worth together.

    Args:
      noise_sq: squared dual norm of the noise of one sample, e.g. the square of
        `direct_noise`.
      signal_sq: squared dual norm of the signal, or s |s| for a signed estimate s such
        as that of `alignment_signal`.
      count: number of draws behind them.
      leaf_noise: passed on.
      leaf_signal: passed on.

    Returns:
      The measurement.
    """
    dtype = jnp.promote_types(jnp.result_type(noise_sq, signal_sq), jnp.float32)
    noise, signal = jnp.asarray(noise_sq, dtype), jnp.asarray(signal_sq, dtype)
    valid = (
        jnp.isfinite(noise)
        & jnp.isfinite(signal)
        & ((noise != 0.0) | (signal != 0.0))
        & (jnp.asarray(count) >= 2)
    )
    ratio = noise / jnp.where(signal > 0.0, signal, 1.0)
    value = jnp.where(signal > 0.0, ratio, jnp.where(noise > 0.0, jnp.inf, 0.0))
    return NoiseScale(
        noise, signal, jnp.where(valid, value, 0.0), valid, leaf_noise, leaf_signal
    )
