import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton import line_search
from optim_jax.quasi_newton.line_search import (
    LINE_SEARCHES,
    Trial,
    make_line_search,
    needs_slope,
)
from tests.optim_jax.quasi_newton.line_search.lines import at_zero, on_line

NAMES = sorted(LINE_SEARCHES)


def valley(t):
    return jnp.log1p((t - 0.1) ** 2) - 0.1 * jnp.sin(t)


def counting(function=valley):
    """`evaluate` and a list that grows at every trace."""
    traces, evaluate = [], on_line(function)

    def counted(step):
        traces.append(None)
        return evaluate(step)

    return counted, traces


def test_names_and_limits():
    assert {name: search.max_trials for name, search in LINE_SEARCHES.items()} == {
        "armijo": 30,
        "armijo_interp": 10,
        "weak_wolfe": 25,
        "weak_wolfe_interp": 25,
        "strong_wolfe": 20,
        "fixed": 1,
    }
    assert [name for name in NAMES if needs_slope(name)] == [
        "strong_wolfe",
        "weak_wolfe",
        "weak_wolfe_interp",
    ]
    function, limit = LINE_SEARCHES["armijo"]
    assert function is line_search.armijo and limit == 30


@pytest.mark.parametrize("name", NAMES)
def test_searches_that_need_no_slope_read_none(name):
    start = at_zero(valley)
    search = make_line_search(name)
    with_slope = search(on_line(valley), start, start.slope, 1.0)
    without = search(on_line(valley, False), start, start.slope, 1.0)
    same = bool(with_slope.step == without.step) and bool(without.accepted)
    assert same != needs_slope(name)


@pytest.mark.parametrize("name", NAMES)
def test_one_trace_alone_under_jit_and_in_a_loop(name):
    search, start = make_line_search(name), at_zero(valley)

    counted, traces = counting()
    eager = search(counted, start, start.slope, 1.0)
    assert len(traces) == 1

    counted, traces = counting()
    jitted = jax.jit(lambda init: search(counted, start, start.slope, init))
    for init_step in (1.0, 0.5):
        jitted(jnp.float32(init_step))
    assert len(traces) == 1
    np.testing.assert_allclose(jitted(jnp.float32(1.0)).step, eager.step, rtol=1e-6)

    counted, traces = counting()

    @jax.jit
    def descend(point, value, slope):
        def body(carry):
            point, value, slope, count = carry

            def evaluate(step):
                trial = counted(point - step * slope)
                return Trial(trial.value, -trial.slope * slope, trial.slope)

            trial = Trial(value, jnp.nan, slope)
            found = search(evaluate, trial, -(slope**2), 0.5)
            point = point - found.step * slope
            return point, found.trial.value, found.trial.aux, count + 1

        state = (point, value, slope, 0)
        return jax.lax.while_loop(lambda carry: carry[3] < 30, body, state)

    point, value, slope, _ = descend(jnp.float32(2.0), *on_line(valley)(2.0)[:2])
    assert len(traces) == 1
    minimiser = 0.15026  # 2 (t - 0.1) / (1 + (t - 0.1)^2) = 0.1 cos t
    assert float(point) == pytest.approx(minimiser, abs=1e-3)
    assert abs(slope) < 1e-3 and float(value) == pytest.approx(
        float(valley(point)), abs=1e-6
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_searches_is_each_of_them(name):
    search, start = make_line_search(name), at_zero(valley)

    def run(init_step):
        return search(on_line(valley), start, start.slope, init_step)

    steps = jnp.asarray([1e-3, 0.1, 1.0, 30.0, jnp.nan])
    batch = jax.jit(jax.vmap(run))(steps)
    for index, step in enumerate(steps):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], batch)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, run(step)
        )


@pytest.mark.parametrize("name", NAMES)
def test_types_do_not_depend_on_those_of_the_caller(name, x64):
    # Python numbers are weakly typed; a loop over searches must not change type.
    search = make_line_search(name)

    def evaluate(step):
        return Trial(-1.0, -0.1, 3)

    weak = search(evaluate, Trial(0.0, -1.0, 3), -1.0, 1)
    strong = search(evaluate, Trial(jnp.float64(0), -1.0, 3), jnp.float64(-1), 1.0)
    types = [
        [(x.dtype, x.weak_type) for x in jax.tree.leaves(r)] for r in (weak, strong)
    ]
    assert types[0] == types[1]
    assert not any(weak_type for _, weak_type in types[0])


def test_options_go_where_they_belong():
    seen = {}

    def evaluate(step):
        return Trial(step, 1.0)

    for name in NAMES:
        search = make_line_search(name, c1=0.1, c2=0.5, factor=0.25, max_trials=3)
        seen[name] = search(evaluate, Trial(jnp.float32(0), -1.0), -1.0, 1.0)
    trials = {name: int(result.trials) for name, result in seen.items()}
    assert trials == {name: 1 if name == "fixed" else 3 for name in NAMES}
    assert seen["armijo"].step == 0.0625


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "wolfe"}, "line_search must be one of armijo, armijo_interp, fixed"),
        ({"name": None}, "line_search must be one of .*, got None"),
        ({"name": "armijo", "c1": 1.5}, r"c1 must be in \(0, 1\), got 1.5"),
        ({"name": "armijo", "c2": 2.0}, r"c2 must be in \(c1, 1\)"),
        ({"name": "fixed", "factor": 1.0}, r"factor must be in \(0, 1\), got 1.0"),
        ({"name": "fixed", "max_trials": 0}, "max_trials must be an integer >= 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_line_search(**arguments)


def test_slopes_of_an_unknown_search():
    with pytest.raises(ValueError, match="line_search must be one of .*, got 'exact'"):
        needs_slope("exact")
