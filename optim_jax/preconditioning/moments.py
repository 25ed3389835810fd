"""Weights of exponential averages and their bias corrections."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Weights(NamedTuple):
    """An average: new = decay * old + weight * sample, read as new / correction."""

    decay: Any
    weight: Any
    correction: Any


def is_traced(value: Any) -> bool:
    """Whether a number may change between steps (an array, not one of the host)."""
    return isinstance(value, jax.Array)


def _log(value: Any) -> Any:
    if is_traced(value):
        return jnp.log(jnp.maximum(value, jnp.finfo(value.dtype).tiny))
    return math.log(value) if value > 0.0 else -math.inf


def one_minus_power(base: Any, exponent: jax.Array) -> jax.Array:
    """1 - base^exponent without cancellation, for base in [0, 1] and exponent > 0."""
    return -jnp.expm1(exponent * _log(base))


def second_moment_weights(
    b2: Any, t: jax.Array, *, correct: bool, drop_weighting_factor: bool
) -> Weights:
    """Weights of factors and second moments.

    Args:
      b2: decay in [0, 1]; with 1 the samples are summed up.
      t: number of the step as a float, 1 for the first.
      correct: whether to correct the bias of the zero start.
      drop_weighting_factor: weight 1 for each sample, and no correction.
    """
    if drop_weighting_factor:
        return Weights(b2, 1.0, 1.0)
    if is_traced(b2):
        sums = b2 == 1.0
        weight = jnp.where(sums, 1.0, 1.0 - b2)
        correction = jnp.where(sums, 1.0, one_minus_power(b2, t)) if correct else 1.0
        return Weights(b2, weight, correction)
    if b2 == 1.0:
        return Weights(1.0, 1.0, 1.0)
    return Weights(b2, 1.0 - b2, one_minus_power(b2, t) if correct else 1.0)


def first_moment_correction(b1: Any, b3: Any, t: jax.Array) -> jax.Array:
    """1 - b3 * b1^(t - 1), the bias of the filtered gradient at step t."""
    # A first step with b1 = 0 would be 0 * log(0).
    past = jnp.where(t > 1.0, (t - 1.0) * _log(b1), 0.0)
    return -jnp.expm1(_log(b3) + past)
