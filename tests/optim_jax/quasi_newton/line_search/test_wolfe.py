import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.line_search import Trial, armijo, weak_wolfe
from tests.optim_jax.quasi_newton.line_search.lines import find

C1, C2 = 1e-4, 0.9
HARD = {
    "kink": lambda t: jnp.abs(t - 0.37) - 0.37,
    "kinks": lambda t: jnp.abs(t - 0.3) + 4.0 * jnp.abs(t - 0.31) - 2.0 * t,
    "steep": lambda t: jnp.expm1(40.0 * (t - 0.05)) - 7.0 * t,
    "barrier": lambda t: -2.0 * t - 0.01 * jnp.log(1.0 - 30.0 * t),
    "far": lambda t: 1e-4 * (t - 900.0) ** 2,
    "many minima": lambda t: jnp.cos(9.0 * t) - 1.0 - 0.5 * t + 0.01 * t**2,
    "flat, then steep": lambda t: -1e-3 * t + jnp.maximum(t - 5.0, 0.0) ** 3,
    "long valley": lambda t: -jnp.tanh(t) * (1.0 + 1e-3 * t),
}


def bracketing(function, interpolate=False, init_step=1.0, max_trials=25):
    """The steps of the search, written out; checks the bracket on the way."""
    both = jax.value_and_grad(function)
    value, slope = map(float, both(0.0))
    low, high, step, tried = 0.0, np.inf, init_step, []
    ends = {0.0: (value, slope)}
    while len(tried) < max_trials:
        tried.append(step)
        assert low < step < high
        ends[step] = trial, tangent = tuple(map(float, both(step)))
        falls = np.isfinite(trial) and trial <= value + C1 * step * slope + 1e-16
        if not falls:
            high = step
        elif tangent < C2 * slope:
            low = step
        else:
            return tried
        if np.isinf(high):
            step = 2.0 * step
            continue
        step = 0.5 * (low + high)
        if interpolate:
            # The minimiser of the interpolating cubic, by its coefficients.
            (f, df), (g, dg), width = ends[low], ends[high], high - low
            b = (3 * (g - f) / width - 2 * df - dg) / width
            a = (dg + df - 2 * (g - f) / width) / width**2
            with np.errstate(invalid="ignore"):
                found = low + (-b + np.sqrt(b * b - 3 * a * df)) / (3 * a)
            if np.isfinite(found):
                step = np.clip(found, low + 0.2 * width, high - 0.2 * width)
    return tried


@pytest.mark.parametrize("name", HARD)
def test_bracket_on_hard_functions(name, x64):
    function = HARD[name]
    result, tried = find(weak_wolfe, function)
    np.testing.assert_allclose(tried, bracketing(function), rtol=1e-14)
    value, slope = jax.value_and_grad(function)(0.0)
    step = float(result.step)
    assert result.accepted and step == tried[-1] == result.trial.aux["step"]
    assert result.trial.value <= value + C1 * step * slope
    assert result.trial.slope >= C2 * slope


@pytest.mark.parametrize("name", HARD)
def test_interpolated_bracket_on_hard_functions(name, x64):
    function = HARD[name]
    search = functools.partial(weak_wolfe, interpolate=True)
    result, tried = find(search, function)
    np.testing.assert_allclose(tried, bracketing(function, True), rtol=1e-6)
    value, slope = jax.value_and_grad(function)(0.0)
    assert result.accepted
    assert result.trial.value <= value + C1 * result.step * slope
    assert result.trial.slope >= C2 * slope


def test_interpolation_finds_the_minimum_of_a_cubic(x64):
    # [0, 1] is the first bracket; its cubic is the function itself.
    def function(t):
        return 2.0 * t**3 + t**2 - t

    search = functools.partial(weak_wolfe, interpolate=True)
    _, tried = find(search, function, c1=0.1, c2=0.2)
    np.testing.assert_allclose(tried, [1.0, (-2.0 + np.sqrt(28.0)) / 12.0], rtol=1e-12)


def test_it_doubles_while_nothing_bounds_the_step(x64):
    result, tried = find(weak_wolfe, lambda t: -t + jnp.maximum(t - 100.0, 0.0) ** 2)
    assert tried[:8] == [2.0**n for n in range(8)]
    assert result.accepted and 100.0 < result.step < 128.0


def test_without_enough_trials_the_best_known_decrease_is_taken(x64):
    # Unbounded below: every trial decreases, none is flat enough.
    result, tried = find(weak_wolfe, lambda t: -t, max_trials=4)
    assert tried == [1.0, 2.0, 4.0, 8.0]
    assert result.accepted and result.step == 8.0 and result.trial.value == -8.0
    # The last trial is too long, the one before it is the low end of the bracket.
    result, tried = find(weak_wolfe, lambda t: jnp.where(t > 3, 1.0, -t), max_trials=3)
    assert tried == [1.0, 2.0, 4.0]
    assert result.accepted and result.step == 2.0 == result.trial.aux["step"]
    assert result.trials == 3 and result.trial.slope == -1.0


