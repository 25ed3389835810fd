"""Fits from a configuration, end to end, for every method."""

import dataclasses
import json
import re

import numpy as np
import pytest

from experiments.logistic import fitting
from experiments.logistic.baselines import STOCHASTIC
from experiments.logistic.datasets import DatasetConfig
from experiments.logistic.fitting import METHODS, FitConfig, run
from experiments.training.metrics import read_metrics

TINY = FitConfig(
    dataset=DatasetConfig("synthetic", rows=256, features=4),
    max_epochs=6.0,
)


def config_of(method, **changes):
    if method in STOCHASTIC and "learning_rate" not in changes:
        changes["tuning_epochs"] = 2.0
    return dataclasses.replace(TINY, method=method, **changes)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_rows_figures_and_a_summary(method, tmp_path, capsys):
    outcome = run(config_of(method), tmp_path / "run", progress=False)
    folder = tmp_path / "run"
    rows = read_metrics(folder)
    assert [row["step"] for row in rows] == [
        record.iteration for record in outcome.fit.records
    ]
    for row, record in zip(rows, outcome.fit.records, strict=True):
        assert row["value"] == record.value and row["gap"] == record.gap
        assert row["epochs"] == record.epochs and row["wall_s"] == record.seconds
        assert row["tokens"] == round(record.epochs * 256)
    assert rows[0]["value"] == pytest.approx(np.log(2.0))
    assert 0 <= rows[-1]["gap"] < rows[0]["gap"]
    assert {"batch_size"} <= set(rows[-1])
    if method == "pb_lbfgs":
        assert outcome.fit.reason == "max_epochs"
        assert rows[-2]["epochs"] < 6 <= rows[-1]["epochs"]
        assert {"step_size", "ratio", "r_U", "backtracks", "pair"} <= set(rows[-1])
    for name in ("gap.png", "batch_size.png"):
        assert (folder / name).stat().st_size > 10_000
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["value"] == outcome.fit.final.value
    assert summary["reason"] == outcome.fit.reason
    status = json.loads((folder / "run_status.json").read_text())
    assert status["status"] == "finished" and status["reason"] == outcome.fit.reason
    stored = json.loads((folder / "config.json").read_text())
    assert stored["method"] == method and stored["dataset"]["rows"] == 256
    assert (folder / "provenance.json").exists()
    first, second, third = outcome.message.splitlines()
    assert first.startswith(f"{method} on synthetic_256x4 (256 x 4, l2=0.003906): ")
    assert re.fullmatch(r"F = 0\.\d+, F - F\* = .*, max \|gradient\| = .*", second)
    assert third == str(folder)
    said = capsys.readouterr().out
    assert ("learning rate " in said) == (method in STOCHASTIC)


def test_float32_runs_against_a_float64_optimum(tmp_path):
    dataset = dataclasses.replace(TINY.dataset, dtype="float32")
    config = config_of("lbfgs", dataset=dataset, tol=1e-6, max_epochs=40.0)
    outcome = run(config, tmp_path / "run", progress=False)
    assert outcome.fit.params.dtype == np.float32
    assert outcome.fit.converged and outcome.optimum.converged
    # Below what a float32 mean can tell apart, and not negative.
    assert 0 <= outcome.fit.final.gap < 1e-9


def test_a_rate_that_diverges_is_reported(tmp_path):
    config = config_of("sgd", learning_rate=1e308)
    outcome = run(config, tmp_path / "run", progress=False)
    assert outcome.fit.reason == "diverged"
    status = json.loads((tmp_path / "run" / "run_status.json").read_text())
    assert status["status"] == "diverged"
    assert read_metrics(tmp_path / "run")[-1]["value"] != 0


def test_given_learning_rate_is_taken(tmp_path, capsys):
    config = config_of("sgd", learning_rate=0.125, max_epochs=2.0)
    outcome = run(config, tmp_path / "run", progress=False)
    assert outcome.fit.final.details["learning_rate"] == 0.125
    assert capsys.readouterr().out == ""


def test_failure_is_written_down(tmp_path, monkeypatch):
    def fail(problem):
        raise MemoryError("no room for the Hessian")

    monkeypatch.setattr(fitting, "reference_optimum", fail)
    with pytest.raises(MemoryError):
        run(config_of("lbfgs"), tmp_path / "run", progress=False)
    status = json.loads((tmp_path / "run" / "run_status.json").read_text())
    assert status["status"] == "failed"
    assert status["reason"] == "MemoryError: no room for the Hessian"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "pb_lbfgs", "solver": {"theta": -1.0}}, "theta must be > 0"),
        ({"method": "pb_lbfgs", "batch_size": 1}, "batch_size must be .*>= 2, got 1"),
        ({"method": "sgd", "batch_size": 257}, r"batch_size must lie in \[1, 256\]"),
    ],
)
def test_refused_options_leave_nothing_behind(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(config_of(**change), tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_folder_of_another_run_is_refused(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(ValueError, match="already holds a run"):
        run(config_of("lbfgs"), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"method": "newton"},
            "method must be one of pb_lbfgs, lbfgs, sgd, svrg, adam",
        ),
        (
            {"method": "lbfgs", "batch_size": 8},
            "batch_size=8 is for pb_lbfgs, sgd, svrg, adam, not for lbfgs",
        ),
        (
            {"method": "sgd", "memory_size": 5},
            "memory_size=5 is for pb_lbfgs, lbfgs, not for sgd",
        ),
        (
            {"method": "pb_lbfgs", "learning_rate": 0.1},
            "learning_rate=0.1 is for sgd, svrg, adam, not for pb_lbfgs",
        ),
        (
            {"method": "lbfgs", "solver": {"theta": 0.9}},
            "theta=0.9 is for pb_lbfgs, not for lbfgs",
        ),
        (
            {"method": "sgd", "seed": 1001},
            "seed=1001 is a seed of the learning rate's search",
        ),
        ({"max_epochs": 0.0}, "max_epochs must be > 0 and finite, got 0.0"),
        ({"max_epochs": float("inf")}, "max_epochs must be > 0 and finite, got inf"),
        ({"tol": -1.0}, "tol must be >= 0, got -1.0"),
        ({"memory_size": 0}, "memory_size must be >= 1, got 0"),
        (
            {"method": "sgd", "learning_rate": 0.0},
            "learning_rate must be > 0 and finite, got 0.0",
        ),
    ],
)
def test_bad_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FitConfig(**change)


def test_a_seed_of_the_search_may_report_with_a_given_rate():
    assert not FitConfig(method="sgd", seed=1001, learning_rate=0.1).tunes
