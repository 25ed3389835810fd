import numpy as np
import pytest

from optim_jax.linalg.polar_schedule import (
    TOLERANCE,
    minimax_quintic,
    polar_schedule,
)


def _composed(x, steps):
    for a, b, c in steps:
        x = a * x + b * x**3 + c * x**5
    return x


@pytest.mark.parametrize("lower", [4e-4, 1e-3, 0.1, 0.9])
def test_the_whole_interval_ends_at_one(lower):
    x = np.geomspace(lower, 1.0, 20001)
    assert np.abs(_composed(x, polar_schedule(lower)) - 1.0).max() <= TOLERANCE


def test_a_condition_of_a_thousand_takes_seven_steps():
    assert [len(polar_schedule(1e-3 / d**0.125)) for d in (1, 64, 1024)] == [7, 7, 7]


def test_smaller_values_rise_and_zero_stays():
    steps = polar_schedule(1e-3)
    x = np.geomspace(1e-9, 1e-3, 1001)
    values = _composed(x, steps)
    assert np.all(values > 100 * x) and np.all(values < 1.0 + TOLERANCE)
    assert _composed(0.0, steps) == 0.0


def test_a_value_that_rounding_puts_above_one_still_converges():
    steps = polar_schedule(4e-4)
    assert abs(_composed(1.0 + 1e-5, steps) - 1.0) <= TOLERANCE


def test_a_smaller_tolerance_is_reached():
    x = np.geomspace(1e-3, 1.0, 20001)
    steps = polar_schedule(1e-3, 1e-12)
    assert np.abs(_composed(x, steps) - 1.0).max() <= 1e-12


@pytest.mark.parametrize("interval", [(1e-4, 1.0), (0.05, 1.9), (0.7, 1.3)])
def test_the_error_of_the_best_quintic_alternates_four_times(interval):
    lower, upper = interval
    (a, b, c), error = minimax_quintic(lower, upper)
    x = np.linspace(lower, upper, 200001)
    deviation = a * x + b * x**3 + c * x**5 - 1.0
    assert np.abs(deviation).max() == pytest.approx(error, rel=1e-6)
    at_extreme = np.abs(deviation) > error * (1 - 1e-4)
    signs = np.sign(deviation[at_extreme])
    # By Chebyshev's theorem, three coefficients cannot do better.
    assert np.count_nonzero(np.diff(signs)) == 3
