import json
import math

from experiments.reproduce.pblbfgs_trace import (
    Point,
    curve_of,
    first_within,
    thinned,
    value_at,
)

POINTS = [
    Point(0, 0.0, 0.6931471805599453),
    Point(1, 0.5, 0.2, 64),
    Point(2, 1.25, 0.3, 128),
    Point(3, 2.25, 0.01, 256),
]


def test_the_first_point_within_a_gap_counts():
    assert first_within(POINTS, 0.25).iterations == 1
    # Exactly at the gap is within it.
    assert first_within(POINTS, 0.01).epochs == 2.25
    assert first_within(POINTS, 1e-3) is None
    assert first_within([Point(0, 0.0, math.nan), POINTS[3]], 0.1) is POINTS[3]


def test_short_curves_are_kept_and_long_ones_thinned_evenly():
    assert thinned(POINTS) == POINTS
    points = [Point(k, k**2 / 1e4, 1.0 / (k + 1)) for k in range(1001)]
    kept = thinned(points, 50)
    assert 40 <= len(kept) <= 52
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    steps = [b.epochs - a.epochs for a, b in zip(kept[:-2], kept[1:-1], strict=True)]
    assert min(steps) >= 100 / 50 and max(steps) < 1.2 * 100 / 50


def test_a_curve_is_a_step_function_of_the_epochs():
    curve = json.loads(json.dumps(curve_of(POINTS)))
    assert curve["gap"][0] == 0.6931
    found = [value_at(curve, "gap", epochs) for epochs in (0.0, 0.49, 0.5, 1.3, 9.0)]
    assert found == [0.6931, 0.6931, 0.2, 0.3, 0.01]
    assert value_at(curve, "batch_size", 1.25) == 128.0
    assert math.isnan(value_at(curve, "gap", -0.1))
