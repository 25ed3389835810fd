import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.curvature_pairs import push_pair
from optim_jax.quasi_newton.hessian_products import apply_inverse_hessian
from optim_jax.quasi_newton.memory import init_memory
from tests.optim_jax.quasi_newton.progressive_batching.logistic import (
    FEATURES,
    SAMPLES,
    compiled,
    draw_rows,
    losses,
    make_solver,
)

ITERATIONS = 9
# The smallest still leaves decreases well above the absolute slack of the line search.
SCALES = (1e-6, 1.0, 1e6)


def lbfgs(value, w, iterations):
    """Full-batch L-BFGS with Armijo backtracking; yields F, ||g|| and the step."""
    memory = init_memory(w, 4)
    gradient = jax.jit(jax.value_and_grad(value))
    inverse, push = compiled(apply_inverse_hessian), compiled(push_pair)
    loss, g = gradient(w)
    for _ in range(iterations):
        p = -inverse(memory, g)
        if int(memory.count) == 0:
            p = -min(1.0, 1.0 / float(jnp.linalg.norm(g))) * g
        step, slope = 1.0, float(g @ p)
        while float(value(w + step * p)) > float(loss) + 1e-4 * step * slope + 1e-16:
            step /= 2
        yield float(loss), float(jnp.linalg.norm(g)), step
        new_loss, new_g = gradient(w + step * p)
        memory, _ = push(memory, step * p, new_g - g, bs=-step * g)
        w, loss, g = w + step * p, new_loss, new_g


@functools.cache
def full_run():
    x, y = draw_rows(dtype=np.float64)
    # Steep enough for steps that are shortened.
    data = 3.0 * x, y
    options = {"batch_size": SAMPLES, "memory_size": 4, "max_iterations": ITERATIONS}
    solver = make_solver(losses, data, **options)
    result = solver.run(jnp.zeros(FEATURES), jax.random.key(0))
    return lambda w: jnp.mean(losses(w, data)), result


def test_with_all_data_it_is_lbfgs(x64):
    value, result = full_run()
    rows = list(lbfgs(value, jnp.zeros(FEATURES), ITERATIONS))
    expected = [np.array(column) for column in zip(*rows, strict=True)]
    np.testing.assert_allclose(result.history.value, expected[0], rtol=1e-12)
    np.testing.assert_allclose(result.history.grad_norm, expected[1], rtol=1e-6)
    np.testing.assert_array_equal(result.history.alpha, expected[2])


def test_with_all_data_nothing_is_tested_and_every_gradient_computed_once(x64):
    _, result = full_run()
    history = result.history
    assert np.isnan(history.ratio).all()
    assert set(history.b.tolist()) == {SAMPLES}
    np.testing.assert_array_equal(history.alpha0, 1.0)
    np.testing.assert_array_equal(history.epochs, np.arange(1, ITERATIONS + 1))
    assert history.jvp_evals[-1] == 0
    np.testing.assert_array_equal(
        history.fn_evals, SAMPLES * np.cumsum(history.backtracks)
    )


@pytest.mark.parametrize("size", [64, SAMPLES])
def test_the_scale_of_the_loss_does_not_matter(x64, size):
    x, y = draw_rows(5, dtype=np.float64)

    def per_sample(w, batch):
        *rows, scale = batch
        return scale * losses(w, rows)

    runs = []
    for scale in SCALES:
        # Part of the data, so that all runs share one program.
        solver = make_solver(
            per_sample,
            (x, y, np.full(SAMPLES, scale)),
            batch_size=size,
            memory_size=4,
            first_step="normalized",
            max_iterations=ITERATIONS,
            tol=0.0,
        )
        runs.append(solver.run(jnp.zeros(FEATURES), jax.random.key(1)))
    for run, scale in zip(runs, SCALES, strict=True):
        assert run.n_iter == ITERATIONS
        found, expected = run.history, runs[1].history
        np.testing.assert_allclose(found.value / scale, expected.value, rtol=1e-12)
        np.testing.assert_allclose(run.params, runs[1].params, rtol=0, atol=1e-9)
        for field in ("b", "backtracks", "pair", "memory_count"):
            np.testing.assert_array_equal(
                getattr(found, field), getattr(expected, field)
            )
