"""Which rows a batch reads, and reading them."""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.row_sparse.coalescing import (
    LARGEST_INDEX,
    check_index_range,
    last_occurrence,
    row_numbers,
)


def unique_rows(ids: Any, num_rows: int, size: int) -> tuple[jax.Array, jax.Array]:
    """The distinct rows among ids, ascending, and where each id finds its own.

    The result has a static shape. Entries of `rows` beyond the distinct ids are
    `num_rows`, `num_rows + 1`, ...: distinct and out of range, so that `rows` as a
    whole is strictly ascending and may be promised to be unique and sorted.

    Only a caller that wants a row once needs this. For `sparse_update` it is cheaper
    to differentiate with respect to each looked-up row and to pass on all ids.

    Args:
      ids: [L] integers. Ids of `num_rows` and above are padding, and so are negative
        ones, which callers should have refused.
      num_rows: rows of the table; `num_rows + size` at most 2**31.
      size: how many entries `rows` has, at least the number of distinct ids; `L` is
        always enough. If it is too small, the largest ids are treated as padding.

    Returns:
      `(rows, inverse)`, both int32. `rows` is [size]; `inverse` is [L], and
      `rows[inverse[l]] == ids[l]` for every id in range. The inverse of padding is
      the first padding entry of `rows`, or `size` if there is none: never a real row,
      provided that it is read with `mode="fill"` and written with `mode="drop"`.

    Raises:
      TypeError: `ids` are not integers.
      ValueError: `ids` are not a vector, `size` or `num_rows` is negative, or their
        sum exceeds 2**31.
    """
    if num_rows < 0 or size < 0:
        raise ValueError(
            f"num_rows and size must be >= 0, got num_rows {num_rows} and size {size}"
        )
    check_index_range(num_rows, size)
    ids = row_numbers("ids", ids, num_rows)
    if ids.ndim != 1:
        raise ValueError(f"ids must be a vector, got shape {ids.shape}")
    (length,) = ids.shape
    index = jnp.arange(size, dtype=jnp.int32)
    if not length or not size:
        return num_rows + index, jnp.zeros_like(ids)
    is_last = last_occurrence(ids, num_rows) == jnp.arange(length, dtype=jnp.int32)
    count = jnp.sum(is_last, dtype=jnp.int32)
    ordered = jax.lax.sort(jnp.where(is_last, ids, LARGEST_INDEX))[:size]
    ordered = jnp.pad(ordered, (0, size - ordered.shape[0]))
    rows = jnp.where(index < count, ordered, num_rows + (index - count))
    # Padding, `num_rows` by now, is found at the first padding entry of its own.
    inverse = jnp.searchsorted(rows, ids, method="scan_unrolled")
    return rows, inverse.astype(jnp.int32)


def lookup(table: jax.Array, rows: Any) -> jax.Array:
    """Rows of a table; zeros for every row number that is out of range.

    Args:
      table: [n, ...].
      rows: integers of any shape, e.g. ids or the result of `unique_rows`.

    Returns:
      `rows.shape + table.shape[1:]`, of the table's dtype.

    Raises:
      TypeError: `rows` are not integers.
    """
    numbers = row_numbers("rows", rows, table.shape[0])
    return jnp.asarray(table).at[numbers].get(mode="fill", fill_value=0)
