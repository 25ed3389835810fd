"""Minima to the last digits."""

import numpy as np
import pytest

from experiments.logistic.datasets import DatasetConfig, load_problem
from experiments.logistic.problem import dense_problem, sparse_problem
from experiments.logistic.reference_optimum import reference_optimum

# F* and the norm of w* with lambda = 1/N, from an independent Newton iteration.
KNOWN = {
    "breast_cancer": (0.066394069823406, 3.85768227),
    "digits": (0.209391995611425, 9.26040569),
    "synthetic": (0.191711316399238, 6.97841613),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_minima(x64, name):
    pytest.importorskip("sklearn")
    optimum = reference_optimum(load_problem(DatasetConfig(name)))
    value, norm = KNOWN[name]
    assert optimum.converged and optimum.grad_norm <= 1e-12
    assert optimum.value == pytest.approx(value, abs=1e-12)
    assert np.linalg.norm(optimum.params) == pytest.approx(norm, abs=1e-7)


def drawn(rows=300, features=12):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, features)) * (
        generator.random((rows, features)) < 0.2
    )
    y = np.where(
        generator.random(rows) < 1 / (1 + np.exp(-x @ np.ones(features))), 1, -1
    )
    return x, y


def test_sparse_rows_have_the_minimum_of_dense_ones(x64):
    x, y = drawn()
    columns = np.tile(np.arange(12, dtype=np.int32), (300, 1))
    dense = reference_optimum(dense_problem(x, y))
    sparse = reference_optimum(sparse_problem(columns, x, y, 12))
    assert dense.converged and sparse.converged
    assert sparse.value == pytest.approx(dense.value, abs=1e-15)
    np.testing.assert_allclose(sparse.params, dense.params, atol=1e-9)


def test_float32_data_give_the_minimum_of_their_own_function():
    x, y = drawn()
    problem = dense_problem(x, y, dtype="float32")
    optimum = reference_optimum(problem)
    assert optimum.converged and optimum.params.dtype == np.float64
    margins = y * (np.asarray(problem.data.features, float) @ optimum.params)
    penalty = 0.5 * problem.l2 * optimum.params @ optimum.params
    expected = np.mean(np.log1p(np.exp(-margins))) + penalty
    assert optimum.value == pytest.approx(expected, abs=1e-15)


def test_closed_form_of_one_symmetric_feature(x64):
    """x = 1 and y = +-1 alike: w* = 0; with x = y all losses are log(1 + e^-w)."""
    balanced = reference_optimum(dense_problem(np.ones((4, 1)), np.array([1, -1] * 2)))
    assert balanced.value == pytest.approx(np.log(2.0), abs=1e-16)
    y = np.array([1.0, -1.0])
    w = 0.5  # then the penalty must be sigmoid(-w) / w
    problem = dense_problem(y[:, None], y, l2=1 / (1 + np.exp(w)) / w)
    assert reference_optimum(problem).params[0] == pytest.approx(w, abs=1e-12)


def test_no_minimum_is_said(x64):
    """Separable classes without a penalty: the gradient falls, w grows for ever."""
    y = np.array([1.0, -1.0])
    problem = dense_problem(y[:, None], y, l2=0.0)
    optimum = reference_optimum(problem, max_iterations=5)
    assert not optimum.converged and 1e-4 < optimum.grad_norm < 1e-1
    with pytest.raises(ValueError, match="tol must be > 0, got 0"):
        reference_optimum(problem, tol=0)


def test_rounding_ends_the_search(x64):
    """Features of 1e6 leave a gradient that no step makes smaller."""
    x, y = drawn()
    optimum = reference_optimum(dense_problem(1e6 * x, y), tol=1e-30)
    assert not optimum.converged
    assert optimum.grad_norm < 1e-6 and optimum.iterations < 60
