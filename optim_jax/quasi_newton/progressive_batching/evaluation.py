"""The gradient of a sample, the gradient over its overlap, and its group means.

All are sums over positions of one window. The positions are cut at the borders of the
groups and of the overlap, each piece is evaluated once, and what the tests need of a
group (its products with the memory, m numbers each) is taken as soon as it is summed:
no more than a few gradients are alive at a time, whatever the number of groups.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optim_jax.quasi_newton.group_estimates import group_bounds
from optim_jax.quasi_newton.memory import (
    LBFGSMemory,
    Products,
    inner_products,
    tree_dot,
)
from optim_jax.quasi_newton.progressive_batching.sample_sums import (
    GradientSums,
    SampleSums,
)


class GroupProducts(NamedTuple):
    """What the sample tests need to know of the group means.

    Attributes:
      means: products of each group's mean gradient with the memory, (M, m) and (M,).
      total_square: squared norm of the sum of the group means.
    """

    means: Products
    total_square: jax.Array


class Evaluation(NamedTuple):
    """A sample at the current point.

    Attributes:
      value: mean loss F_S.
      grad: tree, mean gradient g_S in the accumulation dtype.
      overlap: tree, summed gradient over the samples that the next sample will share
        (`()` where the overlap is the sample itself).
      groups: `GroupProducts`, `()` where no option asks for them.
    """

    value: jax.Array
    grad: Any
    overlap: Any
    groups: Any


class Prefix(NamedTuple):
    """Sums over the first positions of a sample, kept apart by group.

    Attributes:
      loss: sum of the losses.
      grad: tree, sum of the gradients.
      groups: tree of (K, ...): the part of each of the first K groups.
    """

    loss: jax.Array
    grad: Any
    groups: Any


def prefix_groups(ratio: float, groups: int) -> int:
    """Groups that the first `ceil(ratio * b)` of b positions can touch, for any b."""
    return min(groups, math.ceil(ratio * groups) + 1)


def evaluate_prefix(
    sums: SampleSums,
    params: Any,
    source: Any,
    order: jax.Array,
    start: jax.Array,
    size: jax.Array,
    count: jax.Array,
    *,
    groups: int,
    touched: int,
) -> Prefix:
    """Evaluates the first `count` of `size` positions, group by group.

    Args:
      sums: evaluates ranges.
      params: parameters.
      source: data.
      order: the pass over the data.
      start: position of the sample in `order`.
      size: samples in the window, b.
      count: how many of them to evaluate.
      groups: M; 1 where no groups are needed.
      touched: bound on the groups that the prefix touches.
    """
    starts, stops = group_bounds(size, groups)
    starts, stops = starts[:touched], stops[:touched]

    def one(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
        first, last = jnp.minimum(bounds[0], count), jnp.minimum(bounds[1], count)
        part = sums.gradient(params, source, order, start + first, start + last)
        return part.loss, part.grad

    losses, grads = lax.map(one, (starts, stops))
    total = jax.tree.map(lambda leaf: leaf.sum(axis=0), grads)
    return Prefix(losses.sum(), total, grads)


def empty_prefix(sums: SampleSums, params: Any, touched: int) -> Prefix:
    """The prefix of no positions."""
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, sums.dtype), params)
    groups = jax.tree.map(lambda p: jnp.zeros((touched, *p.shape), sums.dtype), params)
    return Prefix(jnp.zeros((), sums.dtype), zeros, groups)


def evaluate_rest(
    sums: SampleSums,
    params: Any,
    source: Any,
    order: jax.Array,
    start: jax.Array,
    size: jax.Array,
    count: jax.Array,
    prefix: Prefix,
    memory: LBFGSMemory,
    overlap_start: jax.Array | None,
    *,
    groups: int,
) -> Evaluation:
    """Evaluates positions from `count` to `size` and joins them with the prefix.

    Args:
      sums: evaluates ranges.
      params: parameters.
      source: data.
      order: the pass over the data.
      start: position of the sample in `order`.
      size: samples in the window, b.
      count: positions of the prefix.
      prefix: its sums.
      memory: the pairs, for the products of the groups.
      overlap_start: position from which on the samples will be shared with the next
        sample, at least `count`; None where no gradient over them is needed.
      groups: M; 1 where no groups are needed.

    Returns:
      `Evaluation`; its overlap is the sum from `overlap_start` on.
    """
    starts, stops = group_bounds(size, groups)
    lengths = (stops - starts).astype(sums.dtype)
    borders = jnp.maximum(starts, count)
    if overlap_start is not None:
        borders = jnp.sort(jnp.append(borders, overlap_start))
    ends = jnp.append(borders[1:], size)
    zeros = empty_prefix(sums, params, 1).grad
    touched = jax.tree.leaves(prefix.groups)[0].shape[0]
    slots = memory.sy.shape[0]

    def add_piece(carry: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        loss, grad, overlap, group, mean_sum, previous, products = carry
        first, last = bounds
        part = sums.gradient(params, source, order, start + first, start + last)
        loss, grad = loss + part.loss, _add(grad, part.grad)
        if overlap_start is not None:
            in_overlap = (first >= overlap_start).astype(sums.dtype)
            overlap = _add(overlap, part.grad, in_overlap)
        if groups > 1:
            index = jnp.searchsorted(stops, first, side="right").astype(jnp.int32)
            index = jnp.minimum(index, groups - 1)
            carried = (index == previous).astype(sums.dtype)
            begun = _prefix_of_group(prefix.groups, index, touched)
            group = jax.tree.map(
                lambda kept, new, p: p + new + carried * (kept - p),
                group,
                part.grad,
                begun,
            )
            mean_sum = _add(mean_sum, part.grad, 1.0 / lengths[index])
            mean = jax.tree.map(lambda leaf: leaf / lengths[index], group)
            # A later piece of the group overwrites the products of its first part.
            products = jax.tree.map(
                lambda rows, row: rows.at[index].set(row),
                products,
                inner_products(memory, mean),
            )
            previous = index
        return (loss, grad, overlap, group, mean_sum, previous, products), None

    products = Products(
        s=jnp.zeros((groups, slots), sums.dtype),
        y=jnp.zeros((groups, slots), sums.dtype),
        square=jnp.zeros((groups,), sums.dtype),
    )
    mean_sum = jax.tree.map(
        lambda leaf: jnp.tensordot(1.0 / lengths[:touched], leaf, axes=1),
        prefix.groups,
    )
    if groups > 1:
        products = _products_of_prefix(products, prefix, lengths, memory)
    carry = (
        prefix.loss,
        prefix.grad,
        zeros,
        zeros,
        mean_sum,
        jnp.int32(-1),
        products,
    )
    carry, _ = lax.scan(add_piece, carry, (borders, ends))
    loss, grad, overlap, _, mean_sum, _, products = carry
    count_all = size.astype(sums.dtype)
    return Evaluation(
        value=loss / count_all,
        grad=jax.tree.map(lambda leaf: leaf / count_all, grad),
        overlap=() if overlap_start is None else overlap,
        groups=GroupProducts(products, tree_dot(mean_sum, mean_sum))
        if groups > 1
        else (),
    )


def evaluate_growth(
    sums: SampleSums,
    params: Any,
    source: Any,
    order: jax.Array,
    start: jax.Array,
    old_size: jax.Array,
    size: jax.Array,
    overlap_stop: jax.Array | None,
    *,
    groups: int,
) -> tuple[GradientSums, Any, jax.Array]:
    """Evaluates the samples that growth has added, in groups of their own.

    Args:
      sums: evaluates ranges.
      params: parameters.
      source: data.
      order: the pass over the data.
      start: position of the sample in `order`.
      old_size: samples before growth.
      size: samples after it.
      overlap_stop: position up to which new samples will be shared with the next
        sample; None where no gradient over them is needed.
      groups: M; 1 where no groups are needed.

    Returns:
      Sums over the new samples; the summed gradient over those that will be shared;
      (M,) squared norms of the mean gradients of the new groups.
    """
    starts, stops = group_bounds(size - old_size, groups)
    starts, stops = starts + old_size, stops + old_size
    lengths = jnp.maximum(stops - starts, 1).astype(sums.dtype)
    borders = starts
    if overlap_stop is not None:
        borders = jnp.sort(jnp.append(borders, overlap_stop))
    ends = jnp.append(borders[1:], size)
    zeros = empty_prefix(sums, params, 1).grad

    def add_piece(carry: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        loss, grad, overlap, group, previous, squares = carry
        first, last = bounds
        part = sums.gradient(params, source, order, start + first, start + last)
        loss, grad = loss + part.loss, _add(grad, part.grad)
        if overlap_stop is not None:
            in_overlap = (last <= overlap_stop).astype(sums.dtype)
            overlap = _add(overlap, part.grad, in_overlap)
        if groups > 1:
            index = jnp.searchsorted(stops, first, side="right").astype(jnp.int32)
            index = jnp.minimum(index, groups - 1)
            carried = (index == previous).astype(sums.dtype)
            group = jax.tree.map(lambda old, new: new + carried * old, group, part.grad)
            square = tree_dot(group, group) / lengths[index] ** 2
            squares = squares.at[index].set(square)
            previous = index
        return (loss, grad, overlap, group, previous, squares), None

    none = jnp.zeros((), sums.dtype)
    carry = (none, zeros, zeros, zeros, jnp.int32(-1), jnp.zeros(groups, sums.dtype))
    carry, _ = lax.scan(add_piece, carry, (borders, ends))
    loss, grad, overlap, _, _, squares = carry
    return GradientSums(loss, (), grad), overlap, squares


def _add(total: Any, part: Any, weight: Any = None) -> Any:
    if weight is None:
        return jax.tree.map(jnp.add, total, part)
    return jax.tree.map(lambda t, p: t + weight * p, total, part)


def _prefix_of_group(groups: Any, index: jax.Array, touched: int) -> Any:
    """The part of a group that lies in the prefix, zero beyond the groups touched."""
    row = jnp.minimum(index, touched - 1)

    def one(leaf: jax.Array) -> jax.Array:
        part = lax.dynamic_index_in_dim(leaf, row, keepdims=False)
        return part * (index < touched).astype(leaf.dtype)

    return jax.tree.map(one, groups)


def _products_of_prefix(
    products: Products, prefix: Prefix, lengths: jax.Array, memory: LBFGSMemory
) -> Products:
    """Fills in the groups that lie in the prefix as a whole."""
    touched = jax.tree.leaves(prefix.groups)[0].shape[0]

    def one(index: jax.Array) -> Products:
        group = jax.tree.map(
            lambda leaf: (
                lax.dynamic_index_in_dim(leaf, index, keepdims=False) / lengths[index]
            ),
            prefix.groups,
        )
        return inner_products(memory, group)

    rows = lax.map(one, jnp.arange(touched))
    return jax.tree.map(lambda all_, part: all_.at[:touched].set(part), products, rows)
