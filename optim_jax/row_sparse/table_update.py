"""The update of a table in place, at the cost of the rows that a batch looked up."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optim_jax.row_sparse.adagrad import AxisName, accumulator_dtype, check_table
from optim_jax.row_sparse.coalescing import check_index_range, coalesce, row_numbers
from optim_jax.row_sparse.rules import RowRule, RowSparseState


def sparse_update(
    rule: RowRule,
    table: jax.Array,
    state: RowSparseState,
    ids: Any,
    values: Any,
    *,
    axis_name: AxisName = None,
) -> tuple[jax.Array, RowSparseState]:
    """Updates the rows of a table that occur in `ids`.

    The gradients of a row that occurs several times are summed first, in the order of
    their occurrence. Work and memory are O(L D); under `jax.jit` with table and state
    donated the update is in place, and what no id names keeps its bits. On a CPU the
    same arguments give the same bits.

    Several tables of one width may be fused: stack them along the rows, and add each
    table's first row to its ids. To accumulate over micro-batches, concatenate their
    ids and values: applying an Adagrad to each would square before summing. A
    non-finite gradient spoils the rows it belongs to and no other.

    Args:
      rule: e.g. `sparse_row_wise_adagrad(0.01)`.
      table: [n, ...], real floating-point, usually [n, D]; n plus the number of ids
        at most 2**31.
      state: from `rule.init(table)` or the last update.
      ids: [L] integers; they may repeat. Ids of n and above are padding and their
        values are ignored. Callers refuse negative ids on the host; one that gets
        here is padding too and never counts from the end.
      values: [L, ...], gradients of the looked-up rows, each as wide as a row. They
        are summed in at least float32.
      axis_name: mesh axis over which the columns of the table are sharded evenly,
        inside `jax.shard_map`, with ids and a row-wise accumulator the same on all of
        its devices. The mean over a row then includes all columns.

    Returns:
      The new table and state.

    Raises:
      TypeError: ids are not integers, or table or values not real floating-point.
      ValueError: the shapes do not fit together, or the table has too many rows.
    """
    table, values = jnp.asarray(table), jnp.asarray(values)
    _check_arguments(rule, table, state, "ids", ids, "values", values)
    num_rows = table.shape[0]
    numbers = row_numbers("ids", ids, num_rows)
    check_index_range(num_rows, numbers.shape[0])
    wide = values.astype(accumulator_dtype(table))
    rows, gradients = coalesce(numbers, wide, num_rows)
    return _apply(rule, table, state, rows, gradients, axis_name, are_sorted=False)


def update_unique_rows(
    rule: RowRule,
    table: jax.Array,
    state: RowSparseState,
    rows: jax.Array,
    gradients: Any,
    *,
    axis_name: AxisName = None,
) -> tuple[jax.Array, RowSparseState]:
    """`sparse_update` for gradients that are already summed over duplicates.

    It saves the coalescing where the rows come from `unique_rows` and the gradient
    was taken with respect to `lookup(table, rows)`.

    Args:
      rule: as in `sparse_update`.
      table: as in `sparse_update`.
      state: as in `sparse_update`.
      rows: [U] int32, strictly ascending, n and above for padding: the result of
        `unique_rows`. Anything else gives undefined results.
      gradients: [U, ...], each as wide as a row.
      axis_name: as in `sparse_update`.

    Returns:
      The new table and state.

    Raises:
      TypeError: as in `sparse_update`.
      ValueError: as in `sparse_update`.
    """
    table, gradients = jnp.asarray(table), jnp.asarray(gradients)
    _check_arguments(rule, table, state, "rows", rows, "gradients", gradients)
    wide = gradients.astype(accumulator_dtype(table))
    return _apply(rule, table, state, rows, wide, axis_name, are_sorted=True)


def _check_arguments(
    rule: RowRule,
    table: jax.Array,
    state: RowSparseState,
    rows_name: str,
    rows: Any,
    values_name: str,
    values: jax.Array,
) -> None:
    check_table("sparse_update", table)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(
            f"{values_name} must be real floating-point, got {values.dtype}"
        )
    shape = np.shape(rows)
    if len(shape) != 1:
        raise ValueError(f"{rows_name} must be a vector, got shape {shape}")
    if values.shape != shape + table.shape[1:]:
        raise ValueError(
            f"{values_name} must have shape {shape + table.shape[1:]}, one row of the "
            f"table for each of the {rows_name}, got {values.shape}"
        )
    expected = jax.eval_shape(rule.init, table).accumulator
    if state.accumulator.shape != expected.shape:
        raise ValueError(
            f"state.accumulator must have shape {expected.shape}, that of "
            f"rule.init(table), got {state.accumulator.shape}"
        )


def _apply(
    rule: RowRule,
    table: jax.Array,
    state: RowSparseState,
    rows: jax.Array,
    gradients: jax.Array,
    axis_name: AxisName,
    are_sorted: bool,
) -> tuple[jax.Array, RowSparseState]:
    accumulator = jnp.asarray(state.accumulator)
    count = jnp.asarray(optax.safe_increment(state.count))
    if not rows.size or not table.size:
        return table, RowSparseState(accumulator, count)
    if accumulator.size:
        # Padding reads some row: its increments go nowhere.
        old = accumulator.at[rows].get(mode="clip", indices_are_sorted=are_sorted)
        new, increments = rule.step(old, gradients, state.count, axis_name)
        accumulator = accumulator.at[rows].set(
            new, mode="drop", unique_indices=True, indices_are_sorted=are_sorted
        )
    else:
        _, increments = rule.step(accumulator, gradients, state.count, axis_name)
    table = table.at[rows].add(
        increments.astype(table.dtype),
        mode="drop",
        unique_indices=True,
        indices_are_sorted=are_sorted,
    )
    return table, RowSparseState(accumulator, count)
