"""Bags of ids: where each begins, how long it is, and which bag an id is in."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from models.embeddings.components import read_ids
from models.embeddings.integer_arrays import read_integers


def offsets_from_lengths(lengths: Any, num_ids: int | None = None) -> Any:
    """Where each bag begins in the flat ids.

    Args:
      lengths: integers `[B]`, >= 0; 0 is an empty bag.
      num_ids: how many flat ids there are, to be compared with the sum.

    Returns:
      Offsets `[B]`: int64 for NumPy lengths, of the lengths' dtype for JAX arrays.

    Raises:
      TypeError: the lengths are not integers.
      ValueError: they are no vector; where their values are known, one is negative or
        their sum is not `num_ids`.
    """
    lengths = _read_vector("lengths", lengths)
    if not isinstance(lengths, jax.core.Tracer):
        values = np.asarray(lengths)
        if values.size and values.min() < 0:
            bag = int(np.argmax(values < 0))
            raise ValueError(f"lengths must be >= 0, got {values[bag]} for bag {bag}")
        if num_ids is not None and values.sum() != num_ids:
            raise ValueError(
                f"lengths must sum to the number of ids {num_ids}, got {values.sum()}"
            )
    return lengths.cumsum(dtype=lengths.dtype) - lengths


def lengths_from_offsets(offsets: Any, num_ids: int) -> Any:
    """How many ids each bag has.

    Args:
      offsets: integers `[B]`, where each bag begins: from 0, nondecreasing, at most
        `num_ids`.
      num_ids: how many flat ids there are; the last bag ends there.

    Returns:
      Lengths `[B]`: int64 for NumPy offsets, of the offsets' dtype for JAX arrays.

    Raises:
      TypeError: the offsets are not integers.
      ValueError: see `check_offsets`.
    """
    offsets = check_offsets(offsets, num_ids)
    xp = jnp if isinstance(offsets, jax.Array) else np
    end = xp.full((1,), num_ids, offsets.dtype)
    return xp.diff(xp.concatenate([offsets, end]))


def segments_from_offsets(offsets: Any, num_ids: int) -> jax.Array:
    """The bag of every flat id.

    Args:
      offsets: as in `lengths_from_offsets`; not checked.
      num_ids: how many flat ids there are.

    Returns:
      int32 `[num_ids]`, nondecreasing, in [0, B).
    """
    marks = jnp.zeros(num_ids, jnp.int32)
    # Bags that begin at num_ids are empty: their marks fall off the end.
    marks = marks.at[jnp.asarray(offsets)].add(1, mode="drop")
    return jnp.cumsum(marks, dtype=jnp.int32) - 1


def check_offsets(offsets: Any, num_ids: int, table: str = "table") -> Any:
    """Reads offsets and checks them where their values are known.

    Args:
      offsets: integers `[B]`, or a tracer.
      num_ids: how many flat ids there are.
      table: name for the messages.

    Returns:
      The offsets as an array, int64 unless a JAX array came in.

    Raises:
      TypeError: the offsets are not integers.
      ValueError: they are no vector, do not start at 0, decrease or exceed `num_ids`;
        there are ids and no bag.
    """
    offsets = _read_vector(f"offsets of {table}", offsets)
    if offsets.shape[0] == 0 and num_ids:
        raise ValueError(f"offsets of {table} name no bag for {num_ids} ids")
    if isinstance(offsets, jax.core.Tracer) or not offsets.shape[0]:
        return offsets
    values = np.asarray(offsets)
    if values[0] != 0:
        raise ValueError(f"offsets of {table} must start at 0, got {values[0]}")
    falls = values[1:] < values[:-1]
    if falls.any():
        bag = int(np.argmax(falls)) + 1
        raise ValueError(
            f"offsets of {table} must not decrease, got {values[bag]} for bag {bag} "
            f"after {values[bag - 1]}"
        )
    if values[-1] > num_ids:
        raise ValueError(
            f"offsets of {table} must be at most the number of ids {num_ids}, got "
            f"{values[-1]}"
        )
    return offsets


def check_bags(num_rows: int, ids: Any, offsets: Any, table: str = "table") -> Any:
    """Reads the bags of one table and checks them where their values are known.

    Args:
      num_rows: ids must be in [0, num_rows).
      ids: flat ids `[L]`, or a tracer.
      offsets: where each bag begins `[B]`, or a tracer; None: one id per bag.
      table: name for the messages.

    Returns:
      `(ids, offsets)` as arrays, int64 unless JAX arrays came in.

    Raises:
      TypeError: ids or offsets are not integers.
      ValueError: ids are no vector; one is out of range (named with its bag); see
        `check_offsets`.
    """
    ids = read_ids(ids)
    if ids.ndim != 1:
        raise ValueError(f"ids of {table} must be a vector, got shape {ids.shape}")
    if offsets is not None:
        offsets = check_offsets(offsets, ids.shape[0], table)
    if isinstance(ids, jax.core.Tracer):
        return ids, offsets
    values = np.asarray(ids)
    wrong = (values < 0) | (values >= num_rows)
    if wrong.any():
        place = int(np.argmax(wrong))
        bag = _bag_of(place, offsets)
        raise ValueError(
            f"ids of {table} must be in [0, {num_rows}), got {values[place]} at place "
            f"{place}{bag}"
        )
    return ids, offsets


def _bag_of(place: int, offsets: Any) -> str:
    if offsets is None:
        return f" (bag {place})"
    if isinstance(offsets, jax.core.Tracer):
        return ""
    return f" (bag {np.searchsorted(np.asarray(offsets), place, side='right') - 1})"


def _read_vector(name: str, values: Any) -> Any:
    values = read_integers(name, values)
    if values.ndim != 1:
        raise ValueError(f"{name} must be a vector, got shape {values.shape}")
    return values if isinstance(values, jax.Array) else values.astype(np.int64)
