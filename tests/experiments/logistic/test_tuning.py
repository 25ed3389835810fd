"""Learning rates that are searched: the same runs as one by one, on other seeds."""

import math

import numpy as np
import pytest

from experiments.logistic.baselines import run_stochastic
from experiments.logistic.problem import dense_problem
from experiments.logistic.tuning import LEARNING_RATES, tune_learning_rate


@pytest.fixture
def problem(x64):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 3))
    y = np.where(x @ np.ones(3) + generator.normal(size=40) > 0, 1.0, -1.0)
    return dense_problem(x, y, l2=0.05)


def test_grid_is_powers_of_two_from_2_to_the_minus_10_to_10():
    assert LEARNING_RATES == tuple(2.0**j for j in range(-10, 11))


@pytest.mark.parametrize(
    ("method", "batch_size"), [("sgd", 1), ("svrg", 2), ("adam", 8)]
)
def test_values_are_those_of_separate_runs(problem, method, batch_size):
    rates, seeds = (0.25, 2.0**-6, 4.0), (7, 8, 9)
    tuning = tune_learning_rate(
        problem,
        method,
        batch_size=batch_size,
        epochs=6,
        learning_rates=rates,
        seeds=seeds,
    )
    finals = {
        rate: np.median(
            [
                run_stochastic(
                    problem,
                    method,
                    rate,
                    batch_size=batch_size,
                    seed=seed,
                    max_epochs=6,
                    tol=0.0,
                ).final.value
                for seed in seeds
            ]
        )
        for rate in rates
    }
    assert list(tuning.values) == sorted(rates)
    for rate, value in finals.items():
        assert tuning.values[rate] == pytest.approx(value, rel=1e-9)
    assert tuning.learning_rate == min(finals, key=finals.get)
    assert tuning.epochs == 6


def test_interior_and_edge(problem):
    whole = tune_learning_rate(problem, "sgd", epochs=3)
    assert whole.interior and len(whole.values) == 21
    low = tune_learning_rate(problem, "sgd", epochs=3, learning_rates=(2.0**-10, 2**-9))
    assert low.learning_rate == 2**-9 and not low.interior


def test_divergence_is_infinitely_bad(x64):
    problem = dense_problem(np.array([[1e6], [1.0]]), np.array([1.0, -1.0]), l2=10.0)
    rates = (1e-14, 1e6)
    found = tune_learning_rate(problem, "sgd", epochs=200, learning_rates=rates)
    assert found.learning_rate == 1e-14 and math.isinf(found.values[1e6])
    with pytest.raises(ValueError, match="sgd diverged .* with every learning rate"):
        tune_learning_rate(problem, "sgd", epochs=200, learning_rates=(1e6, 1e7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "lbfgs"}, "method must be one of sgd, svrg, adam, got 'lbfgs'"),
        ({"learning_rates": ()}, r"learning_rates must be > 0 and finite, got \[\]"),
        ({"learning_rates": (1.0, 0.0)}, r"must be > 0 and finite, got \[1.0, 0.0\]"),
        ({"seeds": ()}, "seeds must name at least one tuning seed, got none"),
        ({"reporting_seeds": (0, 1002)}, r"not be among the .* got \[1002\] in both"),
        ({"batch_size": 41}, r"batch_size must lie in \[1, 40\] .* got 41"),
    ],
)
def test_bad_arguments_are_named(problem, change, message):
    with pytest.raises(ValueError, match=message):
        tune_learning_rate(problem, **{"method": "sgd"} | change)
