import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.progressive_batching.accounting import in_a_row
from tests.optim_jax.quasi_newton.progressive_batching.logistic import (
    FEATURES,
    SAMPLES,
    draw_rows,
    losses,
    make_solver,
)

OPTIONS = {"batch_size": 64, "memory_size": 4, "chunk_size": 64, "max_iterations": 8}


def recorded(**options):
    x, y = draw_rows(dtype=np.float64)
    # Steep, so that some steps are shortened.
    solver = make_solver(losses, (8.0 * x, y), **OPTIONS, **options)
    return solver.run(jnp.zeros(FEATURES), jax.random.key(0)).history


def per_iteration(counts):
    return np.diff(np.concatenate([[0], counts]))


def test_the_work_of_shared_samples(x64):
    history = recorded()
    below = history.b < SAMPLES
    assert history.backtracks[below].max() > 0 and (~below).any()
    # Every sample has one gradient; the shared ones are part of the next sample.
    np.testing.assert_array_equal(per_iteration(history.grad_evals), history.b)
    # Of all data the accepted trial is the next sample's evaluation.
    trials = history.backtracks + below
    np.testing.assert_array_equal(per_iteration(history.fn_evals), trials * history.b)
    tested = np.where(np.isnan(history.ratio), 0, history.b_tested)
    np.testing.assert_array_equal(per_iteration(history.jvp_evals), tested)
    np.testing.assert_allclose(history.epochs, history.grad_evals / SAMPLES)
    work = history.grad_evals + history.fn_evals / 3 + 2 * history.jvp_evals / 3
    np.testing.assert_allclose(history.work, work, rtol=1e-12)


def test_the_work_of_a_full_overlap_and_a_search_with_gradients(x64):
    history = recorded(
        overlap="full",
        line_search="weak_wolfe",
        variance="hutchinson",
        variance_samples=50,
        test="ipqn",
        work_weights=(3.0, 0.5, 0.25),
    )
    assert (history.b < SAMPLES).all()
    # The gradient of the accepted trial closes the pair.
    trials = 1 + history.backtracks
    np.testing.assert_array_equal(
        per_iteration(history.grad_evals), history.b * (1 + trials)
    )
    assert history.fn_evals[-1] == 0
    # One derivative for the test and one along the random probe.
    np.testing.assert_array_equal(per_iteration(history.jvp_evals), 100)
    work = 3.0 * history.grad_evals + 0.25 * history.jvp_evals
    np.testing.assert_allclose(history.work, work, rtol=1e-12)


@pytest.mark.parametrize(("again", "expected"), [(True, 4), (False, 0)])
def test_counting_in_a_row(again, expected):
    assert int(in_a_row(jnp.int32(3), jnp.bool_(again))) == expected
