import math

import numpy as np
import pytest

from experiments.reproduce.batch_savings import (
    Curves,
    best_loss,
    keeps_loss,
    saving,
    share_of_saving,
)

# Two seeds, checked four times; the second seed's lowest loss is not its last.
SMALL = Curves(
    np.array([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 1.2, 1.4]]),
    np.array([[10.0, 20.0, 30.0, 40.0]] * 2),
)


def test_the_target_is_the_mean_of_the_lowest_losses():
    assert best_loss(SMALL) == (pytest.approx(1.1), 35.0)


def test_a_rule_in_closed_form():
    curves = Curves(
        np.array([[4.0, 2.0, 1.0, 0.9], [4.0, 3.0, 1.5, 1.3]]),
        np.array([[10.0, 15.0, 18.0, 20.0], [10.0, 14.0, 15.0, 16.0]]),
    )
    result = saving(curves, SMALL)
    assert result.final.mean == pytest.approx(1.1)
    assert result.difference.mean == pytest.approx(-0.1)
    assert result.difference.standard_error == pytest.approx(0.0, abs=1e-12)
    assert result.steps == (18.0, 2.0, 2)
    assert result.saved.mean == pytest.approx(0.55)
    assert result.saved.standard_error == pytest.approx(0.05)
    # Target 1.1: seed 1 is there at its third check, seed 2 never.
    assert result.steps_to_target == (18.0, math.inf) and result.reached == 1
    # The mean curve is 4, 2.5, 1.25, 1.1 at 10, 14.5, 16.5, 18 steps.
    assert result.steps_of_mean == 18.0
    assert result.saved_to_target == pytest.approx(1 - 18 / 35)


def test_a_rule_that_never_gets_there_saves_minus_infinity_to_the_target():
    result = saving(SMALL._replace(losses=SMALL.losses + 1.0), SMALL)
    assert result.steps_of_mean == math.inf and result.saved_to_target == -math.inf
    assert result.saved.mean == 0.0 and result.difference.mean == pytest.approx(1.0)


def test_a_diverged_seed_is_a_result_not_a_gap():
    losses, steps = SMALL.losses.copy(), SMALL.steps.copy()
    losses[1, 2:], steps[1, 2:] = math.inf, math.nan
    result = saving(Curves(losses, steps), SMALL)
    assert result.final.mean == math.inf and math.isnan(result.saved.mean)
    assert result.steps_to_target == (40.0, math.inf)
    assert not keeps_loss(Curves(losses, steps), SMALL)


def test_the_loss_is_kept_within_one_standard_error_of_the_small_batch():
    # Final losses 1.0 and 1.4: mean 1.2, standard error 0.2.
    def shifted(by):
        return SMALL._replace(losses=SMALL.losses + by)

    assert keeps_loss(shifted(0.19), SMALL) and keeps_loss(shifted(-1.0), SMALL)
    assert not keeps_loss(shifted(0.21), SMALL)
    one = Curves(SMALL.losses[:1], SMALL.steps[:1])
    assert not keeps_loss(one, one)  # a single seed shows nothing


def test_the_share_of_a_saving():
    half = saving(SMALL._replace(steps=SMALL.steps / 2), SMALL)
    quarter = saving(SMALL._replace(steps=SMALL.steps / 4), SMALL)
    assert share_of_saving(half, quarter) == pytest.approx(0.5 / 0.75)
    assert math.isnan(share_of_saving(half, saving(SMALL, SMALL)))
