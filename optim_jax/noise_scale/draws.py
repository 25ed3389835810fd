"""Gradients stacked along axis 0, and how many samples each of them averages."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.linalg.solver_info import check_nonnegative
from optim_jax.noise_scale.layout import LeafLayout


def check_number_of_draws(draws: int, source: str) -> None:
    """Checks a number of draws that is known before any computation.

    Args:
      draws: the number.
      source: where they lie, for the message.

    Raises:
      ValueError: there are fewer than two.
    """
    if draws < 2:
        raise ValueError(
            f"a variance needs at least 2 independent gradients, but {source} holds "
            f"{draws}"
        )


def weights_of_draws(sample_weights: Any, draws: int, dtype: Any) -> jax.Array:
    """Samples behind each of a number of draws.

    Args:
      sample_weights: a scalar for all, or (n,); finite and >= 0.
      draws: n.
      dtype: of the result.

    Returns:
      Array (n,).

    Raises:
      ValueError: the shape does not fit, or a number of the host is out of range.
    """
    if isinstance(sample_weights, (list, tuple)):
        sample_weights = np.asarray(sample_weights)
    if jnp.shape(sample_weights) not in ((), (draws,)):
        raise ValueError(
            f"the samples per gradient must be a scalar or have the shape ({draws},), "
            f"got the shape {jnp.shape(sample_weights)}"
        )
    check_nonnegative(sample_weights=sample_weights)
    return jnp.broadcast_to(jnp.asarray(sample_weights, dtype), (draws,))


def counted_draws(draws: jax.Array, weights: jax.Array, leaf: LeafLayout) -> jax.Array:
    """Draws (n, ...) in the precision of the statistics, zero where the weight is zero.

    A rank without samples may hold NaN, the mean of nothing.
    """
    return jnp.where(
        along_draws(weights == 0.0, draws), 0.0, jnp.asarray(draws).astype(leaf.dtype)
    )


def along_draws(values: jax.Array, draws: jax.Array) -> jax.Array:
    """Numbers per draw (n,) in a shape that broadcasts against draws (n, ...)."""
    return values.reshape(-1, *(1,) * (jnp.ndim(draws) - 1))


def quotient(part: jax.Array, total: jax.Array) -> jax.Array:
    """Part over total; zero for an empty total."""
    return jnp.where(total == 0.0, 0.0, part / jnp.where(total == 0.0, 1.0, total))
