"""The objective against its formulas in NumPy, for dense and for sparse rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.logistic.problem import (
    LogisticProblem,
    SparseSamples,
    dense_problem,
    sparse_problem,
)

N, D, L2 = 40, 7, 0.3


@pytest.fixture
def drawn():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(N, D))
    features[generator.random((N, D)) < 0.6] = 0.0
    labels = np.where(generator.random(N) < 0.5, 1.0, -1.0)
    return features, labels, generator.normal(size=D)


def padded(features):
    """Rows as columns and values; the padding is value 0 in column 0."""
    width = max(1, int((features != 0).sum(1).max()))
    columns = np.zeros((len(features), width), np.int32)
    values = np.zeros(columns.shape)
    for row, line in enumerate(features):
        (used,) = np.nonzero(line)
        columns[row, : len(used)], values[row, : len(used)] = used, line[used]
    return columns, values


def problems(features, labels, **options):
    dense = dense_problem(features, labels, **options)
    sparse = sparse_problem(*padded(features), labels, D, **options)
    return dense, sparse


def test_losses_value_and_gradient_are_the_formulas(x64, drawn):
    features, labels, w = drawn
    margins = labels * (features @ w)
    losses = np.log1p(np.exp(-margins)) + 0.5 * L2 * w @ w
    residual = -labels / (1.0 + np.exp(margins))
    gradient = features.T @ residual / N + L2 * w
    for problem in problems(features, labels, l2=L2):
        found = problem.per_sample_loss(w, problem.data)
        np.testing.assert_allclose(found, losses, rtol=1e-14)
        np.testing.assert_allclose(problem.value(w), losses.mean(), rtol=1e-14)
        np.testing.assert_allclose(problem.gradient(w), gradient, atol=1e-15)
        value, grad_norm = problem.evaluate(w)
        assert value == pytest.approx(losses.mean(), rel=1e-14)
        assert grad_norm == pytest.approx(np.abs(gradient).max(), rel=1e-13)


def test_penalty_is_in_every_term(x64, drawn):
    features, labels, w = drawn
    for problem in problems(features, labels, l2=L2):
        rows = jax.tree.map(lambda leaf: leaf[3:5], problem.data)
        with_penalty = problem.per_sample_loss(w, rows)
        assert with_penalty.shape == (2,)
        plain = LogisticProblem(problem.data, D, 0.0).per_sample_loss(w, rows)
        np.testing.assert_allclose(with_penalty - plain, 0.5 * L2 * w @ w)


def test_zero_weights_lose_ln_2_and_l2_is_one_over_n(x64, drawn):
    features, labels, _ = drawn
    for problem in problems(features, labels):
        assert problem.l2 == 1 / N and problem.num_samples == N
        w = problem.initial_params()
        assert w.shape == (D,) and w.dtype == problem.dtype == jnp.float64
        np.testing.assert_allclose(problem.value(w), np.log(2.0), rtol=1e-15)


def test_large_margins_stay_finite(x64):
    problem = dense_problem(np.array([[1e4], [1e4]]), np.array([1, -1]), l2=0.0)
    losses = problem.per_sample_loss(jnp.ones(1), problem.data)
    np.testing.assert_array_equal(losses, [0.0, 1e4])


def test_float32_problem_is_evaluated_in_float64(drawn):
    features, labels, w = drawn
    rounded = features.astype(np.float32).astype(float)
    for problem in problems(features, labels, l2=L2, dtype="float32"):
        start = problem.initial_params()
        assert problem.value(start).dtype == problem.dtype == jnp.float32
        point = jnp.asarray(w, jnp.float32)
        at = np.asarray(point, float)
        losses = np.log1p(np.exp(-labels * (rounded @ at))) + 0.5 * L2 * at @ at
        assert problem.evaluate(point).value == pytest.approx(losses.mean(), rel=1e-14)
        assert float(problem.value(point)) != losses.mean()


def test_gradient_of_sparse_rows_may_repeat_a_column(x64):
    data = SparseSamples(
        jnp.zeros((1, 3), jnp.int32), jnp.array([[1.0, 2.0, 0.0]]), jnp.ones(1)
    )
    problem = LogisticProblem(data, 1, 0.0)
    np.testing.assert_allclose(problem.gradient(jnp.zeros(1)), [-1.5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l2": -1.0}, "l2 must be >= 0 and finite, got -1.0"),
        ({"l2": float("nan")}, "l2 must be >= 0 and finite, got nan"),
        ({"dtype": "bfloat16"}, "dtype must be float32 or float64, got 'bfloat16'"),
        ({"dtype": "float64"}, r"dtype='float64' needs 64-bit types"),
        ({"labels": np.zeros(N)}, "labels must be -1 or [+]1, got 0.0"),
        ({"labels": np.ones(3)}, r"labels must have the shape \(40,\) .* got \(3,\)"),
    ],
)
def test_bad_arguments_are_named(drawn, change, message):
    features, labels, _ = drawn
    given = {"labels": labels, "dtype": "float32"} | change
    with pytest.raises(ValueError, match=message):
        dense_problem(features, **given)


def test_columns_outside_the_table_and_empty_data_are_refused(drawn):
    features, labels, _ = drawn
    columns, values = padded(features)
    with pytest.raises(ValueError, match=r"in \[0, num_features=5\), got 0 to 6"):
        sparse_problem(columns, values, labels, 5, dtype="float32")
    with pytest.raises(ValueError, match="data must hold at least one sample, got 0"):
        dense_problem(np.zeros((0, 3)), np.zeros(0), dtype="float32")
    with pytest.raises(ValueError, match="num_features must be >= 1, got 0"):
        dense_problem(np.zeros((2, 0)), np.ones(2), dtype="float32")
