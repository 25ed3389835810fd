import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.optim_jax.quasi_newton.progressive_batching.logistic import (
    breast_cancer,
    full_gradient,
    make_solver,
    regularised,
    with_constant,
)

MINIMA = {
    "breast_cancer": 0.066394069823406,
    "digits": 0.209391995611425,
    "synthetic": 0.191711316399238,
}


def digits():
    """Even against odd digits, 1797 x 65."""
    from sklearn.datasets import load_digits

    x, digit = load_digits(return_X_y=True)
    x = np.hstack([x / 16.0, np.ones((len(x), 1))])
    return regularised(x, np.where(digit % 2 == 0, 1.0, -1.0))


def synthetic():
    """7000 x 50, with columns of very different sizes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7000, 50))
    scale = np.logspace(0, 1, 50)
    x *= scale / np.sqrt(np.mean(scale**2))
    truth = rng.standard_normal(50)
    y = np.where(rng.random(7000) < 1 / (1 + np.exp(-x @ truth)), 1.0, -1.0)
    return regularised(x, y)


PROBLEMS = {
    "breast_cancer": breast_cancer,
    "digits": digits,
    "synthetic": synthetic,
}


@functools.cache
def solver(problem, overlap):
    losses, data = PROBLEMS[problem]()
    return make_solver(
        losses, data, batch_size=64, overlap=overlap, max_epochs=1000.0, chunk_size=512
    )


def assert_certified(problem, overlap, seed):
    losses, data = PROBLEMS[problem]()
    start = jnp.zeros(data[0].shape[1])
    result = solver(problem, overlap).run(start, jax.random.key(seed))
    assert result.reason == "certified" and result.converged
    # Without what the solver says of itself.
    gradient = full_gradient(losses, result.params, data)
    assert float(jnp.abs(gradient).max()) <= 1.0001e-8
    assert result.grad_norm <= 1e-8
    value = float(jnp.mean(losses(result.params, data)))
    assert value == pytest.approx(MINIMA[problem], rel=1e-11)
    assert result.value == pytest.approx(value, rel=1e-12)
    history = result.history
    assert (np.diff(history.b) >= 0).all()
    assert history.b[0] <= 128 and history.b[-1] == len(data[1])
    assert history.compilations[-1] == 1


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("overlap", ["multi", "full"])
def test_a_minimum_is_certified(x64, overlap, seed):
    assert_certified("breast_cancer", overlap, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("overlap", ["multi", "full"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_minima_are_certified(x64, problem, overlap, seed):
    assert_certified(problem, overlap, seed)


def test_columns_are_standardised():
    x = with_constant(np.array([[1.0, 2.0], [3.0, 6.0]]))
    np.testing.assert_allclose(x, [[-1, -1, 1], [1, 1, 1]])
