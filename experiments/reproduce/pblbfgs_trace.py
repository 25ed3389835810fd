"""Where a fit stood, how many epochs it took to a gap, and how many seconds."""

import bisect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

# Points of a curve that is drawn; more would only make the file larger.
DRAWN_POINTS = 100


class Point(NamedTuple):
    """Where a fit stood.

    Attributes:
      iterations: made before.
      epochs: gradients of samples so far, over N.
      gap: F - F*.
      batch_size: of the iteration before; 0 where that means nothing.
      work: gradients, and losses and directional derivatives at their cost in
        gradients, over N.
      seconds: so far; NaN where not known.
    """

    iterations: int
    epochs: float
    gap: float
    batch_size: int = 0
    work: float = math.nan
    seconds: float = math.nan


def first_within(points: Sequence[Point], gap: float) -> Point | None:
    """The first point with at most this gap; None if there is none."""
    return next((point for point in points if point.gap <= gap), None)


def thinned(points: Sequence[Point], most: int = DRAWN_POINTS) -> list[Point]:
    """At most about `most` points, evenly over the epochs; the ends stay.

    Args:
      points: in the order of their epochs.
      most: how many to keep.
    """
    if len(points) <= most:
        return list(points)
    spacing = points[-1].epochs / most
    kept = [points[0]]
    for point in points[1:-1]:
        if point.epochs - kept[-1].epochs >= spacing:
            kept.append(point)
    return [*kept, points[-1]]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def curve_of(points: Sequence[Point]) -> dict[str, list[Any]]:
    """Epochs, gaps and batch sizes to be drawn, JSON-able."""
    kept = thinned(points)
    return {
        "epochs": [_rounded(point.epochs) for point in kept],
        "gap": [_rounded(point.gap) for point in kept],
        "batch_size": [point.batch_size for point in kept],
    }


def value_at(curve: dict[str, list[Any]], name: str, epochs: float) -> float:
    """What a curve shows after so many epochs: that of the last point before."""
    index = bisect.bisect_right([float(e) for e in curve["epochs"]], epochs) - 1
    return float(curve[name][index]) if index >= 0 else math.nan
