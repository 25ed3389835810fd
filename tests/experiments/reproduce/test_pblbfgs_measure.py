import math

import jax
import numpy as np
import pytest

from experiments.logistic.baselines import run_lbfgs
from experiments.logistic.problem import dense_problem
from experiments.logistic.reference_optimum import reference_optimum
from experiments.reproduce.pblbfgs_arms import GAPS, ConvexArm
from experiments.reproduce.pblbfgs_measure import (
    TOL,
    ProgressiveRuns,
    measure_peer,
    points_of,
    summary_of,
)
from experiments.reproduce.pblbfgs_trace import Point

# The smallest program: no test, so that the batch stays, and no groups.
OPTIONS = {
    "batch_size": 40,
    "memory_size": 3,
    "test": "none",
    "init_step": "unit",
    "overlap": "full",
    "first_step": "unit",
}


@pytest.fixture(scope="module")
def problem():
    generator = np.random.default_rng(5)
    features = generator.standard_normal((240, 3))
    labels = np.where(features[:, 0] + generator.standard_normal(240) > 0, 1.0, -1.0)
    with jax.enable_x64(True):
        yield dense_problem(features, labels, l2=0.1, name="small")


@pytest.fixture(scope="module")
def runs(problem):
    arm = ConvexArm("small", "small", "pb_lbfgs", OPTIONS, max_epochs=4.0)
    return ProgressiveRuns(problem, reference_optimum(problem).value, arm)


@pytest.fixture(scope="module")
def whole(problem):
    arm = ConvexArm("whole", "whole", "pb_lbfgs", {**OPTIONS, "batch_size": "N"})
    arm = arm._replace(certified=True, max_epochs=3.0)
    return ProgressiveRuns(problem, reference_optimum(problem).value, arm)


def test_stops_do_not_change_a_run(runs, problem):
    """Looked at in strides and run through: the same points, bit by bit."""
    start = runs.start(3)
    points, result = runs.look(start, last_gap=0.0)
    # An iteration of 40 samples, twice each, is more than a twentieth of an epoch.
    assert [point.iterations for point in points] == list(range(len(points)))
    assert points[-1].epochs > 4.0 >= points[-2].epochs
    assert {point.batch_size for point in points[1:]} == {40}
    through = runs.advance(start, points[-1].iterations)
    np.testing.assert_array_equal(through.params, result.params)
    assert through.grad_evals == result.grad_evals
    np.testing.assert_array_equal(np.diff(through.history.grad_evals), 80)
    np.testing.assert_allclose([p.epochs for p in points[1:]], through.history.epochs)


def test_a_run_is_measured_to_every_gap(runs):
    run = runs.measure(0)
    for index, gap in enumerate(GAPS):
        reached = run["epochs"][index] is not None
        assert reached == (min(run["curve"]["gap"]) <= gap)
        for name in ("iterations", "work", "seconds"):
            assert (run[name][index] is not None) == reached
    assert run["epochs"][0] is not None and run["epochs"][-1] is None
    # Trials of the line search are in the work.
    assert run["work"][0] > run["epochs"][0]
    assert run["reason"] == "max_epochs" and run["init_seconds"] > 0.0
    assert runs.measure(0)["curve"] == run["curve"]
    assert runs.measure(1)["curve"] != run["curve"]
    short = runs.measure(0, last_gap=GAPS[0])
    assert short == summary_of(
        [Point(0, 0.0, 1.0)] + [p for p in runs.look(runs.start(0), GAPS[0])[0][1:]]
    )
    assert "seconds" not in short


def test_a_certified_arm_goes_on_to_the_certificate(whole, problem):
    run = whole.measure(0)
    assert run["curve"]["epochs"][-1] == 4.0  # the first look beyond its epochs
    assert run["reason"] == "certified" and run["end_epochs"] > 4.0
    assert run["grad_norm"] <= TOL


def test_none_stands_for_what_was_not_reached():
    points = [Point(0, 0.0, 0.7), Point(4, 1.5, 0.01, 64, 2.0), Point(5, 2.0, 0.002)]
    assert summary_of(points) == {
        "iterations": [4, None, None, None],
        "epochs": [1.5, None, None, None],
        "work": [2.0, None, None, None],
    }


def test_peers_are_measured_by_their_records(problem):
    optimum = reference_optimum(problem).value
    run = measure_peer(problem, optimum, ConvexArm("o", "o", "lbfgs"), seed=0)
    records = run_lbfgs(problem, optimum=optimum).records
    first = next(record for record in records if record.gap <= GAPS[1])
    assert (run["iterations"][1], run["epochs"][1]) == (first.iteration, first.epochs)
    assert run["reason"] == "certified" and run["work"] == run["epochs"]
    seconds = run["seconds"]
    assert seconds == sorted(seconds) and seconds[0] > 0.0


def test_a_step_far_too_long_leaves_infinite_gaps(problem):
    arm = ConvexArm("sgd", "sgd", "sgd", max_epochs=3.0)
    optimum = reference_optimum(problem).value
    run = measure_peer(problem, optimum, arm, seed=0, learning_rate=1e300)
    assert run["reason"] == "diverged" and run["curve"]["gap"][-1] == math.inf
    assert run["epochs"] == [None] * len(GAPS)
    good = measure_peer(problem, optimum, arm, seed=0, learning_rate=0.05)
    assert good["epochs"][0] in (1.0, 2.0, 3.0)


def test_points_keep_what_a_record_tells(problem):
    fit = run_lbfgs(problem, max_epochs=3.0)
    # F* was not given, so no gap is within anything.
    assert all(point.gap == math.inf for point in points_of(fit))
    assert [point.epochs for point in points_of(fit)] == [
        record.epochs for record in fit.records
    ]
