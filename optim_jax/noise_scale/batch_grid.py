"""The batch sizes that can be run: multiples of a quantum that may grow with size."""

import math
import numbers
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.validation import check_choice

Quantum = int | Sequence[tuple[int, int]]

INT32_MAX = 2**31 - 1
ROUNDINGS = ("ceil", "floor")
# Relative rounding error forgiven to a size that should be a grid point.
GUARD = 1e-6


class GridSegment(NamedTuple):
    """Grid points first, first + step, ..., last.

    Attributes:
      first: smallest grid point of the segment.
      last: largest one, at most 2^31 - 1.
      step: distance of neighbours; all points are multiples of it.
    """

    first: int
    last: int
    step: int


def is_int(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy; booleans are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def grid_segments(quantum: Quantum) -> tuple[GridSegment, ...]:
    """Splits a grid into segments of one step each.

    Args:
      quantum: the step of a grid that starts at the step itself, or pairs
        (from, step): multiples of `step` among the sizes >= `from` and below the next
        `from`.

    Returns:
      The segments that hold a point, in increasing order.

    Raises:
      ValueError: `quantum` is neither.
    """
    pairs: Any = ((1, quantum),) if is_int(quantum) else quantum
    allowed = (
        "an int >= 1 or pairs (from, step) of such ints with increasing from, "
        f"up to {INT32_MAX}"
    )
    if not _are_grid_pairs(pairs):
        raise ValueError(f"quantum must be {allowed}, got {quantum!r}")
    starts = [int(start) for start, _ in pairs] + [INT32_MAX + 1]
    steps = [int(step) for _, step in pairs]
    segments = [
        GridSegment(-(-start // step) * step, (end - 1) // step * step, step)
        for start, end, step in zip(starts[:-1], starts[1:], steps, strict=True)
    ]
    segments = tuple(segment for segment in segments if segment.first <= segment.last)
    if not segments:
        raise ValueError(f"quantum must be {allowed}, got {quantum!r}: no size is left")
    return segments


def _are_grid_pairs(pairs: Any) -> bool:
    if not isinstance(pairs, list | tuple) or not pairs:
        return False
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            return False
        if not all(is_int(entry) and 1 <= entry <= INT32_MAX for entry in pair):
            return False
    starts = [start for start, _ in pairs]
    return all(a < b for a, b in zip(starts, starts[1:], strict=False))


def is_on_grid(size: int, quantum: Quantum) -> bool:
    """Whether a batch size is a point of the grid.

    Args:
      size: batch size.
      quantum: int or (from, step) pairs, see `round_to_grid`.
    """
    return is_int(size) and any(
        segment.first <= size <= segment.last and size % segment.step == 0
        for segment in grid_segments(quantum)
    )


@overload
def round_to_grid(size: jax.Array, quantum: Quantum, rounding: str) -> jax.Array: ...
@overload
def round_to_grid(size: float, quantum: Quantum, rounding: str) -> int: ...
def round_to_grid(size: Any, quantum: Quantum, rounding: str) -> Any:
    """Rounds a real batch size to the next grid point up or down.

    A size within a relative 1e-6 of a grid point is that point, so that rounding errors
    of a request do not cost a step of the grid. Sizes below the grid give its smallest
    point, sizes above 2^31 - 1 the largest one up to there.

    Args:
      size: real number, or an array of them, which may be traced and is rounded in
        float32.
      quantum: the step, an int >= 1, or (from, step) pairs: `((1, 32), (128, 128))`
        are the multiples of 32 below 128 and of 128 from there.
      rounding: `"ceil"` or `"floor"`.

    Returns:
      An int for a number, an int32 array for an array.

    Raises:
      ValueError: an argument is not as described.
    """
    check_choice("rounding", rounding, ROUNDINGS)
    segments = grid_segments(quantum)
    round_ = _round_up if rounding == "ceil" else _round_down
    if isinstance(size, jax.Array):
        # Without infinities, whose distance to an integer is not a number.
        size = jnp.clip(size.astype(jnp.float32), 0.0, 2.0 * INT32_MAX)
        return round_(size, segments, jnp)
    if not isinstance(size, numbers.Real) or not math.isfinite(size):
        raise ValueError(f"size must be a finite number or an array, got {size!r}")
    return int(round_(np.float64(size), segments, np))


def _round_up(size: Any, segments: Sequence[GridSegment], xp: ModuleType) -> Any:
    rounded = segments[-1].last
    for segment in reversed(segments):
        count = _whole(size / segment.step, xp.ceil, xp)
        reached = count <= segment.last // segment.step
        rounded = xp.where(reached, _grid_point(count, segment, xp), rounded)
    return rounded


def _round_down(size: Any, segments: Sequence[GridSegment], xp: ModuleType) -> Any:
    rounded = segments[0].first
    for segment in segments:
        count = _whole(size / segment.step, xp.floor, xp)
        reached = count >= segment.first // segment.step
        rounded = xp.where(reached, _grid_point(count, segment, xp), rounded)
    return rounded


def _whole(count: Any, round_: Callable[[Any], Any], xp: ModuleType) -> Any:
    nearest = xp.round(count)
    is_whole = xp.abs(count - nearest) <= GUARD * xp.abs(count)
    return xp.where(is_whole, nearest, round_(count))


def _grid_point(count: Any, segment: GridSegment, xp: ModuleType) -> Any:
    """The point `count * step` as an integer, clipped to the segment."""
    least, most = segment.first // segment.step, segment.last // segment.step
    inside = xp.clip(count, least, most)
    # 2^31 - 1 is no float32: the clipped value may still be one too large to convert.
    multiples = xp.where(count >= most, most, inside.astype(xp.int32))
    return multiples * segment.step
