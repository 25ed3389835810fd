import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.progressive_batching import stopping
from optim_jax.quasi_newton.progressive_batching.options import Options
from optim_jax.quasi_newton.progressive_batching.problem import Problem
from optim_jax.quasi_newton.progressive_batching.sample_sums import SampleSums
from optim_jax.quasi_newton.progressive_batching.solver_state import REASONS
from tests.optim_jax.quasi_newton.progressive_batching.logistic import (
    FEATURES,
    SAMPLES,
    draw_rows,
    losses,
    make_solver,
)

QUICK = {"memory_size": 2, "test": "none", "init_step": "unit", "overlap": "full"}


@pytest.fixture(scope="module")
def running():
    """A first state that has no reason to stop."""
    state = make_solver(losses, draw_rows(), batch_size=64).init(
        jnp.zeros(FEATURES), jax.random.key(0)
    )
    assert int(state.reason) == 0
    return state


def make_problem(**options):
    sums = SampleSums(lambda w, batch: (losses(w, batch), ()), jnp.float32, 64, SAMPLES)
    options = {"max_iterations": 50, "max_epochs": 10.0, "tol": 1e-3, **options}
    return Problem(sums, Options(**options).sized(SAMPLES))


def changed(state, size=64, grad=None, **counters):
    counters = {name: jnp.int32(value) for name, value in counters.items()}
    evaluation = state.evaluation
    if grad is not None:
        grad = jnp.full(FEATURES, grad).at[0].set(-grad)
        evaluation = evaluation._replace(grad=grad)
    return state._replace(
        window=state.window._replace(size=jnp.int32(size)),
        evaluation=evaluation,
        counters=state.counters._replace(**counters),
    )


def name_of(state, healthy=True, **options):
    problem = make_problem(**options)
    return REASONS[int(stopping.reason_to_stop(problem, state, jnp.bool_(healthy)))]


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("running", {}),
        ("running", {"grad": 1e-4}),
        ("running", {"grad": 1.1e-3, "size": SAMPLES}),
        ("certified", {"grad": 1e-3, "size": SAMPLES}),
        ("running", {"k": 49}),
        ("max_iterations", {"k": 50}),
        ("running", {"grad_evals": 1999}),
        ("max_epochs", {"grad_evals": 2000}),
        ("running", {"search_failures": 2, "no_signal": 2, "still": 2}),
        ("line_search", {"search_failures": 3}),
        ("noise_limited", {"no_signal": 3}),
        ("stalled", {"still": 3}),
        # The first one of several.
        ("certified", {"grad": 0.0, "size": SAMPLES, "k": 50, "still": 3}),
        ("line_search", {"search_failures": 3, "k": 50}),
    ],
)
def test_each_reason_has_its_threshold(running, reason, changes):
    assert name_of(changed(running, **changes)) == reason


def test_what_is_not_finite_comes_first(running):
    state = changed(running, grad=0.0, size=SAMPLES)
    assert name_of(state, healthy=False) == "diverged"


def test_the_largest_entry_is_over_all_leaves():
    tree = {"a": jnp.asarray([[1.0, -7.0]]), "b": jnp.float32(3), "c": jnp.zeros(0)}
    assert float(stopping.largest_entry(tree)) == 7.0


@pytest.mark.parametrize(
    ("reason", "changes", "options", "goes_on"),
    [
        ("max_time", {}, {}, True),
        ("max_time", {"k": 50}, {}, False),
        ("max_iterations", {"k": 50}, {}, False),
        ("max_iterations", {"k": 50}, {"max_iterations": 51}, True),
        ("max_iterations", {"k": 50}, {"max_iterations": None}, True),
        ("max_epochs", {"grad_evals": 2000}, {"max_epochs": 10.5}, True),
        ("max_epochs", {"grad_evals": 2000}, {}, False),
        ("certified", {}, {}, False),
        ("diverged", {}, {}, False),
    ],
)
def test_only_a_limit_can_be_lifted(running, reason, changes, options, goes_on):
    state = changed(running, **changes)
    state = state._replace(reason=jnp.int32(REASONS.index(reason)))
    found = stopping.reopened(make_problem(**options), state)
    assert (int(found.reason) == 0) == goes_on
    assert found.reason.dtype == jnp.int32


# Whole runs.


def make_run(loss=losses, data=None, **options):
    data = draw_rows() if data is None else data
    return make_solver(loss, data, **{**QUICK, **options}).run


def solve(*arguments, **options):
    return make_run(*arguments, **options)(jnp.zeros(FEATURES), jax.random.key(0))


def test_epochs_and_time_are_limits():
    run = make_run(batch_size=64, max_time=1e-6, max_epochs=9.0)
    result = run(jnp.zeros(FEATURES), jax.random.key(0))
    # The clock is looked at after every eighth iteration.
    assert result.reason == "max_time" and result.n_iter == 8
    result = run(state=result.state)
    # Overlapping in full, an iteration computes 128 gradients.
    assert result.reason == "max_epochs" and result.n_iter == 15
    assert result.grad_evals == 15 * 128 >= 9 * SAMPLES > 14 * 128


@jax.custom_vjp
def uphill(w, batch):
    return losses(w, batch)


def uphill_forward(w, batch):
    return losses(w, batch), (w, batch)


def uphill_backward(residuals, cotangent):
    w, batch = residuals
    _, pullback = jax.vjp(lambda w: losses(w, batch), w)
    zeros = jax.tree.map(jnp.zeros_like, batch)
    return -pullback(cotangent)[0], zeros


uphill.defvjp(uphill_forward, uphill_backward)


def test_a_gradient_that_points_uphill_ends_in_the_line_search(x64):
    result = solve(uphill, draw_rows(dtype=np.float64), batch_size=64)
    history = result.history
    assert result.reason == "line_search" and result.n_iter == 3
    assert history.ls_failed.all() and (history.alpha == 0).all()
    # A larger sample is tried each time.
    assert history.b.tolist() == [64, 128, 200]
    np.testing.assert_array_equal(result.params, np.zeros(FEATURES))
    assert history.memory_count.tolist() == [0, 0, 0]


def test_a_tolerance_below_the_rounding_stalls():
    result = solve(batch_size=SAMPLES, tol=1e-10)
    assert result.reason == "stalled" and not result.converged
    assert 1e-10 < result.grad_norm < 1e-7
    # The point and its loss have stayed what they were three times.
    assert len(set(result.history.value[-3:].tolist())) == 1


def test_a_point_with_an_infinite_loss_is_left_to_the_caller():
    def loss(w, batch):
        return batch[1] * jnp.log(w[0] - 1.0) + 0.0 * losses(w, batch)

    result = solve(loss, batch_size=64)
    assert result.reason == "diverged" and result.n_iter == 0
    np.testing.assert_array_equal(result.params, np.zeros(FEATURES))
    assert result.history.value.size == 0
