import math

import numpy as np
import pytest

from experiments.reproduce.curves import (
    Estimate,
    compare,
    exceeds_two_errors,
    mean_and_standard_error,
    speed_up,
    steps_to_target,
)

STEPS = (10, 20, 30, 40)


def test_mean_and_standard_error_of_a_hand_made_sample():
    # Deviations -1, 0, 1: sample standard deviation 1, error 1 / sqrt(3).
    estimate = mean_and_standard_error([1.0, 2.0, 3.0])
    assert estimate == Estimate(2.0, pytest.approx(1 / math.sqrt(3)), 3)


def test_one_seed_has_no_error_and_a_diverged_one_is_a_result():
    single = mean_and_standard_error([2.5])
    assert single.mean == 2.5 and math.isnan(single.standard_error)
    diverged = mean_and_standard_error([1.0, math.inf])
    assert diverged.mean == math.inf and math.isnan(diverged.standard_error)
    with pytest.raises(ValueError, match="at least one number"):
        mean_and_standard_error([])


@pytest.mark.parametrize(
    ("losses", "target", "expected"),
    [
        ((4.0, 3.0, 2.0, 1.0), 2.0, 30.0),  # at the target counts
        ((4.0, 3.0, 2.0, 1.0), 2.5, 30.0),  # no interpolation between checks
        ((4.0, 1.0, 2.0, 3.0), 1.5, 20.0),  # the first time, not the last
        ((4.0, 3.0, 2.0, 1.0), 0.5, math.inf),
        ((math.nan, math.nan, 2.0, math.inf), 2.0, 30.0),
    ],
)
def test_steps_to_target(losses, target, expected):
    assert steps_to_target(STEPS, losses, target) == expected


def test_curves_of_another_length_are_refused():
    with pytest.raises(ValueError, match="same length, got 4 and 2"):
        steps_to_target(STEPS, (1.0, 2.0), 1.0)


def test_comparison_of_two_hand_made_arms():
    baseline = np.array([[8.0, 6.0, 4.0, 2.0], [8.0, 6.0, 4.0, 4.0]])
    losses = np.array([[8.0, 3.0, 2.0, 1.0], [9.0, 5.0, 3.0, 2.0]])
    result = compare(STEPS, losses, baseline, 40)
    assert result.target == 3.0
    assert result.final.mean == 1.5 and result.ratio == 0.5
    # Paired: 1 - 2 and 2 - 4.
    assert result.difference.mean == -1.5
    assert result.difference.standard_error == pytest.approx(0.5)
    assert result.steps == (20.0, 30.0) and result.reached == 2
    assert result.steps_of_mean == 30.0  # mean curve 8.5, 4, 2.5, 1.5
    assert result.speed_up.mean == pytest.approx((0.5 + 0.25) / 2)


def test_a_seed_that_never_gets_there_claims_nothing():
    baseline = np.array([[4.0, 2.0], [4.0, 2.0]])
    losses = np.array([[1.0, 1.0], [4.0, 3.0]])
    result = compare((1, 2), losses, baseline, 2)
    assert result.reached == 1 and result.speed_up.mean == -math.inf
    assert not exceeds_two_errors(result.speed_up)


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (Estimate(0.21, 0.1, 5), True),
        (Estimate(0.2, 0.1, 5), False),
        (Estimate(-1.0, 0.1, 5), False),
        (Estimate(1.0, math.nan, 1), False),
        (Estimate(math.inf, math.nan, 2), False),
    ],
)
def test_only_more_than_two_errors_counts(estimate, expected):
    assert exceeds_two_errors(estimate) is expected


def test_speed_up_is_the_share_of_the_run_saved():
    assert speed_up(750.0, 1000) == 0.25
    assert speed_up(math.inf, 1000) == -math.inf
