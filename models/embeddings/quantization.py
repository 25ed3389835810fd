"""Tables in 8 or 4 bits per number, with a scale and a minimum for every row."""

import functools
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


class QuantizedRows(NamedTuple):
    """A table `[n, D]` in b bits: entry = minimum + scale * code."""

    codes: jax.Array  # uint8 [n, D]; for 4 bits [n, ceil(D/2)], two codes per byte
    scale: jax.Array  # float32 [n], (max - min) / (2**b - 1); 0 for a constant row
    minimum: jax.Array  # float32 [n]
    shift: jax.Array  # uint8 [D], bits by which the byte of a column is shifted right


def quantize_rows(table: Any, bits: int) -> QuantizedRows:
    """Rounds every row to the nearest of 2**bits equally spaced numbers.

    The error of an entry is at most half the scale of its row, up to float32 rounding;
    the least entry of a row and every constant row come back exactly.

    Args:
      table: floats `[n, D]`, D >= 1.
      bits: 8 or 4.

    Returns:
      D + 8 bytes per row for 8 bits, ceil(D/2) + 8 for 4.

    Raises:
      ValueError: `bits` is another number; the table is no float matrix with columns;
        an entry whose value is known is not finite (its row is named).
    """
    if bits not in (4, 8):
        raise ValueError(f"bits must be 4 or 8, got {bits!r}")
    table = jnp.asarray(table)
    if table.ndim != 2 or not table.shape[1]:
        raise ValueError(f"table must be a matrix with columns, got {table.shape}")
    if not jnp.issubdtype(table.dtype, jnp.floating):
        raise ValueError(f"table must be of floats, got {table.dtype}")
    if not isinstance(table, jax.core.Tracer):
        # A range that overflows float32 is no better than an infinite entry.
        span = table.max(axis=1).astype(jnp.float32) - table.min(axis=1)
        wrong = ~np.isfinite(np.asarray(span))
        if wrong.any():
            raise ValueError(
                f"table row {int(np.argmax(wrong))} is not finite, or its range is not"
            )
    return _quantize(table, bits)


@functools.partial(jax.jit, static_argnums=1)
def _quantize(table: jax.Array, bits: int) -> QuantizedRows:
    table = table.astype(jnp.float32)
    most = 2**bits - 1
    minimum = table.min(axis=1)
    scale = (table.max(axis=1) - minimum) / most
    divisor = jnp.where(scale > 0, scale, 1.0)
    codes = jnp.rint((table - minimum[:, None]) / divisor[:, None])
    codes = jnp.clip(codes, 0, most).astype(jnp.uint8)
    shift = jnp.zeros(table.shape[1], jnp.uint8)
    if bits == 4:
        codes = jnp.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
        codes = codes[:, 0::2] | (codes[:, 1::2] << 4)
        shift = shift.at[1::2].set(4)
    return QuantizedRows(codes, scale, minimum, shift)


def dequantize_rows(q: QuantizedRows) -> jax.Array:
    """The table that the codes stand for, float32 `[n, D]`; usable inside jit."""
    width, stored = q.shift.shape[0], q.codes.shape[1]
    per_byte = -(-width // stored)
    columns = np.arange(width) // per_byte
    mask = np.uint8(255 if per_byte == 1 else 15)
    codes = (q.codes[:, columns] >> q.shift) & mask
    return q.minimum[:, None] + q.scale[:, None] * codes.astype(jnp.float32)


def gather_quantized_rows(q: QuantizedRows, rows: Any) -> jax.Array:
    """Looks rows up in a quantized table, dequantizing those rows only.

    Args:
      q: the table.
      rows: integers `[L]`, not negative.

    Returns:
      float32 `[L, D]`; zeros where a row is out of range.
    """
    codes, scale, minimum = (
        leaf.at[rows].get(mode="fill", fill_value=0)
        for leaf in (q.codes, q.scale, q.minimum)
    )
    return dequantize_rows(QuantizedRows(codes, scale, minimum, q.shift))
