import json
import math

import numpy as np
import pytest

from experiments.reproduce import embedding_runs
from experiments.reproduce.claims import Options
from experiments.reproduce.embedding_arms import embedding_arms
from experiments.reproduce.embedding_protocol import OnePass, Trained
from experiments.reproduce.embedding_runs import (
    Configuration,
    FinishedRuns,
    evaluated,
    measure_all,
    measured_entry,
    require_untuned,
    shared_setting,
)

FULL, HASH = embedding_arms(collisions=(4,), parts=())[:2]
PARAMS = {"tables": 160, "total": 200}


class Measuring:
    """Stands for training: remembers which seeds it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, seeds):
        self.asked.append(tuple(seeds))
        return [{"loss": 0.5 + seed / 8, "auc": 0.75} for seed in seeds]


def configuration(arm=HASH, rows=10, measure=None, floor=None):
    tables = (arm.table(rows, 0),)
    return Configuration(arm, "dot", tables, PARAMS, measure or Measuring(), floor)


def test_only_missing_seeds_are_run(tmp_path):
    finished = FinishedRuns(tmp_path, {"claim": "x"})
    measure = Measuring()
    entry = measured_entry(configuration(measure=measure), finished, (1, 2))
    again = measured_entry(configuration(measure=measure), finished, (2, 3, 1))
    assert measure.asked == [(1, 2), (3,)]
    assert entry == {
        "name": "hash_c4",
        "label": "hash, c = 4",
        "family": "hash",
        "peer": "",
        "variation": False,
        "table_params": 160,
        "params": 200,
        "loss": [0.625, 0.75],
        "auc": [0.75, 0.75],
    }
    assert again["loss"] == [0.75, 0.875, 0.625]
    # Another process finds the same.
    fresh = FinishedRuns(tmp_path, {"claim": "x"})
    assert sorted(fresh.read(configuration())) == [1, 2, 3]


def test_whatever_decides_the_numbers_tells_runs_apart(tmp_path, monkeypatch):
    finished = FinishedRuns(tmp_path, {"claim": "x"})
    measured_entry(configuration(), finished, (1,))
    assert finished.read(configuration())
    assert not finished.read(configuration(rows=11))
    assert not finished.read(configuration(arm=FULL))
    assert not FinishedRuns(tmp_path, {"claim": "y"}).read(configuration())
    monkeypatch.setattr(embedding_runs, "git_commit", lambda: "another")
    assert not FinishedRuns(tmp_path, {"claim": "x"}).read(configuration())


def test_the_setting_names_claim_training_and_data():
    options = Options("qr_planted", steps=3)
    one_pass = OnePass(batch_size=8, learning_rate=0.5, steps=3)
    assert shared_setting(options, one_pass, "rows") == {
        "claim": "qr_planted",
        "training": {"batch_size": 8, "learning_rate": 0.5, "eps": 1e-8, "steps": 3},
        "data": "rows",
    }


def test_infinite_metrics_survive_the_file(tmp_path):
    finished = FinishedRuns(tmp_path, {})
    finished.write(configuration(), {4: {"loss": math.inf}})
    assert finished.read(configuration()) == {4: {"loss": math.inf}}
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text()) == {"4": {"loss": "inf"}}


def test_all_are_measured_in_their_order_with_a_line_each(tmp_path, capsys):
    options = Options("qr_planted", output_dir=tmp_path, seeds=(0, 2))
    entries = measure_all(
        [configuration(FULL, floor=0.25), configuration()], options, {}
    )
    assert [entry["name"] for entry in entries] == ["full", "hash_c4"]
    assert entries[0]["floor"] == 0.25 and "floor" not in entries[1]
    assert capsys.readouterr().out.splitlines() == [
        "[1/2] dot, full: 0.6250",
        "[2/2] dot, hash, c = 4: 0.6250",
    ]
    assert len(list((tmp_path / "qr_planted").iterdir())) == 2


def test_metrics_of_every_seed_with_the_loss_before_the_last_steps():
    logits = np.array([[0.0, 1.0], [np.nan, 1.0]], np.float32)
    losses = np.arange(16, dtype=np.float32).reshape(2, 8)
    found = evaluated(Trained(logits, losses), lambda z: {"loss": float(z.sum())})
    assert found == [
        {"loss": 1.0, "progressive_loss": 6.5},
        {"loss": math.inf, "progressive_loss": 14.5},
    ]


def test_overrides_are_refused():
    options = Options("qr_stdlib", overrides=("batch.size=8",))
    with pytest.raises(ValueError, match="--override of qr_stdlib must be left out"):
        require_untuned(options)
    require_untuned(Options("qr_stdlib"))
