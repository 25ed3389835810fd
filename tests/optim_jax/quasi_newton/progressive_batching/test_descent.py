import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.memory import clear_memory, store_pair
from optim_jax.quasi_newton.progressive_batching.descent import emptied, move
from tests.optim_jax.quasi_newton.progressive_batching.logistic import (
    FEATURES,
    SAMPLES,
    compiled,
    draw_rows,
    full_gradient,
    losses,
    make_solver,
)

DATA = draw_rows()
START = np.linspace(-1, 1, FEATURES).astype(np.float32)


@functools.cache
def solver():
    return make_solver(
        losses,
        DATA,
        batch_size=SAMPLES,
        memory_size=3,
        max_line_search=3,
        first_step="capped",
        curvature="none",
        test="none",
        init_step="unit",
        overlap="full",
    )


def step_with(curvatures):
    """A step from START; a pair along each of the first axes has that curvature."""
    state = solver().init(jnp.asarray(START), jax.random.key(0))
    memory = state.memory
    for axis, curvature in enumerate(curvatures):
        s = jnp.zeros(FEATURES).at[axis].set(1.0)
        memory = store_pair(memory, s, jnp.float32(curvature) * s)
    return solver().step(state._replace(memory=memory))


def gradient_step(state, info):
    """Asserts that the step went along -g."""
    g = np.asarray(full_gradient(losses, START, DATA))
    expected = START - float(info.alpha) * g * min(1, 1 / np.linalg.norm(g))
    np.testing.assert_allclose(state.params, expected, rtol=1e-5, atol=1e-6)


def test_with_an_empty_memory_it_goes_along_the_gradient():
    state, info = step_with([])
    assert not info.reset and not info.ls_failed and int(info.backtracks) == 0
    gradient_step(state, info)


def test_a_step_that_is_no_descent_empties_the_memory():
    state, info = step_with([-2.0])
    assert info.reset and not info.ls_failed
    gradient_step(state, info)
    # What is stored is the pair of this step.
    assert int(info.memory_count) == int(state.memory.count) == 1


def test_a_search_that_fails_is_tried_again_with_an_empty_memory():
    # H is a million times the identity: three halvings are too few.
    state, info = step_with([1e-6])
    assert info.reset and not info.ls_failed
    assert int(info.backtracks) == 3  # three trials, and the one that is accepted
    gradient_step(state, info)
    assert int(state.counters.search_failures) == 0
    assert int(info.fn_evals) == 3 * SAMPLES


@pytest.mark.parametrize("curvatures", [[0.5], [2.0, 0.3]])
def test_a_usable_memory_is_used(curvatures):
    state, info = step_with(curvatures)
    assert not info.reset and int(info.memory_count) == len(curvatures) + 1
    inverse = np.full(FEATURES, 1 / curvatures[-1])
    inverse[: len(curvatures)] = 1 / np.asarray(curvatures)
    g = np.asarray(full_gradient(losses, START, DATA))
    expected = START - float(info.alpha) * inverse * g
    np.testing.assert_allclose(state.params, expected, rtol=1e-5, atol=1e-6)


def test_points_keep_their_dtypes():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.float32(1)}
    direction = {"a": jnp.full(2, 1 / 256), "b": jnp.float32(-2)}
    moved = move(params, direction, jnp.float32(1))
    assert moved["a"].dtype == jnp.bfloat16 and moved["b"].dtype == jnp.float32
    # 1 + 1/256 lies half way between two neighbours and is rounded to the even one.
    np.testing.assert_array_equal(moved["a"].astype(jnp.float32), 1.0)
    assert float(moved["b"]) == -1.0


@pytest.mark.parametrize("wanted", [True, False])
def test_emptying_keeps_the_buffers(wanted):
    state = solver().init(jnp.asarray(START), jax.random.key(0))
    memory = store_pair(state.memory, jnp.ones(FEATURES), jnp.ones(FEATURES))
    found = compiled(emptied)(memory, jnp.bool_(wanted))
    expected = clear_memory(memory) if wanted else memory
    for name in memory._fields:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(found.s, memory.s)
