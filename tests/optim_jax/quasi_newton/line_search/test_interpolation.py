import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.line_search import armijo_interpolated
from optim_jax.quasi_newton.line_search.backtracking import Sample
from optim_jax.quasi_newton.line_search.interpolation import (
    cubic_minimiser,
    hermite_minimiser,
    quadratic_minimiser,
)
from tests.optim_jax.quasi_newton.line_search.lines import find


def cubic(a, b, c, d):
    """The polynomial a t^3 + b t^2 + c t + d and its derivative."""
    return np.poly1d([a, b, c, d]), np.poly1d([3 * a, 2 * b, c])


def sample(function, t):
    return Sample(jnp.asarray(t), jnp.asarray(function(t)))


def test_quadratic_minimiser_of_a_parabola(x64):
    function, _ = cubic(0.0, 7.0, -3.0, 2.0)
    for t in (0.01, 1.0, 5.0):
        found = quadratic_minimiser(2.0, -3.0, sample(function, t))
        assert found == pytest.approx(3.0 / 14.0, rel=1e-12)


@pytest.mark.parametrize("a", [1.0, 0.0, 1e-9, -0.5])
@pytest.mark.parametrize("b", [4.0, 7.0])
def test_cubic_minimiser_of_a_cubic(a, b, x64):
    function, derivative = cubic(a, b, -3.0, 2.0)
    found = cubic_minimiser(
        jnp.asarray(2.0), jnp.asarray(-3.0), sample(function, 0.7), sample(function, 2)
    )
    # The smaller root of a concave cubic is its minimiser.
    assert derivative(float(found)) == pytest.approx(0.0, abs=1e-8)
    assert derivative.deriv()(float(found)) > 0.0 and found > 0.0


@pytest.mark.parametrize(("a", "b"), [(-1.0, 1.0), (-1.0, -4.0), (-1e-3, -1.0)])
def test_no_minimiser_beyond_zero(a, b, x64):
    function, _ = cubic(a, b, -3.0, 2.0)
    found = cubic_minimiser(
        jnp.asarray(2.0), jnp.asarray(-3.0), sample(function, 0.7), sample(function, 2)
    )
    assert jnp.isnan(found)


@pytest.mark.parametrize("ends", [(0.0, 2.0), (0.4, 0.45), (-1.0, 3.0)])
@pytest.mark.parametrize("a", [1.0, 0.3, -0.1])
def test_hermite_minimiser_of_a_cubic(ends, a, x64):
    function, derivative = cubic(a, 2.0, -3.0, 2.0)
    low, high = ends
    found = hermite_minimiser(
        sample(function, low), derivative(low), sample(function, high), derivative(high)
    )
    roots = np.roots(derivative)
    expected = roots[derivative.deriv()(roots) > 0.0]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_hermite_without_a_minimiser_is_nan(x64):
    function, derivative = cubic(-1.0, 0.0, -3.0, 2.0)
    found = hermite_minimiser(
        sample(function, 0.0), derivative(0.0), sample(function, 1.0), derivative(1.0)
    )
    assert jnp.isnan(found)


def test_a_parabola_needs_three_trials(x64):
    # One halving, then the minimiser of the parabola itself.
    result, tried = find(
        armijo_interpolated, lambda t: 50.0 * t**2 - t, with_slope=False
    )
    np.testing.assert_allclose(tried, [1.0, 0.5, 0.01], rtol=1e-12)
    assert result.accepted
    assert result.trial.value == pytest.approx(-0.005, rel=1e-10)


def test_the_second_new_step_is_that_of_a_quadratic_the_third_of_a_cubic(x64):
    def function(t):
        return 400.0 * t**3 - t

    result, tried = find(armijo_interpolated, function)
    # The quadratic at 1/2 rises by 400 / 8, its minimiser is below that of the cubic.
    np.testing.assert_allclose(tried, [1.0, 0.5, 0.0025], rtol=1e-12)
    assert result.accepted

    # Here the quadratic's step, cut to a thousandth, is still too long.
    def steeper(t):
        return 2e7 * t**3 + 40.0 * t**2 - t

    result, tried = find(armijo_interpolated, steeper)
    quadratic = 0.25 / (2.0 * (2e7 / 8.0 + 10.0))
    np.testing.assert_allclose(tried[:2], [1.0, 0.5])
    assert quadratic < 5e-4 and tried[2] == pytest.approx(5e-4, rel=1e-12)
    root = (-40.0 + np.sqrt(1600.0 + 6e7)) / 6e7
    assert tried[3] == pytest.approx(root, rel=1e-6) and len(tried) == 4
    assert result.accepted


def test_short_minimisers_are_cut(x64):
    # The minimiser, 1e-5, is less than a thousandth of 1/2.
    result, tried = find(armijo_interpolated, lambda t: 5e4 * t**2 - t)
    np.testing.assert_allclose(tried, [1.0, 0.5, 5e-4, 1e-5], rtol=1e-8)
    assert result.accepted


def test_long_minimisers_are_cut(x64):
    # For c1 = 0.4 the quadratic through (t, -0.35 t) has its minimum at t / 1.3.
    def function(t):
        return jnp.where(t > 0.2, -0.35 * t, -t)

    result, tried = find(armijo_interpolated, function, c1=0.4)
    np.testing.assert_allclose(tried[:3], [1.0, 0.5, 0.3], rtol=1e-12)
    assert result.accepted


def test_values_that_are_not_finite_halve_the_step(x64):
    def function(t):
        return jnp.where(t > 0.1, jnp.where(t > 0.3, jnp.inf, jnp.nan), 50.0 * t**2 - t)

    result, tried = find(armijo_interpolated, function)
    # 0.0625 is the first finite value, and no cubic goes through an infinite one.
    expected = [1.0, 0.5, 0.25, 0.125, 0.0625, 0.01]
    np.testing.assert_allclose(tried, expected, rtol=1e-12)
    assert result.accepted


def test_steps_shrink_within_their_bounds(x64):
    rng = np.random.default_rng(0)
    for _ in range(3):
        heights = jnp.asarray(np.append(0.0, rng.exponential(size=400)))

        def rough(t, heights=heights):
            return heights[jnp.ceil(400.0 * t).astype(int)] - 1e-9 * t

        result, tried = find(armijo_interpolated, rough)
        ratios = np.divide(tried[1:], tried[:-1])
        assert len(tried) > 3 and float(result.step) == tried[-1]
        assert np.all(ratios >= 1e-3 * (1 - 1e-12)) and np.all(ratios <= 0.6 + 1e-12)


def test_at_most_ten_trials_by_default():
    result, tried = find(armijo_interpolated, lambda t: jnp.where(t > 0.0, t, -t))
    assert len(tried) == 10 and not result.accepted
    assert float(result.step) == tried[-1]


def test_in_single_precision():
    result, tried = find(armijo_interpolated, lambda t: jnp.expm1(8.0 * t) - 9.0 * t)
    assert result.accepted and result.trial.value < 0.0
    assert result.step.dtype == jnp.float32
    assert len(jax.tree.leaves(result)) == 6
