import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim_jax.quasi_newton.line_search import Trial, strong_wolfe
from optim_jax.quasi_newton.line_search.zoom import pack, unpack

FUNCTIONS = {
    "parabola": lambda t: 35.0 * t**2 - t,
    "long step": lambda t: 1e-3 * t**2 - t,
    "many minima": lambda t: jnp.cos(9.0 * t) - 1.0 - 0.5 * t + 0.01 * t**2,
    "barrier": lambda t: -2.0 * t - 0.01 * jnp.log(1.0 - 30.0 * t),
    "steep": lambda t: jnp.expm1(40.0 * (t - 0.05)) - 7.0 * t,
    "wavy valley": lambda t: jnp.log1p((t - 3.0) ** 2) - 0.02 * jnp.sin(20.0 * t),
}
HARDER = {
    "cosh": lambda t: jnp.cosh(t - 0.7),
    "NaN beyond": lambda t: jnp.where(t > 0.3, jnp.nan, 10.0 * t**2 - t),
    "inf beyond": lambda t: jnp.where(t > 0.3, jnp.inf, 10.0 * t**2 - t),
    "-inf beyond": lambda t: jnp.where(t > 0.3, -jnp.inf, 10.0 * t**2 - t),
    "slope -1 up to 5": lambda t: jnp.where(t > 5.0, jnp.nan, -t),
    "slope -1": lambda t: -t,
    "jump": lambda t: jnp.where(t > 0.0, 1.0 + t, -t),
    "nowhere": lambda t: jnp.where(t > 0.0, jnp.nan, -t),
    "ascent": jnp.exp,
}
ALL = FUNCTIONS | HARDER
TRIED = []


# One program for all functions: Optax's search takes a second to compile.
@jax.jit
def search(index, init_step, max_trials, c1, c2):
    def function(t):
        return jax.lax.switch(index, list(ALL.values()), t)

    def evaluate(step):
        jax.debug.callback(lambda value: TRIED.append(float(value)), step)
        value, slope = jax.value_and_grad(function)(step)
        # A trial is not to be rejected for its slope.
        return Trial(value, jnp.where(jnp.isnan(value), -1.0, slope), {"step": step})

    value, slope = jax.value_and_grad(function)(0.0 * init_step)
    start = Trial(value, slope, {"step": jnp.zeros_like(init_step)})
    options = {"c1": c1, "c2": c2, "max_trials": max_trials}
    return strong_wolfe(evaluate, start, slope, init_step, **options)


def find(name, init_step=1.0, max_trials=20, c1=1e-4, c2=0.9):
    """The result of a search and the steps it tried, in order."""
    TRIED.clear()
    result = search(list(ALL).index(name), init_step, max_trials, c1, c2)
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert len(TRIED) == result.trials
    return result, list(TRIED)


@jax.jit
def by_optax(index, max_trials):
    """The step of Optax's own search on the function, and its number of trials."""

    def function(t):
        return jax.lax.switch(index, list(ALL.values()), t)

    tx = optax.scale_by_zoom_linesearch(max_trials, initial_guess_strategy="one")
    zero = jnp.zeros(())
    value, slope = jax.value_and_grad(function)(zero)
    updates, state = tx.update(
        jnp.ones(()), tx.init(zero), zero, value=value, grad=slope, value_fn=function
    )
    return updates, state.info.num_linesearch_steps


@pytest.mark.parametrize("max_trials", [3, 20])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_the_search_of_optax(name, max_trials, x64):
    result, _ = find(name, max_trials=max_trials)
    step, trials = by_optax(list(ALL).index(name), max_trials)
    assert int(result.trials) == int(trials)
    np.testing.assert_allclose(result.step, step, rtol=1e-12)
    assert result.trial.aux["step"] == result.step
    value, slope = jax.value_and_grad(FUNCTIONS[name])(0.0)
    if max_trials == 20:
        assert result.accepted
        assert result.trial.value <= value + 1e-4 * result.step * slope
        assert abs(result.trial.slope) <= 0.9 * abs(slope)


