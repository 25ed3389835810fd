import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.line_search import Trial, armijo, fixed
from tests.optim_jax.quasi_newton.line_search.lines import at_zero, find


def parabola(curvature):
    """Slope -1 at 0; keeps the Armijo condition up to 2 (1 - c1) / curvature."""
    return lambda t: 0.5 * curvature * t**2 - t


@pytest.mark.parametrize("curvature", [0.5, 3.0, 70.0, 1e4])
@pytest.mark.parametrize(("c1", "factor"), [(1e-4, 0.5), (0.3, 0.8)])
def test_the_first_step_below_the_bound_of_a_parabola(curvature, c1, factor, x64):
    bound = 2.0 * (1.0 - c1) / curvature
    result, tried = find(
        armijo,
        parabola(curvature),
        with_slope=False,
        c1=c1,
        factor=factor,
        max_trials=100,
    )
    halvings = max(0, int(np.ceil(np.log(bound) / np.log(factor))))
    np.testing.assert_allclose(tried, factor ** np.arange(halvings + 1.0), rtol=1e-14)
    assert result.accepted and result.step == tried[-1] <= bound
    assert result.trial.aux["step"] == result.step
    expected = parabola(curvature)(float(result.step))
    assert result.trial.value == pytest.approx(expected, rel=1e-14)
    assert result.trials.dtype == jnp.int32


def test_the_condition_counts_the_step(x64):
    # c1 close to 1 asks for nearly the decrease of the tangent.
    result, _ = find(armijo, parabola(1.0), c1=0.9)
    assert result.step == 0.125


def test_values_beyond_a_barrier_are_rejected(x64):
    # NaN beyond 1/3.
    result, tried = find(armijo, lambda t: -jnp.log(1.0 - 3.0 * t) - 5.0 * t)
    assert tried == [1.0, 0.5, 0.25, 0.125] and result.accepted
    assert result.trial.value == pytest.approx(-np.log(0.625) - 0.625, rel=1e-15)


@pytest.mark.parametrize("beyond", [np.inf, -np.inf, np.nan])
def test_no_infinite_value_is_a_decrease(beyond):
    result, tried = find(armijo, lambda t: jnp.where(t > 0.3, beyond, -t))
    assert tried == [1.0, 0.5, 0.25] and result.accepted


def test_trials_run_out():
    start = Trial(jnp.float32(0.0), -1.0, jnp.int32(7))

    def evaluate(step):
        return Trial(step, jnp.nan, jnp.int32(8))

    result = armijo(evaluate, start, -1.0, 1.0, max_trials=4)
    assert not result.accepted and result.trials == 4
    assert result.step == result.trial.value == 0.125
    assert result.trial.aux == 8


def test_too_short_steps_are_not_tried():
    result, tried = find(lambda *args: armijo(*args, min_step=0.2), jnp.abs, 1.0)
    assert tried == [] and not result.accepted  # |t| has slope 0 at 0

    def up(t):
        return jnp.where(t > 0.0, t, -t)

    result, tried = find(lambda *args: armijo(*args, min_step=0.2), up)
    assert tried == [1.0, 0.5, 0.25] and not result.accepted
    # The first step is tried however short it is.
    result, tried = find(lambda *args: armijo(*args, min_step=0.2), up, 0.1)
    assert tried == [pytest.approx(0.1)] and result.step == jnp.float32(0.1)


def test_default_limits_of_the_solver():
    _, tried = find(armijo, lambda t: jnp.where(t > 0.0, t, -t))
    assert tried[-1] == 2.0**-26 and 2.0**-27 < 1e-8
    _, tried = find(armijo, lambda t: jnp.where(t > 0.0, t, -t), 1e3)
    assert len(tried) == 30


@pytest.mark.parametrize("init_step", [np.nan, 0.0, -1.0, np.inf])
def test_nothing_is_tried_without_a_usable_step(init_step):
    result, tried = find(armijo, parabola(1.0), init_step)
    assert tried == [] and not result.accepted and result.step == 0.0
    assert result.trial.value == 0.0 and result.trial.slope == -1.0


def test_nothing_is_tried_along_an_ascent_direction():
    for function in (jnp.exp, lambda t: jnp.nan * t, lambda t: jnp.inf + t):
        result, tried = find(armijo, function)
        assert tried == [] and not result.accepted and result.trials == 0


def test_rounding_in_float32_does_not_fail_the_search():
    # The decrease, 1e-9, is far below the spacing of numbers near 1.
    noise = 1e-7

    def value(t):
        return 1.0 - 1e-9 * t + noise * jnp.sin(1e4 * t)

    start = Trial(jnp.float32(1.0), jnp.nan)
    result = armijo(lambda t: Trial(value(t), jnp.nan), start, -1e-9, 1.0)
    assert result.accepted and result.trials == 1


def test_half_precision_values():
    result, _ = find(armijo, parabola(5.0), dtype="bfloat16")
    assert result.step.dtype == jnp.float32 and result.step == 0.25
    assert result.trial.value.dtype == jnp.bfloat16


@pytest.mark.parametrize("value", [5.0, -5.0, np.nan, np.inf, -np.inf])
def test_fixed_takes_any_finite_value(value):
    result, tried = find(fixed, lambda t: jnp.where(t > 0.0, value, -t), 0.3)
    assert tried == [pytest.approx(0.3)]
    assert bool(result.accepted) == np.isfinite(value)
    assert result.step == jnp.float32(0.3) and result.trials == 1


def test_fixed_refuses_a_step_that_is_not_finite():
    result, _ = find(fixed, lambda t: jnp.where(t > 0.0, 1.0, -t), np.inf)
    assert result.trial.value == 1.0 and not result.accepted


def test_traced_options():
    start = at_zero(parabola(70.0))

    @jax.jit
    def run(c1, factor, max_trials):
        return armijo(
            lambda t: Trial(parabola(70.0)(t), jnp.nan, {"step": t}),
            start,
            start.slope,
            1.0,
            c1=c1,
            factor=factor,
            max_trials=max_trials,
        )

    assert run(1e-4, 0.5, 30).step == 2.0**-6
    assert run(1e-4, 0.1, 30).step == pytest.approx(0.01)
    assert not run(1e-4, 0.5, 3).accepted
