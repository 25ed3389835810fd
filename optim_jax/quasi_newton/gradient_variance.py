"""Variance of the gradients, and of their products with a direction, over a sample."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from optim_jax.quasi_newton.directional_derivatives import (
    directional_derivatives,
    map_gradients,
)
from optim_jax.quasi_newton.memory import tree_dot
from optim_jax.trees.mesh_axes import explicit_mesh

HUTCHINSON_PROBES = 4


class WeightedSample(NamedTuple):
    """Which of b losses count, and how much.

    Attributes:
      weights: (b,) weights >= 0, zero for padding.
      count: number of positive weights.
      total: sum of the weights.
    """

    weights: jax.Array
    count: Any
    total: Any


def read_weights(length: int, weights: Any, dtype: Any) -> WeightedSample:
    """The sample of b = length losses; weights None for ones."""
    if weights is None:
        return WeightedSample(jnp.ones((length,), dtype), length, length)
    weights = jnp.asarray(weights, dtype)
    if explicit_mesh(weights) is not None:
        weights = jax.sharding.reshard(weights, PartitionSpec(None))
    count = jnp.sum(weights > 0, dtype=jnp.int32)
    return WeightedSample(weights, count, jnp.sum(weights))


def sample_variance(values: Any, mean: Any, sample: WeightedSample) -> jax.Array:
    r"""Weighted variance of per-sample numbers about a known mean.

    .. math::

      \frac{n}{n - 1} \frac{\sum_i m_i (a_i - \bar a)^2}{\sum_i m_i}

    with n the number of positive weights; for weights 0 and 1 the divisor is n - 1.
    Deviations are squared, never the values: the difference of two large sums would
    leave nothing in float32.

    Args:
      values: (b,) numbers :math:`a_i`; those of weight 0 may be anything.
      mean: :math:`\bar a`.
      sample: the weights.

    Returns:
      The variance; NaN for fewer than two positive weights.
    """
    deviations = jnp.asarray(values).astype(sample.weights.dtype) - mean
    return mean_of_squares(deviations**2, sample)


def mean_of_squares(squares: jax.Array, sample: WeightedSample) -> jax.Array:
    """Weighted mean of squared deviations, times n / (n - 1)."""
    weights = sample.weights
    squares = jnp.where(weights > 0, weights * squares.astype(weights.dtype), 0)
    count = jnp.asarray(sample.count, weights.dtype)
    return jnp.sum(squares) / sample.total * (count / (count - 1))


def hutchinson_variance(
    per_sample_losses: Callable[[Any], jax.Array],
    params: Any,
    grad: Any,
    sample: WeightedSample,
    key: Any = None,
) -> jax.Array:
    r"""Var(g_i) by forward-mode products with random signs, without the gradients.

    For a vector z of independent signs :math:`E_z (d^T z)^2 = \|d\|^2`, so that
    :math:`\operatorname{Var}(g_i) = E_z \operatorname{Var}(g_i^T z)`. The mean over
    four vectors, with deviations about :math:`g^T z`.

    Args:
      per_sample_losses: function from params to (b,) losses.
      params: tree of arrays.
      grad: mean gradient g of the sample.
      sample: the weights.
      key: random key; None for a fixed one.

    References:
      Hutchinson, 1990; the centred form is this project's choice.
    """

    def along_signs(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, len(jax.tree.leaves(params)))
        keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
        signs = jax.tree.map(
            lambda leaf, key: jax.random.rademacher(key, leaf.shape, leaf.dtype),
            grad,
            keys,
        )
        products = directional_derivatives(per_sample_losses, params, signs)
        return sample_variance(products, tree_dot(grad, signs), sample)

    key = jax.random.key(0) if key is None else key
    return jnp.mean(jax.vmap(along_signs)(jax.random.split(key, HUTCHINSON_PROBES)))


def exact_variance(
    per_sample_losses: Callable[[Any], jax.Array],
    params: Any,
    grad: Any,
    sample: WeightedSample,
) -> jax.Array:
    """Var(g_i) from the gradients of the samples, at the cost of b gradients.

    Args:
      per_sample_losses: function from params to (b,) losses.
      params: tree of arrays.
      grad: mean gradient of the sample.
      sample: the weights.
    """

    def square_distance(gradient: Any) -> jax.Array:
        deviation = jax.tree.map(
            lambda a, b: a.astype(sample.weights.dtype) - b, gradient, grad
        )
        return tree_dot(deviation, deviation)

    squares = map_gradients(per_sample_losses, params, square_distance)
    return mean_of_squares(squares, sample)
