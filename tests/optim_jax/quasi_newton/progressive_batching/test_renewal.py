import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.optim_jax.quasi_newton.progressive_batching.logistic import (
    FEATURES,
    SAMPLES,
    draw_rows,
    full_gradient,
    losses,
    make_solver,
)


def window(state):
    order, start = np.asarray(state.window.order), int(state.window.start)
    return order[start : start + int(state.window.size)]


def mean_gradient(w, rows, data):
    return full_gradient(losses, w, tuple(leaf[rows] for leaf in data))


@pytest.mark.parametrize("overlap", ["multi", "full"])
def test_pairs_are_differences_over_the_same_samples(x64, overlap):
    data = draw_rows(1, dtype=np.float64)
    solver = make_solver(
        losses,
        data,
        batch_size=64,
        memory_size=4,
        chunk_size=64,
        max_iterations=8,
        overlap=overlap,
    )
    state = solver.init(jnp.zeros(FEATURES), jax.random.key(2))
    old_rows = window(state)
    sizes = []
    for _ in range(10):
        last = state
        state, info = solver.step(state)
        size, rows = int(info.b), window(state)
        sizes.append(size)
        is_grown, is_full = size > int(info.b_tested), size == SAMPLES
        common = None
        if is_full:
            common = np.arange(SAMPLES)
        elif overlap == "multi":
            common = rows[: math.ceil(0.25 * size)]
            # Those that growth has added are not known here.
            assert is_grown or set(common) <= set(old_rows)
        elif not is_grown:
            common = old_rows
        if common is not None:
            slot = (int(state.memory.head) - 1) % 4
            s = np.asarray(state.params) - np.asarray(last.params)
            new, old = (
                mean_gradient(w, common, data) for w in (state.params, last.params)
            )
            np.testing.assert_allclose(state.memory.s[slot], s, rtol=0, atol=1e-15)
            np.testing.assert_allclose(
                state.memory.y[slot], new - old, rtol=1e-9, atol=1e-14
            )
        # The gradient of the next iteration, over the whole of its sample.
        np.testing.assert_allclose(
            state.evaluation.grad,
            mean_gradient(state.params, rows, data),
            rtol=1e-9,
            atol=1e-14,
        )
        if overlap == "multi" and not is_full:
            first = int(state.overlap_start)
            ahead = rows[first : first + int(state.overlap_size)]
            # No sample is kept twice in a row.
            assert not set(ahead) & set(common)
            total = len(ahead) * mean_gradient(state.params, ahead, data)
            np.testing.assert_allclose(
                state.evaluation.overlap, total, rtol=1e-9, atol=1e-13
            )
        old_rows = rows
    assert 64 in sizes and SAMPLES in sizes
