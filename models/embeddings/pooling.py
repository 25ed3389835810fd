"""From gathered rows to bags: combining the parts of an id, pooling the ids of a bag.

Everything here is a function of gathered rows `[L, width]`, never of a table, so that
an optimizer that updates rows can differentiate it.
"""

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.embeddings.components import (
    component_shapes,
    dense_shapes,
    device_ids,
    part_classes,
    valid_ids,
)
from models.embeddings.integer_arrays import read_integers
from models.embeddings.table_checks import COMBINING_METHODS
from models.embeddings.table_config import TableConfig


def pool_rows(
    config: TableConfig,
    rows: dict[str, jax.Array],
    dense: dict[str, Any],
    ids: Any,
    segments: Any,
    num_bags: int,
    per_sample_weights: Any = None,
) -> jax.Array:
    r"""Bags of one table from its gathered rows; differentiable in rows and `dense`.

    An id outside [0, rows) is padding: whatever its rows hold, it adds nothing to its
    bag, is not counted by a mean, and its rows receive no gradient. So is an id of
    segment `num_bags` or more.

    With :math:`\omega` the operation and :math:`W_i[\cdot]` the parts, a bag is
    :math:`\sum_l \omega(W_1[l], W_2[l], \dots)` for `combine_then_pool` and
    :math:`\omega(\sum_l W_1[l], \sum_l W_2[l], \dots)` for `pool_then_combine`; a mean
    replaces each sum. Products are formed as they stand, so a zero in one part passes
    the right gradient to the others. A bag of a frequency table adds its hot rows to
    the bag of its cold ids; the mean of a mixed bag weights both sides by their number.

    Args:
      config: the table.
      rows: by the names of `component_shapes`: `[L, width]`.
      dense: the leaves of `dense_shapes`; others are ignored.
      ids: integers `[L]`, as passed to `component_ids`.
      segments: integers `[L]`, sorted: the bag of each id; `num_bags` for padding.
        None: one id per bag, L = num_bags, and nothing is summed.
      num_bags: B.
      per_sample_weights: `[L]`; each multiplies its id's vector before the sum (a mean
        still divides by the number of ids). None: ones.

    Returns:
      `[B, output_width(config)]` of the rows' dtype; sums are taken in float32 or
      wider. An empty bag is zero.

    Raises:
      TypeError: the ids are not integers.
      ValueError: leaves or shapes do not fit; weights with `mult` and
        `pool_then_combine`, which would count each weight once per part.
    """
    ids = device_ids(config, ids)
    _check_vectors(ids, segments, num_bags, per_sample_weights)
    _check_leaves(config, rows, dense, len(ids))
    _check_weights(config, per_sample_weights)
    bags = _Bags(config.pooling, segments, num_bags, per_sample_weights)
    valid = valid_ids(config, ids)
    method = config.built_method
    if method == "mixed":
        # The projection is linear: it is cheaper after the sum.
        pooled = bags.pool(rows["table"], valid)
        return pooled @ dense["projection"] if dense_shapes(config) else pooled
    if method == "path":
        vectors = path_vectors(config, rows["part_0"], dense["functions"], ids)
        return bags.pool(vectors, valid)
    if method == "frequency":
        return _pool_frequency(config, rows, ids, bags)
    parts = [rows[leaf] for leaf in component_shapes(config)]
    if method in ("full", "hash", "features"):
        return bags.pool(jnp.concatenate(parts, axis=1), valid)
    if config.pool_order == "combine_then_pool":
        return bags.pool(combine(config.op, parts), valid)
    return combine(config.op, [bags.pool(part, valid) for part in parts])


def combine(op: str, parts: Sequence[jax.Array]) -> jax.Array:
    """Combines the parts of every id.

    Args:
      op: `concat`, `add` or `mult` (entry by entry).
      parts: arrays `[L, width]`, of one width for `add` and `mult`.

    Returns:
      `[L, sum of widths]` for `concat`, `[L, width]` otherwise.
    """
    if op == "concat":
        return jnp.concatenate(parts, axis=1)
    return functools.reduce(operator.add if op == "add" else operator.mul, parts)


def path_vectors(
    config: TableConfig, base: jax.Array, functions: dict[str, Any], ids: jax.Array
) -> jax.Array:
    """Applies to each base vector the functions that its id selects.

    Args:
      config: a path table.
      base: rows of `part_0`, `[L, D]`.
      functions: the stacked perceptrons, see `dense_shapes`.
      ids: `[L]`; ids out of range are given those of id 0.

    Returns:
      `[L, D]`.

    References:
      Shi, Mudigere, Naumov, Yang, 2020, https://arxiv.org/abs/1909.02107 (path-based
      compositional embeddings); `path_residual` is this project's choice.
    """
    vectors = base
    classes = part_classes(config, jnp.where(valid_ids(config, ids), ids, 0))
    for number, selected in enumerate(classes[1:], start=1):
        function = jax.tree.map(jnp.asarray, functions[f"part_{number}"])
        hidden = _apply_selected(vectors, function["hidden_kernel"], selected)
        hidden = jax.nn.relu(hidden + function["hidden_bias"][selected])
        output = _apply_selected(hidden, function["output_kernel"], selected)
        output = output + function["output_bias"][selected]
        vectors = vectors + output if config.path_residual else output
    return vectors


