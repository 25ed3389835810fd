"""Records of a fit."""

import numpy as np
import pytest

from experiments.logistic.fit_records import Fit, FitLog, Record, epochs_to_reach
from experiments.logistic.problem import dense_problem


def record(epochs, gap):
    return Record(0, epochs, 1.0 + gap, gap, 0.0, 0.0)


def test_log_evaluates_points_and_passes_them_on(x64):
    problem = dense_problem(np.ones((2, 1)), np.array([1.0, -1.0]), l2=1.0)
    seen = []
    log = FitLog(problem, optimum=0.5, on_record=seen.append)
    found = log.add(
        np.zeros(1), iteration=3, epochs=1.5, seconds=2.0, details={"ratio": 0.25}
    )
    assert seen == log.records == [found]
    assert found.value == pytest.approx(np.log(2.0)) and found.grad_norm == 0.0
    assert found.as_row() == {
        "iteration": 3,
        "epochs": 1.5,
        "value": found.value,
        "gap": found.value - 0.5,
        "grad_norm": 0.0,
        "seconds": 2.0,
        "ratio": 0.25,
    }
    unknown = FitLog(problem).add(np.zeros(1), iteration=0, epochs=0.0, seconds=0.0)
    assert np.isnan(unknown.gap)


def test_epochs_to_reach_is_the_first_record_at_or_below():
    records = [record(0.0, 1.0), record(1.0, 0.1), record(2.0, 0.2), record(3.0, 0.01)]
    assert epochs_to_reach(records, 0.1) == 1.0
    assert epochs_to_reach(records, 0.05) == 3.0
    assert epochs_to_reach(records, 1e-3) is None
    assert epochs_to_reach([record(0.0, float("nan"))], 1.0) is None


def test_only_certified_fits_converged():
    records = [record(0.0, 1.0), record(1.0, 0.1)]
    fit = Fit("sgd", np.zeros(1), records, "certified")
    assert fit.converged and fit.final is records[1]
    assert not fit._replace(reason="stalled").converged
