"""One gradient per row: the gradients of repeated ids are summed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LARGEST_INDEX = np.iinfo(np.int32).max
# Of the hash table: at most about one row in eight loses its slot in a round.
_SLOTS_PER_ID = 4


def row_numbers(name: str, ids: Any, num_rows: int) -> jax.Array:
    """Ids as int32 row numbers, all that are out of range replaced by `num_rows`.

    Indexing in JAX wraps negative numbers and clamps large ones; here both are
    padding. An int64 NumPy array is read in full width, also where 64-bit types are
    off; `jax.jit` would have cut its entries to 32 bits.

    Args:
      name: of the argument, for the message.
      ids: integers of any shape.
      num_rows: rows of the table, below 2**31.

    Raises:
      TypeError: `ids` are not integers.
      ValueError: `num_rows` is 2**31 or more.
    """
    check_index_range(num_rows, 1)
    ids = ids if isinstance(ids, jax.Array) else np.asarray(ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {ids.dtype}")
    if isinstance(ids, np.ndarray):
        ids = ids.astype(np.int64)
        inside = (ids >= 0) & (ids < num_rows)
        return jnp.asarray(np.where(inside, ids, num_rows).astype(np.int32))
    if ids.dtype.itemsize < 4:  # may be too narrow for num_rows
        ids = ids.astype(jnp.int32)
    inside = (ids >= 0) & (ids < num_rows)
    return jnp.where(inside, ids, num_rows).astype(jnp.int32)


def check_index_range(num_rows: int, size: int) -> None:
    """Refuses a table whose padding entries would not fit into int32.

    Raises:
      ValueError: `num_rows + size` exceeds 2**31.
    """
    if num_rows + size - 1 > LARGEST_INDEX:
        raise ValueError(
            f"{num_rows} rows and {size} ids need padding entries up to "
            f"{num_rows + size - 1}, but int32 ends at {LARGEST_INDEX}: split the table"
        )


def last_occurrence(rows: jax.Array, num_rows: int) -> jax.Array:
    """For every entry, the position where the same row occurs for the last time.

    A hash table of O(L) slots in place of a sort, of which XLA's on a CPU costs a
    multiple: each entry writes its position into the slot of its row, the largest
    stays, and whoever finds another row in its slot tries again with another hash
    function. A round settles at least one row per slot in use, hence the loop ends;
    three or four rounds are usual. A maximum does not depend on the order of the
    writes, so the result is the same on every device.

    Args:
      rows: [L] int32; `num_rows` and above are padding.
      num_rows: rows of the table.

    Returns:
      [L] int32 positions; L for padding.
    """
    (length,) = rows.shape
    if not length:
        return rows
    bits = max(1, (_SLOTS_PER_ID * length - 1).bit_length())
    positions = jnp.arange(length, dtype=jnp.int32)

    def settle(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        seed, last, _ = carry
        hashed = (_mix(rows.astype(jnp.uint32), seed) >> (32 - bits)).astype(jnp.int32)
        slot = jnp.where(last < 0, hashed, 1 << bits)
        table = jnp.full((1 << bits,), -1, jnp.int32)
        table = table.at[slot].max(positions, mode="drop")
        found = table.at[slot].get(mode="fill", fill_value=0)
        same = rows.at[found].get(mode="promise_in_bounds") == rows
        last = jnp.where((last < 0) & same, found, last)
        return seed + 1, last, jnp.any(last < 0)

    # Made from rows, so that under shard_map it varies over the same mesh axes.
    start = jnp.where(rows < num_rows, -1, length)
    carry = (jnp.uint32(0), start, jnp.any(start < 0))
    return jax.lax.while_loop(lambda carry: carry[2], settle, carry)[1]


def _mix(keys: jax.Array, seed: jax.Array) -> jax.Array:
    """The last steps of MurmurHash3: a bijection of 32 bits that spreads every bit."""
    keys = keys + seed * jnp.uint32(0x9E3779B9)
    keys = (keys ^ (keys >> 16)) * jnp.uint32(0x85EBCA6B)
    keys = (keys ^ (keys >> 13)) * jnp.uint32(0xC2B2AE35)
    return keys ^ (keys >> 16)


def coalesce(
    rows: jax.Array, values: jax.Array, num_rows: int
) -> tuple[jax.Array, jax.Array]:
    """Sums the values of each row, in the order in which they occur.

    Args:
      rows: [L] int32; `num_rows` and above are padding.
      values: [L, ...] gradients.
      num_rows: rows of the table.

    Returns:
      `(rows, sums)`, [L] and [L, ...]: each row once, at its last occurrence, with
      its sum; everywhere else a number of its own from `num_rows` on, with zeros. No
      number occurs twice, and they are in no order.
    """
    (length,) = rows.shape
    last = last_occurrence(rows, num_rows)
    sums = jnp.zeros_like(values).at[last].add(values, mode="drop")
    positions = jnp.arange(length, dtype=jnp.int32)
    return jnp.where(last == positions, rows, num_rows + positions), sums
