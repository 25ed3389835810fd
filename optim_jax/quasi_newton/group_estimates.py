r"""Variance of one sample's gradient from means over groups of the sample.

Groups are defined by position: positions 0 … b-1 are split in order into M parts whose
sizes differ by at most one, whatever chunks or devices evaluate them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from optim_jax.quasi_newton.directional_derivatives import as_cotangent
from optim_jax.quasi_newton.gradient_variance import WeightedSample
from optim_jax.quasi_newton.memory import (
    LBFGSMemory,
    Products,
    stored_slots,
)
from optim_jax.trees.mesh_axes import explicit_mesh


class GroupMoments(NamedTuple):
    """Products of the group means with the memory, and squares of norms.

    Attributes:
      products: of the M group means and, in the last place, of their unweighted sum.
      squares: (M,) squared norms of the group means.
      sizes: (M,) samples per group, which add up to the size of the sample.
      mean_square: squared norm of the mean of all, each group weighted by its size.
    """

    products: Products
    squares: jax.Array
    sizes: jax.Array
    mean_square: jax.Array


def group_bounds(batch_size: Any, groups: int) -> tuple[jax.Array, jax.Array]:
    """First and past-the-last position of every group.

    The split is that of `np.array_split`: the first b mod M groups have one more.

    Args:
      batch_size: b, int or int32 scalar, may be traced.
      groups: M >= 1, static. Groups beyond b are empty.

    Returns:
      (M,) int32 starts and (M,) int32 stops.
    """
    size = jnp.asarray(batch_size, jnp.int32)
    quotient, remainder = size // groups, size % groups
    edges = jnp.arange(groups + 1, dtype=jnp.int32)
    edges = edges * quotient + jnp.minimum(edges, remainder)
    return edges[:-1], edges[1:]


def group_variance(
    group_squares: Any, group_sizes: Any, gradient_square: Any
) -> jax.Array:
    r"""Variance of one sample's gradient, from the squares of the group means.

    .. math::

      \hat V = \bar b\, \frac{M}{M - 1} \sum_j \omega_j \|g^{(j)} - g\|^2
        = \frac{b}{M - 1} \Big(\sum_j \omega_j \|g^{(j)}\|^2 - \|g\|^2\Big)

    with :math:`\omega_j = b_j / b`, :math:`\bar b = b / M` and
    :math:`g = \sum_j \omega_j g^{(j)}`. For independent samples it is unbiased for
    :math:`E \|g_i - E g_i\|^2`, whatever the sizes. Rounding is clipped at zero.

    Args:
      group_squares: (M,) squares :math:`\|g^{(j)}\|^2`.
      group_sizes: (M,) sizes :math:`b_j \ge 0`; entries of size 0 are ignored, whatever
        their square holds, and M counts the others.
      gradient_square: :math:`\|g\|^2`.

    Returns:
      :math:`\hat V \ge 0`; NaN for fewer than two groups that are not empty.

    References:
      This project's choice.
    """
    squares = jnp.asarray(group_squares)
    dtype = jnp.promote_types(jnp.result_type(squares, gradient_square), jnp.float32)
    sizes = jnp.asarray(group_sizes, dtype)
    used = sizes > 0
    groups, total = jnp.sum(used, dtype=dtype), jnp.sum(sizes)
    mean_square = jnp.sum(jnp.where(used, sizes * squares, 0)) / total
    others = jnp.where(groups > 1, groups - 1, jnp.nan)
    return total / others * jnp.maximum(mean_square - gradient_square, 0)


def group_means(
    per_sample_losses: Callable[[Any], jax.Array],
    params: Any,
    sample: WeightedSample,
    groups: int,
) -> tuple[Any, jax.Array]:
    """Mean gradients of the groups, by one pullback of all losses for each.

    The positions that are split into groups are those among the samples of positive
    weight.

    Args:
      per_sample_losses: function from params to (b,) losses.
      params: tree of arrays.
      sample: the weights.
      groups: M, static.

    Returns:
      Tree of (M, ...) means, zero for empty groups, and the (M,) sums of weights.
    """
    losses, pullback = jax.vjp(per_sample_losses, params)
    weights = sample.weights
    position = jnp.cumsum(weights > 0) - 1

    def of_group(bounds: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        start, stop = bounds
        inside = (weights > 0) & (start <= position) & (position < stop)
        own = jnp.where(inside, weights, 0)
        size = jnp.sum(own)
        shares = own / jnp.where(size > 0, size, 1)
        return pullback(as_cotangent(shares, losses))[0], size

    return lax.map(of_group, group_bounds(sample.count, groups))


def measure_groups(
    memory: LBFGSMemory, group_grads: Any, group_sizes: Any, sample: WeightedSample
) -> GroupMoments:
    """Products of the group means: one pass over them and the stored pairs.

    Args:
      memory: the pairs.
      group_grads: group means, leaves (M, ...); anything in groups of size 0.
      group_sizes: (M,) sums of weights, to any scale; None for the split by position.
      sample: the weights.
    """
    dtype = memory.sy.dtype
    # Norms of sums of groups follow from the products of the groups with each other.
    gram = _stack_products(group_grads, group_grads, dtype)
    s = _stack_products(memory.s, group_grads, dtype).T
    y = _stack_products(memory.y, group_grads, dtype).T
    if group_sizes is None:
        starts, stops = group_bounds(sample.count, gram.shape[0])
        group_sizes = stops - starts
    sizes = jnp.asarray(group_sizes, dtype)
    shares = sizes / jnp.sum(sizes)
    used, stored = sizes > 0, stored_slots(memory)

    s, y = (jnp.where(used[:, None] & stored, x, 0) for x in (s, y))
    gram = jnp.where(used[:, None] & used, gram, 0)
    squares = jnp.diagonal(gram)
    with_sum = Products(
        s=jnp.concatenate([s, jnp.sum(s, 0, keepdims=True)]),
        y=jnp.concatenate([y, jnp.sum(y, 0, keepdims=True)]),
        square=jnp.concatenate([squares, jnp.sum(gram)[None]]),
    )
    mean_square = jnp.sum(shares[:, None] * shares * gram)
    return GroupMoments(with_sum, squares, shares * sample.count, mean_square)


def _stack_products(a: Any, b: Any, dtype: Any) -> jax.Array:
    """(n, k) inner products of n with k vectors, trees stacked along axis 0."""
    # One product of matrices per leaf; jax.vmap of a product with one vector would
    # order the axes in a way that is several times slower on a CPU.
    products = []
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        axes = tuple(range(1, x.ndim))
        is_typed = explicit_mesh((x, y)) is not None
        products.append(
            lax.dot_general(
                x.astype(dtype),
                y.astype(dtype),
                ((axes, axes), ((), ())),
                precision=lax.Precision.HIGHEST,
                out_sharding=PartitionSpec(None, None) if is_typed else None,
            )
        )
    return sum(products[1:], products[0])
