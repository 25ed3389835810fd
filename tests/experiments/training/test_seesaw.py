"""Seesaw against its definition: a halving of the rate becomes a doubled batch."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.training.batch_path import Change
from experiments.training.seesaw import seesaw

COSINE = optax.cosine_decay_schedule(1.0, 300)


def _rate(plan, samples, before=7.0):
    value = plan.rate(jnp.float32(before), jnp.int32(samples))
    return float(value)


def test_the_cosine_halves_where_its_cosine_says():
    plan = seesaw(COSINE, steps=300, size=8, max_size=32)
    # (1 + cos(pi t)) / 2 = 1/2, 1/4 at t = 1/2, 2/3.
    assert plan.path == (Change(0, 8), Change(8 * 150, 16), Change(8 * 200, 32))
    np.testing.assert_allclose(plan.rates[:2], [math.sqrt(0.5), 0.5], rtol=1e-6)


def test_rate_and_batch_stay_between_the_changes():
    plan = seesaw(COSINE, steps=300, size=8, max_size=32)
    assert _rate(plan, 8 * 150 - 1) == 7.0  # still the schedule's
    for samples in (8 * 150, 8 * 170, 8 * 200 - 1):
        assert _rate(plan, samples) == pytest.approx(math.sqrt(0.5))
    assert _rate(plan, 8 * 200) == pytest.approx(0.5)


def test_at_the_cap_the_rate_takes_the_whole_halving():
    plan = seesaw(COSINE, steps=300, size=8, max_size=16)
    assert plan.path == (Change(0, 8), Change(8 * 150, 16))
    assert plan.starts[:2] == (8 * 150, 8 * 200)
    np.testing.assert_allclose(
        plan.rates[:2], [math.sqrt(0.5), math.sqrt(0.5) / 2], rtol=1e-6
    )


def test_a_cap_below_the_double_is_reached_in_part():
    plan = seesaw(COSINE, steps=300, size=8, max_size=24)
    assert plan.path[-1] == Change(8 * 200, 24)
    expected = math.sqrt(0.5) / 2 * math.sqrt(24 / 16)
    np.testing.assert_allclose(plan.rates[1], expected, rtol=1e-6)


def test_square_of_rate_over_batch_follows_the_schedule():
    # What is preserved: rate / sqrt(batch) is the schedule's at every change.
    plan = seesaw(COSINE, steps=300, size=8, max_size=64)
    size_of = dict(plan.path)
    for index, (start, rate) in enumerate(zip(plan.starts, plan.rates, strict=True)):
        if start in size_of:
            halvings = index + 1
            assert rate / math.sqrt(size_of[start] / 8) == pytest.approx(0.5**halvings)


def test_a_warm_up_is_no_halving():
    schedule = optax.join_schedules(
        [optax.linear_schedule(0.01, 1.0, 100), COSINE], [100]
    )
    plan = seesaw(schedule, steps=400, size=8, max_size=64)
    assert plan.path[1] == Change(8 * 250, 16)


def test_a_schedule_that_never_halves_changes_nothing():
    plan = seesaw(optax.constant_schedule(0.3), steps=50, size=8, max_size=64)
    assert plan.path == (Change(0, 8),) and plan.starts == ()
    assert _rate(plan, 100, before=0.3) == pytest.approx(0.3)


def test_a_schedule_that_ends_at_zero_ends():
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    plan = seesaw(schedule, steps=20, size=4, max_size=8)
    assert plan.path == (Change(0, 4), Change(4 * 5, 8))
    assert all(math.isfinite(rate) and rate > 0 for rate in plan.rates)
