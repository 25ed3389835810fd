"""Each peer against a loop in NumPy, Optax's own numbers, or its known behaviour."""

import json

import jax
import numpy as np
import pytest

from experiments.logistic.baselines import (
    gradients_per_epoch,
    run_lbfgs,
    run_stochastic,
)
from experiments.logistic.datasets import DatasetConfig, load_problem
from experiments.logistic.problem import dense_problem
from experiments.logistic.reference_optimum import reference_optimum

N, D = 50, 3


@pytest.fixture
def problem(x64):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(N, D))
    y = np.where(x @ np.ones(D) + generator.normal(size=N) > 0, 1.0, -1.0)
    return dense_problem(x, y, l2=0.05)


def gradient(problem, w, rows):
    x, y = (np.asarray(leaf)[rows] for leaf in problem.data)
    residual = -y / (1.0 + np.exp(y * (x @ w)))
    return x.T @ residual / len(rows) + problem.l2 * w


def orders(seed, epochs, batch_size):
    """The batches of each epoch, as rows of indices."""
    steps = N // batch_size
    for epoch in range(epochs):
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        order = np.asarray(jax.random.permutation(key, N))
        yield order[: steps * batch_size].reshape(steps, batch_size)


def by_hand(problem, method, rate, seed, epochs, batch_size):
    w, m, v, t = np.zeros(D), np.zeros(D), np.zeros(D), 0
    for batches in orders(seed, epochs, batch_size):
        snapshot, whole = w, gradient(problem, w, np.arange(N))
        for rows in batches:
            g = gradient(problem, w, rows)
            if method == "svrg":
                g = g - gradient(problem, snapshot, rows) + whole
            elif method == "adam":
                t += 1
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                g = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            w = w - rate * g
    return w


@pytest.mark.parametrize(
    ("method", "batch_size", "cost"),
    [("sgd", 1, 1.0), ("sgd", 8, 0.96), ("svrg", 1, 3.0), ("adam", 8, 0.96)],
)
def test_epochs_are_the_formulas(problem, method, batch_size, cost):
    fit = run_stochastic(
        problem, method, 0.125, batch_size=batch_size, seed=3, max_epochs=3.2 * cost
    )
    expected = by_hand(problem, method, 0.125, 3, 3, batch_size)
    np.testing.assert_allclose(fit.params, expected, rtol=1e-12)
    assert gradients_per_epoch(method, N, batch_size) == round(cost * N)
    np.testing.assert_allclose(
        [r.epochs for r in fit.records], cost * np.arange(4), rtol=1e-14
    )
    assert [r.iteration for r in fit.records] == [0, 1, 2, 3]
    assert fit.reason == "max_epochs" and not fit.converged
    assert fit.final.details == {"batch_size": batch_size, "learning_rate": 0.125}
    assert (np.diff([r.seconds for r in fit.records]) > 0).all()


def test_seed_decides_the_order(problem):
    first, second, other = (
        run_stochastic(problem, "sgd", 0.1, seed=seed, max_epochs=2).params
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, second) and not np.array_equal(first, other)


def test_svrg_converges_where_sgd_stays_noisy(problem):
    optimum = reference_optimum(problem)
    options = {"max_epochs": 60, "tol": 1e-9, "optimum": optimum.value}
    svrg = run_stochastic(problem, "svrg", 0.25, **options)
    assert svrg.converged and svrg.final.epochs < 60 and abs(svrg.final.gap) < 1e-14
    assert svrg.final.grad_norm <= 1e-9 < svrg.records[-2].grad_norm
    sgd = run_stochastic(problem, "sgd", 0.25, **options)
    assert sgd.reason == "max_epochs" and sgd.final.gap > 1e-6


def test_divergence_is_a_reason(x64):
    problem = dense_problem(np.array([[1e6], [1.0]]), np.array([1.0, -1.0]), l2=10.0)
    fit = run_stochastic(problem, "sgd", 1e6, max_epochs=1000)
    assert fit.reason == "diverged" and not np.isfinite(fit.final.value)
    assert fit.final.epochs < 100


def test_lbfgs_makes_the_iterates_of_optax(x64, golden_dir):
    pytest.importorskip("sklearn")
    text = (golden_dir / "pblbfgs" / "optax_fullbatch.json").read_text()
    stored = json.loads(text)["breast_cancer"]
    problem = load_problem(DatasetConfig("breast_cancer"))
    optimum = reference_optimum(problem)
    fit = run_lbfgs(problem, optimum=optimum.value)
    found = [r.value for r in fit.records[:16]]
    np.testing.assert_allclose(found, stored["F"][:16], rtol=1e-9)
    trials = [r.details["trials"] for r in fit.records[1:16]]
    assert trials == stored["linesearch_steps"][:15]
    # The first gradient, and one for each trial.
    assert [r.epochs for r in fit.records[:4]] == [0, 2, 3, 4]
    assert fit.converged and fit.final.grad_norm <= 1e-8
    reached = [next(r.epochs for r in fit.records if r.gap <= g) for g in (1e-2, 1e-4)]
    assert reached == [7, 14]


def test_lbfgs_that_cannot_move_is_stalled(problem):
    fit = run_lbfgs(problem, tol=0.0)
    assert fit.reason == "stalled" and fit.final.grad_norm < 1e-9
    assert fit.final.value == fit.records[-4].value


def test_budget_and_callback_of_lbfgs(problem):
    seen = []
    fit = run_lbfgs(problem, max_epochs=4, on_record=seen.append)
    assert fit.reason == "max_epochs" and seen == fit.records
    assert fit.records[-2].epochs <= 4 < fit.final.epochs
    assert np.isnan(fit.final.gap)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "momentum"}, "method must be one of sgd, svrg, adam, got 'mom"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0 and finite, got 0.0"),
        ({"learning_rate": np.nan}, "learning_rate must be > 0 and finite, got nan"),
        ({"batch_size": 51}, r"batch_size must lie in \[1, 50\] .* got 51"),
        ({"batch_size": 0}, r"batch_size must lie in \[1, 50\] .* got 0"),
        ({"max_epochs": 0}, "max_epochs must be > 0, got 0"),
        ({"tol": -1.0}, "tol must be >= 0, got -1.0"),
    ],
)
def test_bad_arguments_are_named(problem, change, message):
    given = {"method": "sgd", "learning_rate": 0.1} | change
    with pytest.raises(ValueError, match=message):
        run_stochastic(problem, **given)


def test_bad_arguments_of_lbfgs(problem):
    with pytest.raises(ValueError, match="memory_size must be >= 1, got 0"):
        run_lbfgs(problem, memory_size=0)
    with pytest.raises(ValueError, match="max_epochs must be > 0, got nan"):
        run_lbfgs(problem, max_epochs=float("nan"))
