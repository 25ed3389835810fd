import math

import pytest

from experiments.reproduce.tuning import Trial, cheapest_trial

A, B, C, D = (Trial("adaptive", variant, 0.01) for variant in range(4))
STEPS = {A: 100.0, B: 200.0, C: 300.0, D: 400.0}


def test_the_fewest_steps_among_losses_that_are_good_enough():
    losses = {A: 2.2, B: 2.009, C: 1.99, D: 2.0}
    assert cheapest_trial(losses, STEPS, 2.01) == B
    assert cheapest_trial(losses, STEPS, 2.0) == C
    assert cheapest_trial(losses, STEPS, 3.0) == A


def test_the_lowest_loss_where_none_is_good_enough():
    assert cheapest_trial({A: 2.2, B: 2.1, C: 2.3, D: 2.4}, STEPS, 2.0) == B


def test_equal_steps_are_decided_by_the_loss():
    steps = dict.fromkeys(STEPS, 100.0)
    assert cheapest_trial({A: 1.9, B: 1.8, C: 1.85, D: 1.95}, steps, 2.0) == B


@pytest.mark.parametrize("limit", [math.inf, math.nan])
def test_without_a_finite_limit_nothing_is_good_enough(limit):
    losses = {A: 2.2, B: 2.1, C: math.inf, D: math.nan}
    assert cheapest_trial(losses, STEPS, limit) == B


def test_a_diverged_trial_is_never_chosen_for_its_few_steps():
    steps = STEPS | {A: math.nan}
    assert cheapest_trial({A: math.inf, B: 2.0, C: 2.0, D: 2.0}, steps, 2.1) == B