def _apply_selected(
    vectors: jax.Array, kernels: jax.Array, selected: jax.Array
) -> jax.Array:
    """Row l times kernel `selected[l]` of a stack `[c, in, out]`."""
    count, width, _ = kernels.shape
    if count > width:
        return jnp.einsum("li,lio->lo", vectors, kernels[selected])
    # A few kernels: all of them on every row is one product of matrices, and smaller
    # than a copy of a kernel for every row.
    every = jnp.einsum("li,cio->lco", vectors, kernels)
    return jnp.take_along_axis(every, selected[:, None, None], axis=1)[:, 0]


@dataclasses.dataclass(frozen=True)
class _Bags:
    """How vectors of ids become vectors of bags."""

    pooling: str
    segments: Any
    num_bags: int
    weights: Any

    def pool(self, values: jax.Array, valid: jax.Array) -> jax.Array:
        """Pools `[L, width]` to `[B, width]`; ids that are not valid do not count."""
        wide = jnp.promote_types(values.dtype, jnp.float32)
        total = jnp.where(valid[:, None], values, 0).astype(wide)
        if self.weights is not None:
            total = total * jnp.asarray(self.weights, wide)[:, None]
        if self.segments is not None:
            total = self._sum(total)
            if self.pooling == "mean":
                total = total / self.count(valid)
        return total.astype(values.dtype)

    def count(self, valid: jax.Array) -> jax.Array:
        """Valid ids of every bag `[B, 1]`, at least 1."""
        if self.segments is None:
            return jnp.ones((self.num_bags, 1), jnp.float32)
        count = self._sum(valid.astype(jnp.float32))
        return jnp.maximum(count, 1.0)[:, None]

    def _sum(self, values: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(
            values,
            jnp.asarray(self.segments),
            self.num_bags,
            indices_are_sorted=True,
            mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
        )


def _pool_frequency(
    config: TableConfig, rows: dict[str, jax.Array], ids: jax.Array, bags: _Bags
) -> jax.Array:
    valid, is_hot = valid_ids(config, ids), ids < config.hot_rows
    hot, cold = valid & is_hot, valid & ~is_hot
    parts = [rows["quotient"], rows["remainder"]]
    if config.pool_order == "combine_then_pool":
        vectors = jnp.where(is_hot[:, None], rows["hot"], combine(config.op, parts))
        return bags.pool(vectors, valid)
    of_hot = bags.pool(rows["hot"], hot)
    of_cold = combine(config.op, [bags.pool(part, cold) for part in parts])
    if config.pooling == "mean":
        # Each side is the mean of its own ids: weight it by their share of the bag.
        total = bags.count(valid)
        of_hot = of_hot * (bags.count(hot) / total).astype(of_hot.dtype)
        of_cold = of_cold * (bags.count(cold) / total).astype(of_cold.dtype)
    return of_hot + of_cold


def _check_vectors(ids: Any, segments: Any, num_bags: int, weights: Any) -> None:
    if ids.ndim != 1:
        raise ValueError(f"ids must be a vector, got shape {ids.shape}")
    if segments is None and ids.shape[0] != num_bags:
        raise ValueError(
            "without segments every bag has one id, but there are "
            f"{ids.shape[0]} ids for num_bags={num_bags}"
        )
    for name, values in (("segments", segments), ("per_sample_weights", weights)):
        if values is not None and np.shape(values) != ids.shape:
            raise ValueError(
                f"{name} must have the shape {ids.shape} of ids, got {np.shape(values)}"
            )
    if segments is not None:
        read_integers("segments", segments)


def _check_leaves(
    config: TableConfig, rows: dict[str, jax.Array], dense: dict[str, Any], count: int
) -> None:
    expected = {
        leaf: (count, width) for leaf, (_, width) in component_shapes(config).items()
    }
    found = {leaf: np.shape(values) for leaf, values in rows.items()}
    if found != expected:
        raise ValueError(
            f"rows of a table with method={config.built_method!r} must have the shapes "
            f"{expected}, got {found}"
        )
    missing = sorted(set(dense_shapes(config)) - set(dense))
    if missing:
        raise ValueError(
            f"a table with method={config.built_method!r} needs the dense leaves "
            f"{', '.join(missing)}, got {', '.join(dense) or 'none'}"
        )


def _check_weights(config: TableConfig, weights: Any) -> None:
    is_product = config.built_method in COMBINING_METHODS and config.op == "mult"
    if weights is None or not is_product:
        return
    if config.pool_order == "pool_then_combine":
        raise ValueError(
            "per_sample_weights with op='mult' need pool_order='combine_then_pool': a "
            "product of weighted sums would count each weight once per part"
        )
