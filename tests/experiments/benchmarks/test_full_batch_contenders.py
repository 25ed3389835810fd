"""Full-batch L-BFGS of several codes: same end, honest counts."""

import jax
import numpy as np
import pytest

from experiments.benchmarks.full_batch_contenders import (
    optax_lbfgs,
    ours,
    scipy_lbfgs,
)
from experiments.logistic.problem import dense_problem
from experiments.logistic.reference_optimum import reference_optimum


@pytest.fixture
def problem(x64):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((60, 4))
    labels = np.sign(features.sum(axis=1) + 2.0 * rng.standard_normal(60))
    return dense_problem(features, labels, l2=0.01, dtype="float64", name="small")


@pytest.mark.slow
def test_every_contender_reaches_the_target(problem):
    optimum = reference_optimum(problem).value
    target = optimum + 1e-8
    runs = [
        ours(problem, target, chunk_size=60),
        ours(problem, target, chunk_size=60, whole_run=True),
        optax_lbfgs(problem, target),
        scipy_lbfgs(problem, target, compiled=True),
        scipy_lbfgs(problem, target, compiled=False),
    ]
    for run in runs:
        assert optimum <= run.value <= target
        assert run.gradients > run.iterations > 3
    ends = [np.asarray(run.run()) for run in (runs[0], runs[1], runs[3], runs[4])]
    for end in ends:
        assert float(problem.value(end)) <= target
    w, *_ = runs[2].run()
    assert float(problem.value(w)) <= target
    # Ours evaluates once at the start and once a trial.
    assert runs[0].gradients <= runs[2].gradients + 2
    assert jax.numpy.asarray(w).dtype == np.float64


def test_numpy_and_compiled_functions_agree(problem):
    ends = [scipy_lbfgs(problem, None, compiled=compiled) for compiled in (True, False)]
    assert ends[0].value == pytest.approx(ends[1].value, rel=1e-12)
    assert ends[0].gradients == ends[1].gradients
