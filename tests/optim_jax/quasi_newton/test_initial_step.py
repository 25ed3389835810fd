import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.initial_step import (
    FIRST_STEPS,
    INIT_STEPS,
    first_step_scale,
    initial_step,
)
from tests.optim_jax.quasi_newton.golden_sample import read_golden_sample

FACTS = {
    "gradient_variance": 6.0,
    "gradient_square": 0.5,
    "variance": 3.0,
    "r": 0.25,
    "batch_size": 16,
    "previous": 0.4,
}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("variance", 1 / (1 + 6 / (16 * 0.5))),
        ("variance_unbiased", 1 - 6 / (16 * 0.5)),
        ("unit", 1.0),
        ("previous", 0.4),
        ("projected", 1 / (1 + 3 / (16 * 0.25**2))),
    ],
)
def test_rules_in_closed_form(x64, rule, expected):
    assert float(initial_step(rule, **FACTS)) == pytest.approx(expected, rel=1e-15)


def test_the_cases_above_are_all_rules():
    assert INIT_STEPS == (
        "variance",
        "variance_unbiased",
        "unit",
        "previous",
        "projected",
    )
    assert FIRST_STEPS == ("unit", "capped", "normalized")


def test_golden_step(x64):
    numbers = read_golden_sample().numbers
    facts = FACTS | {
        "gradient_variance": numbers["var_norm"],
        "gradient_square": numbers["g"] @ numbers["g"],
        "batch_size": 24,
    }
    alpha = initial_step("variance", **facts)
    assert float(alpha) == pytest.approx(float(numbers["alpha0"]), rel=1e-14)


def test_the_unbiased_rule_is_the_rule_without_the_noise_of_the_square(x64):
    # |g|^2 contains Var / b; without it the plain rule gives the other one.
    clean = FACTS | {"gradient_square": 0.5 - 6 / 16}
    assert float(initial_step("variance_unbiased", **FACTS)) == pytest.approx(
        float(initial_step("variance", **clean)), rel=1e-14
    )


def test_in_noise_the_plain_rule_stops_at_one_half_and_the_unbiased_at_the_least():
    noise = FACTS | {"gradient_variance": 8.0}
    assert initial_step("variance", **noise) == 0.5
    assert initial_step("variance_unbiased", **noise) == np.float32(1e-3)
    assert initial_step("variance_unbiased", **noise, min_step=0.1) == np.float32(0.1)


@pytest.mark.parametrize("rule", ["variance", "variance_unbiased", "projected"])
def test_without_noise_the_step_is_one(rule):
    for square in (0.5, 0.0):
        facts = FACTS | {
            "gradient_variance": 0.0,
            "variance": 0.0,
            "gradient_square": square,
            "r": square,
        }
        assert initial_step(rule, **facts) == 1.0


def test_noise_without_a_gradient_gives_the_least_step():
    facts = FACTS | {"gradient_square": 0.0}
    assert initial_step("variance", **facts) == 0.0
    assert initial_step("variance_unbiased", **facts) == np.float32(1e-3)


def test_a_rule_needs_its_own_arguments_only():
    nothing = dict.fromkeys(FACTS)
    size = {"batch_size": 16}
    assert initial_step("unit", **nothing) == 1.0
    assert initial_step("previous", **nothing | {"previous": 0.25}) == 0.25
    own = size | {"variance": 3.0, "r": 0.25}
    assert initial_step("projected", **nothing | own) == 0.25
    own = size | {"gradient_variance": 8.0, "gradient_square": 0.5}
    assert initial_step("variance", **nothing | own) == 0.5


def test_squares_below_the_range_of_float32():
    facts = FACTS | {"variance": jnp.float32(3e-36), "r": jnp.float32(1e-20)}
    expected = 1 / (1 + 3e-36 / (16 * 1e-40))
    assert float(initial_step("projected", **facts)) == pytest.approx(
        expected, rel=1e-4
    )


def test_one_program_for_all_sizes():
    step = jax.jit(
        lambda size: initial_step("variance", **FACTS | {"batch_size": size})
    )
    assert float(step(16)) == pytest.approx(1 / 1.75)
    assert float(step(48)) == pytest.approx(1 / 1.25)
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("unit", (1.0, 1.0, 1.0)),
        ("capped", (0.25, 1.0, 1.0)),
        ("normalized", (0.25, 10.0, 1.0)),
    ],
)
def test_scale_of_a_step_without_a_memory(rule, expected):
    found = [float(first_step_scale(rule, square)) for square in (16.0, 0.01, 0.0)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert all(math.isfinite(factor) for factor in found)


def test_unknown_rules_are_refused():
    with pytest.raises(ValueError, match="init_step must be one of .*, got 'one'"):
        initial_step("one", **FACTS)
    with pytest.raises(ValueError, match="first_step must be one of .*, got 'one'"):
        first_step_scale("one", 1.0)