def test_constants_reach_the_search(x64):
    # Only near the minimiser is the slope that small.
    result, _ = find("cosh", c1=0.01, c2=0.02)
    assert result.accepted and float(result.step) == pytest.approx(0.7, abs=0.02)
    assert abs(result.trial.slope) <= 0.02 * np.sinh(0.7)
    # On the parabola the decrease suffices up to 2 (1 - c1) / 70.
    assert find("parabola", 0.024)[1] == [0.024]
    result, tried = find("parabola", 0.024, c1=0.4)
    assert len(tried) > 1 and result.accepted and result.step <= 1.2 / 70.0


def test_the_first_step_is_the_one_given(x64):
    _, tried = find("long step", 300.0)
    assert tried == [300.0]


@pytest.mark.parametrize("name", ["NaN beyond", "inf beyond", "-inf beyond"])
def test_values_that_are_not_finite_are_rejected(name, x64):
    result, tried = find(name)
    assert result.accepted and 0.0 < result.step <= 0.3 < tried[0]


def test_a_slope_that_is_not_finite_is_rejected():
    def evaluate(step):
        return Trial(-step, jnp.where(step > 0.3, jnp.nan, -0.5), step)

    result = strong_wolfe(evaluate, Trial(0.0, -1.0, 0.0), -1.0, 1.0)
    assert result.accepted and 0.0 < result.step <= 0.3


def test_aux_that_is_not_finite_is_rejected():
    def evaluate(step):
        aux = {"gradient": jnp.where(step > 0.3, jnp.asarray([1.0, jnp.nan]), 0.0)}
        return Trial(-step, -0.5, aux)

    start = Trial(0.0, -1.0, {"gradient": jnp.full(2, jnp.nan)})
    result = strong_wolfe(evaluate, start, -1.0, 1.0)
    assert result.accepted and 0.0 < result.step <= 0.3
    np.testing.assert_array_equal(result.trial.aux["gradient"], 0.0)


def test_a_decrease_without_a_flat_slope_is_taken_in_the_end(x64):
    result, tried = find("slope -1 up to 5", max_trials=6)
    assert len(tried) == 6 and result.accepted
    assert 4.0 <= result.step <= 5.0 and result.trial.value == -result.step
    # Here no trial bounds the step.
    result, tried = find("slope -1", max_trials=4)
    assert tried == [1.0, 2.0, 4.0, 8.0]
    assert result.accepted and result.step == 8.0


def test_without_any_decrease_it_fails(x64):
    result, tried = find("jump", max_trials=5)
    assert len(tried) == 5 and not result.accepted
    result, tried = find("nowhere", max_trials=5)
    assert len(tried) == 5 and not result.accepted
    assert result.step == 0.0 == result.trial.value == result.trial.aux["step"]


@pytest.mark.parametrize("init_step", [np.nan, 0.0, -1.0])
def test_nothing_is_tried_without_a_usable_step(init_step, x64):
    result, tried = find("parabola", init_step)
    assert tried == [] and not result.accepted and result.step == 0.0
    assert result.trial.value == 0.0 or np.isnan(init_step)


def test_nothing_is_tried_along_an_ascent_direction(x64):
    result, tried = find("ascent")
    assert tried == [] and not result.accepted
    assert result.trial.value == 1.0 == result.trial.slope


def test_evaluate_need_not_be_differentiable(x64):
    # A loop with a traced number of turns has no reverse mode.
    def power(step):
        return jax.lax.fori_loop(0, 2 + step.astype(int), lambda i, x: x * step, 1.0)

    def evaluate(step):
        value = jax.lax.stop_gradient(power(step))
        return Trial(10.0 * value - step, 20.0 * step - 1.0, step)

    result = strong_wolfe(evaluate, Trial(0.0, -1.0, 0.0), -1.0, 1.0)
    assert result.accepted and result.trial.aux == result.step


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_types_follow_the_value(dtype, x64):
    def evaluate(step):
        return Trial((10.0 * step**2 - step).astype(dtype), 20.0 * step - 1.0)

    start = Trial(jnp.zeros((), dtype), -1.0)
    result = strong_wolfe(evaluate, start, -1.0, 1.0)
    wide = "float64" if dtype == "float64" else "float32"
    assert result.trial.value.dtype == dtype
    assert result.step.dtype == result.trial.slope.dtype == wide
    assert result.trials.dtype == "int32" and result.accepted


