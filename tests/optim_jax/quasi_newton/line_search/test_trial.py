import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.line_search import Trial, armijo, check_search_options
from optim_jax.quasi_newton.line_search.trial import (
    decrease_slack,
    decreases,
    evaluate_on,
    prepare,
)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("value", [0.0, -2.5, 96.0])
def test_slack_is_two_roundings_of_the_value(dtype, value):
    slack = decrease_slack(jnp.asarray(value, dtype))
    assert slack.dtype == dtype
    assert float(slack) == 2 * float(jnp.finfo(dtype).eps) * abs(value)


def test_slack_in_double_precision_is_absolute(x64):
    assert float(decrease_slack(jnp.asarray(1e6, "float64"))) == 1e-16


def test_float32_noise_is_no_increase():
    # Two roundings above the start pass although the slope asks for a decrease; four
    # do not.
    ray = prepare(Trial(jnp.float32(3.0), -1e-9), -1e-9, 1.0, 1e-4)
    eps = np.finfo(np.float32).eps
    for roundings, expected in ((0, True), (2, True), (4, False)):
        value = jnp.float32(3.0) * (1 + roundings * eps)
        assert bool(decreases(ray, jnp.float32(1.0), value)) is expected


def test_float64_slack_decides(x64):
    ray = prepare(Trial(jnp.float64(0.0), -1e-30), -1e-30, 1.0, 1e-4)
    for value, expected in ((0.99e-16, True), (1.01e-16, False)):
        assert bool(decreases(ray, jnp.float64(1.0), jnp.float64(value))) is expected


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_value_that_is_not_finite_is_no_decrease(value):
    ray = prepare(Trial(jnp.float32(0.0), -1.0), -1.0, 1.0, 1e-4)
    assert not decreases(ray, jnp.float32(1.0), jnp.float32(value))


@pytest.mark.parametrize(
    ("value", "slope", "init_step", "usable"),
    [
        (1.0, -1.0, 1.0, True),
        (1.0, 0.0, 1.0, False),
        (1.0, 1.0, 1.0, False),
        (1.0, np.nan, 1.0, False),
        (1.0, -np.inf, 1.0, False),
        (np.nan, -1.0, 1.0, False),
        (np.inf, -1.0, 1.0, False),
        (1.0, -1.0, 0.0, False),
        (1.0, -1.0, -1.0, False),
        (1.0, -1.0, np.nan, False),
        (1.0, -1.0, np.inf, False),
    ],
)
def test_what_can_be_searched(value, slope, init_step, usable):
    ray = prepare(Trial(jnp.float32(value), jnp.nan), slope, init_step, 1e-4)
    assert bool(ray.usable) is usable


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_steps_are_at_least_float32(dtype, x64):
    ray = prepare(Trial(jnp.asarray(1.0, dtype), jnp.nan), -1.0, 1, 1e-4)
    wide = "float64" if dtype == "float64" else "float32"
    assert ray.start.value.dtype == dtype
    assert {x.dtype for x in (ray.slope, ray.first_step, ray.limit, ray.rate)} == {
        jnp.dtype(wide)
    }
    trial = evaluate_on(ray, lambda step: Trial(0.0, 0.0), ray.first_step)
    assert trial.value.dtype == dtype and trial.slope.dtype == wide
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(trial))


def test_aux_of_another_structure_is_an_error():
    start = Trial(jnp.float32(0.0), -1.0, {"gradient": jnp.ones(2)})
    with pytest.raises(ValueError, match="structure of start.aux.*gradient.*got"):
        armijo(lambda step: Trial(step, -1.0, (step,)), start, -1.0, 1.0)


@pytest.mark.parametrize("value", [jnp.ones(3), jnp.ones((1,)), jnp.int32(1)])
def test_a_value_that_is_no_real_scalar_is_an_error(value):
    with pytest.raises(ValueError, match=r"start\.value must be a real .*scalar, got"):
        armijo(lambda step: Trial(step, -1.0), Trial(value, -1.0), -1.0, 1.0)
    with pytest.raises(ValueError, match="the value of a trial must be a real"):
        start = Trial(jnp.float32(0.0), -1.0)
        armijo(lambda step: Trial(value, -1.0), start, -1.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c1": 0.0}, r"c1 must be in \(0, 1\), got 0.0"),
        ({"c1": 1.0}, r"c1 must be in \(0, 1\), got 1.0"),
        ({"c1": float("nan")}, r"c1 must be in \(0, 1\), got nan"),
        ({"c1": 0.5, "c2": 0.5}, r"c2 must be in \(c1, 1\) = \(0.5, 1\), got 0.5"),
        ({"c2": 1.0}, r"c2 must be in \(c1, 1\) = \(0.0001, 1\), got 1.0"),
        ({"c2": 1e-5}, r"c2 must be in \(c1, 1\) = \(0.0001, 1\), got 1e-05"),
        ({"factor": 0.0}, r"factor must be in \(0, 1\), got 0.0"),
        ({"factor": 1.0}, r"factor must be in \(0, 1\), got 1.0"),
        ({"max_trials": 0}, "max_trials must be an integer >= 1, got 0.0"),
        ({"max_trials": 2.5}, "max_trials must be an integer >= 1, got 2.5"),
        ({"min_step": -1.0}, "min_step must be finite and >= 0, got -1.0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        check_search_options(**options)


def test_traced_options_are_not_checked():
    @jax.jit
    def check(c1, c2):
        check_search_options(c1=c1, c2=c2, factor=c1)
        return c1

    assert check(2.0, 3.0) == 2.0