@pytest.mark.parametrize("beyond", [np.inf, -np.inf, np.nan])
def test_the_edge_of_the_domain_bounds_the_bracket(beyond, x64):
    # No trial keeps the curvature condition: the bracket closes in on the edge.
    result, tried = find(weak_wolfe, lambda t: jnp.where(t > 0.02, beyond, -t))
    assert len(tried) == 25 and result.accepted
    assert 0.0 <= 0.02 - float(result.step) < 2.0**-23


def test_without_any_decrease_it_fails(x64):
    result, tried = find(weak_wolfe, lambda t: jnp.where(t > 0.0, t, -t))
    assert len(tried) == 25 and not result.accepted
    assert result.step == tried[-1] == result.trial.value


def test_a_slope_that_is_not_finite_is_rejected(x64):
    # d sqrt is infinite at 0: where(…) hands on NaN for its derivative.
    def evaluate(step):
        return Trial(-step, jnp.where(step > 0.3, jnp.nan, -0.5), step)

    result = weak_wolfe(evaluate, Trial(0.0, -1.0, 0.0), -1.0, 1.0)
    assert result.accepted and result.step == 0.25 and result.trials == 3


@pytest.mark.parametrize("init_step", [np.nan, 0.0, -1.0])
def test_nothing_is_tried_without_a_usable_step(init_step):
    result, tried = find(weak_wolfe, lambda t: -t, init_step)
    assert tried == [] and not result.accepted and result.step == 0.0


def test_rounding_in_float32_does_not_fail_the_search():
    def evaluate(t):
        return Trial(1.0 - 1e-9 * t + 1e-7 * jnp.sin(1e4 * t), -1e-10)

    start = Trial(jnp.float32(1.0), jnp.nan)
    result = weak_wolfe(evaluate, start, -1e-9, 1.0)
    assert result.accepted and result.trials == 1


def test_bad_constants_are_refused():
    start = Trial(jnp.float32(0.0), -1.0)
    with pytest.raises(ValueError, match=r"c2 must be in \(c1, 1\) = \(0.5, 1\)"):
        weak_wolfe(lambda t: start, start, -1.0, 1.0, c1=0.5, c2=0.4)


def rosenbrock(x):
    return 100.0 * (x[1] - x[0] ** 2) ** 2 + (1.0 - x[0]) ** 2


@pytest.mark.parametrize(
    ("name", "search"), [("Wolfe", weak_wolfe), ("Armijo", armijo)]
)
def test_the_original_implementation_on_rosenbrock(name, search, golden_dir, x64):
    """Steps, trials and values of L-BFGS with this search.

    Pairs are kept if s'y > 0.01 s'Bs = -0.01 step s'g; the first step is not scaled.
    """
    path = golden_dir / "pblbfgs" / "author_library_linesearch.json"
    recorded = json.loads(path.read_text())[f"rosenbrock2/{name}"]
    both = jax.value_and_grad(rosenbrock)

    @jax.jit
    def look(x, p, value, slope):
        def evaluate(step):
            value, gradient = both(x + step * p)
            return Trial(value, gradient @ p, gradient)

        start = Trial(value, slope, jnp.zeros(2))
        return search(evaluate, start, slope, 1.0, max_trials=25)

    x, pairs, gamma = np.array([-1.2, 1.0]), [], 1.0
    value, g = map(np.asarray, both(x))
    for k, (expected, expected_step, extra_trials) in enumerate(recorded):
        p = -two_loop(pairs, gamma, g)
        found = look(x, p, value, g @ p)
        assert found.accepted
        assert (float(found.step), int(found.trials) - 1) == (
            expected_step,
            extra_trials,
        ), k
        s, y = found.step * p, np.asarray(found.trial.aux) - g
        if s @ y > 1e-2 * -(found.step * (s @ g)):
            pairs, gamma = [*pairs, (s, y)][-10:], (s @ y) / (y @ y)
        x, value, g = x + s, np.asarray(found.trial.value), g + y
        # The valley amplifies rounding: the recorded values are 4e-9 off those of
        # 80-bit arithmetic by iteration 32, where F is 3e-3, and 3e-8 in the end.
        assert value == pytest.approx(expected, rel=1e-9, abs=0.0 if k < 28 else 1e-10)


def two_loop(pairs, gamma, g):
    """H g by the two-loop recursion; pairs are oldest first."""
    q, factors = np.array(g), []
    for s, y in reversed(pairs):
        factors.append(s @ q / (s @ y))
        q -= factors[-1] * y
    q *= gamma
    for (s, y), factor in zip(pairs, reversed(factors), strict=True):
        q += s * (factor - y @ q / (s @ y))
    return q