@pytest.mark.parametrize(
    "leaf",
    [
        np.float64(np.pi),
        np.float32([[1.5, -2.0]]),
        np.asarray([True, False]),
        np.int8([-128, 127, 0]),
        np.uint8([0, 255]),
        np.int16([-(2**15), 2**15 - 1]),
        np.uint16([2**16 - 1]),
        np.int32([-(2**31), -1, 2**31 - 1]),
        np.uint32([2**32 - 1, 5]),
        np.int64([-(2**63), -2, 2**63 - 1, 2**40 + 3]),
        np.uint64([2**64 - 1]),
        np.complex64([1.0 - 2.0j]),
        np.zeros((0, 3), np.int32),
    ],
    ids=lambda leaf: f"{leaf.dtype}{leaf.shape}",
)
def test_packing_loses_nothing(leaf, x64):
    aux = {"leaf": jnp.asarray(leaf), "none": None}
    packed = pack(aux)
    assert all(jnp.issubdtype(x.dtype, jnp.floating) for x in packed)
    back = unpack(packed, aux)
    assert back["none"] is None and back["leaf"].dtype == leaf.dtype
    np.testing.assert_array_equal(back["leaf"], leaf)


def test_packing_typed_keys():
    key = jax.random.key(7)
    back = unpack(pack(key), key)
    assert back.dtype == key.dtype
    assert jnp.array_equal(jax.random.key_data(back), jax.random.key_data(key))


def test_aux_of_any_dtype_comes_from_the_accepted_step():
    def evaluate(step):
        value, slope = jax.value_and_grad(FUNCTIONS["wavy valley"])(step)
        aux = (step > 1.0, jnp.int32(-70000 * step), jnp.asarray([step, step]), None)
        return Trial(value, slope, aux)

    start = evaluate(jnp.zeros(()))
    result = strong_wolfe(evaluate, start, start.slope, 1.0)
    large, count, copies, _ = result.trial.aux
    assert result.trials > 1 and bool(large) == bool(result.step > 1.0)
    assert int(count) == int(jnp.int32(-70000 * result.step))
    np.testing.assert_array_equal(copies, result.step)


def test_full_batch_lbfgs_is_that_of_optax(golden_dir, x64):
    """`optax.lbfgs` on logistic regression, its search replaced by ours."""
    path = golden_dir / "pblbfgs" / "optax_fullbatch.json"
    recorded = json.loads(path.read_text())["breast_cancer"]
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    x = jnp.asarray(np.hstack([x, np.ones((len(x), 1))]))
    signs = jnp.asarray(2.0 * y - 1.0)

    def loss(w):
        return jnp.mean(jax.nn.softplus(-signs * (x @ w))) + w @ w / (2 * len(x))

    both, directions = jax.value_and_grad(loss), optax.scale_by_lbfgs()

    @jax.jit
    def step(w, value, gradient, state):
        p, state = directions.update(gradient, state, w)
        p = -p

        def evaluate(step):
            value, gradient = both(w + step * p)
            return Trial(value, gradient @ p, gradient)

        start = Trial(value, gradient @ p, gradient)
        found = strong_wolfe(evaluate, start, start.slope, 1.0)
        return w + found.step * p, found, state

    w = jnp.zeros(x.shape[1])
    value, gradient = both(w)
    state, values, trials = directions.init(w), [float(value)], []
    for _ in range(15):
        w, found, state = step(w, value, gradient, state)
        value, gradient = found.trial.value, found.trial.aux
        values.append(float(value))
        trials.append(int(found.trials))
    np.testing.assert_allclose(values, recorded["F"][:16], rtol=1e-9)
    assert trials == recorded["linesearch_steps"][:15]
