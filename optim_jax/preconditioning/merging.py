"""Merging small dims of a parameter, and cutting large ones into blocks."""

import itertools
import math
from collections.abc import Sequence


def check_dimension(name: str, value: float) -> None:
    """Checks an integer >= 1 or infinity.

    Raises:
      ValueError: the value is neither.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not (value == math.inf or (value >= 1 and value == int(value))):
        raise ValueError(f"{name} must be an integer >= 1 or inf, got {value!r}")


def merge_small_dims(
    shape: Sequence[int],
    max_preconditioner_dim: float,
    target_dimensionality: float,
) -> tuple[int, ...]:
    """Merges neighbouring dims, from the last, while their product stays small.

    With the target 1, small matrices become vectors: (6, 4) is (24,) up to any limit
    of at least 24, and gets one full factor instead of two sides.

    Args:
      shape: sizes >= 0.
      max_preconditioner_dim: largest size that merging may give, >= 1 or inf.
      target_dimensionality: number of dims at which merging stops, >= 1; inf leaves
        the shape alone.

    Returns:
      The merged sizes in the original order. Dims of size 1 are dropped, and (1,) is
      left if all are; a dim of size 0 makes it (0,).

    Raises:
      ValueError: an argument is out of range.
    """
    check_dimension("max_preconditioner_dim", max_preconditioner_dim)
    check_dimension("target_dimensionality", target_dimensionality)
    if any(size < 0 for size in shape):
        raise ValueError(f"shape must hold sizes >= 0, got {tuple(shape)}")
    if 0 in shape:
        return (0,)
    if target_dimensionality == math.inf:
        return tuple(shape)
    sizes = [size for size in shape if size != 1]
    if not sizes:
        return (1,)
    merged = [sizes[-1]]
    for left, size in enumerate(reversed(sizes[:-1]), start=1):
        remaining = len(sizes) - left  # dims not yet looked at, this one included
        fits = merged[-1] * size <= max_preconditioner_dim
        if fits and len(merged) + remaining > target_dimensionality:
            merged[-1] *= size
        else:
            merged.append(size)
    return tuple(reversed(merged))


def chunk_runs(size: int, limit: float) -> tuple[tuple[int, int, int], ...]:
    """Cuts one dim into chunks of `limit`, the last one ragged.

    Returns:
      Runs of equal chunks as (offset, number, size): one, or two with a ragged end.
    """
    chunk = size if limit == math.inf else min(size, int(limit))
    number, ragged = divmod(size, chunk) if chunk else (0, 0)
    runs = ((0, number, chunk),) if number else ()
    return (*runs, (number * chunk, 1, ragged)) if ragged else runs


def block_slices(shape: Sequence[int], b: float) -> tuple[tuple[slice, ...], ...]:
    """Cuts a shape into blocks of at most `b` along every dim.

    Args:
      shape: merged sizes.
      b: largest size of a block along a dim, >= 1 or inf.

    Returns:
      One tuple of slices per block, the last dim fastest.

    Raises:
      ValueError: `b` is out of range.
    """
    check_dimension("b", b)
    per_dim = []
    for size in shape:
        slices = []
        for offset, number, chunk in chunk_runs(size, b):
            starts = range(offset, offset + number * chunk, chunk)
            slices.extend(slice(start, start + chunk) for start in starts)
        per_dim.append(slices)
    return tuple(itertools.product(*per_dim))
