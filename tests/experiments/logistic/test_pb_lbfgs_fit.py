"""Progressive batching with the records of its peers."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from experiments.logistic import pb_lbfgs_fit
from experiments.logistic.fit_records import Fit, epochs_to_reach
from experiments.logistic.pb_lbfgs_fit import make_solver, run_pb_lbfgs
from experiments.logistic.problem import (
    LogisticProblem,
    dense_problem,
    sparse_problem,
)
from experiments.logistic.reference_optimum import reference_optimum

N, D = 400, 5


OPTIONS = {"batch_size": 32, "theta": 0.5}


class Watched:
    """A solver that keeps what its steps return."""

    def __init__(self, solver):
        self.solver, self.steps = solver, []

    def step(self, state):
        self.steps.append(self.solver.step(state))
        return self.steps[-1]

    def __getattr__(self, name):
        return getattr(self.solver, name)


class Fitted(NamedTuple):
    problem: LogisticProblem
    fit: Fit
    steps: list  # states and infos of the solver, that of the compilation first


@pytest.fixture(scope="module")
def problem():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(N, D))
    y = np.where(x @ np.ones(D) + generator.normal(size=N) > 0, 1.0, -1.0)
    with jax.enable_x64(True):
        yield dense_problem(x, y)


@pytest.fixture(scope="module")
def fitted(problem):
    watched = []

    def watch(*args, **options):
        watched.append(Watched(make_solver(*args, **options)))
        return watched[-1]

    optimum = reference_optimum(problem).value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pb_lbfgs_fit, "make_solver", watch)
        fit = run_pb_lbfgs(problem, seed=4, optimum=optimum, **OPTIONS)
    return Fitted(problem, fit, watched[0].steps)


def test_records_say_what_the_solver_says(fitted):
    fit, (warmed, *steps) = fitted.fit, fitted.steps
    assert fit.reason == "certified" and fit.converged
    assert len(fit.records) == len(steps) + 1
    assert fit.params is steps[-1][0].params
    # The step that compiles is not part of the fit, and leaves nothing behind.
    assert int(warmed[1].k) == int(steps[0][1].k) == 0
    start, *records = fit.records
    assert (start.iteration, start.epochs, start.seconds) == (0, 0.0, 0.0)
    assert start.value == pytest.approx(np.log(2.0)) and start.details == {}
    assert [r.iteration for r in records] == list(range(1, len(steps) + 1))
    names = {
        "batch_size": "b",
        "step_size": "alpha",
        "sample_value": "value",
        "sample_grad_norm": "grad_norm",
        **{name: name for name in ("ratio", "r_U", "pair", "backtracks", "work")},
    }
    for record, (state, info) in zip(records, steps, strict=True):
        assert record.epochs == int(info.grad_evals) / N
        for field, name in names.items():
            np.testing.assert_equal(record.details[field], getattr(info, name).item())
        assert record.value == fitted.problem.evaluate(state.params).value
        assert "k" not in record.details and "epochs" not in record.details


@pytest.mark.slow
def test_stepping_is_the_run_of_the_solver(fitted):
    solver = make_solver(fitted.problem, **OPTIONS)
    result = solver.run(fitted.problem.initial_params(), jax.random.key(4))
    assert result.reason == "certified" and result.n_iter + 1 == len(fitted.fit.records)
    assert fitted.fit.final.epochs == result.grad_evals / N
    np.testing.assert_allclose(fitted.fit.params, result.params, rtol=1e-9)


def test_values_are_of_all_samples(fitted):
    fit = fitted.fit
    value = float(fitted.problem.value(fit.params))
    assert fit.final.value == pytest.approx(value, rel=1e-14)
    assert fit.final.grad_norm <= 1e-8 and abs(fit.final.gap) < 1e-13
    sizes = [r.details["batch_size"] for r in fit.records[1:]]
    assert sizes == sorted(sizes) and sizes[0] < N == sizes[-1]
    # The loss of the sample is another number, and has another name.
    assert fit.records[2].details["sample_value"] != fit.records[1].value
    seconds = [r.seconds for r in fit.records]
    assert seconds == sorted(seconds) and seconds[1] > 0
    assert epochs_to_reach(fit.records, 1e-6) < epochs_to_reach(fit.records, 1e-12)


def test_time_is_a_budget(problem):
    seen = []
    fit = run_pb_lbfgs(problem, max_time=1e-9, on_record=seen.append, **OPTIONS)
    assert fit.reason == "max_time" and len(fit.records) == 1
    assert seen == fit.records


@pytest.mark.slow
def test_sparse_rows_make_the_run_of_dense_ones(problem):
    x, y = problem.data
    columns = np.tile(np.arange(D, dtype=np.int32), (N, 1))
    sparse = sparse_problem(columns, np.asarray(x), np.asarray(y), D)
    dense_fit, sparse_fit = (
        run_pb_lbfgs(p, batch_size=64, max_iterations=8) for p in (problem, sparse)
    )
    np.testing.assert_allclose(
        [r.value for r in sparse_fit.records],
        [r.value for r in dense_fit.records],
        rtol=1e-9,
    )
    assert dense_fit.reason == sparse_fit.reason == "max_iterations"


def test_bad_options_are_named(problem):
    for options, message in (
        ({"theta": 0.0}, "theta"),
        ({"overlap_ratio": 0.6}, "overlap_ratio"),
        ({"test": "none of them"}, "test"),
        ({"max_epochs": -1.0}, "max_epochs"),
        ({"batch_size": 1}, "batch_size"),
        ({"max_time": -1.0}, "max_time"),
    ):
        with pytest.raises(ValueError, match=message):
            run_pb_lbfgs(problem, **options)
