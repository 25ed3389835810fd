"""Figures are written where asked, and a refusal is a usage error."""

import json

import pytest
from absl import app

from experiments.benchmarks.command_line import measure_and_store

REPORT = {
    "provenance": {"machine": {"cpu": "a processor"}},
    "cores_used": 2,
    "load_average": 0.25,
    "rounds": 3,
    "figure": 1.5,
}


def test_figures_are_printed_and_written(tmp_path, capsys):
    path = tmp_path / "new" / "figures.json"
    measure_and_store(lambda: REPORT, threads=0, path=str(path))
    assert json.loads(path.read_text()) == REPORT
    assert "a processor, 2 cores used, load 0.2; 3 rounds" in capsys.readouterr().out


def test_nothing_is_written_unasked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measure_and_store(lambda: REPORT, threads=0, path="")
    assert not list(tmp_path.iterdir())


def test_a_refusal_is_a_usage_error():
    def refuse():
        raise ValueError("rounds must be >= 1")

    with pytest.raises(app.UsageError, match="rounds must be"):
        measure_and_store(refuse, threads=0, path="")
    with pytest.raises(app.UsageError, match="threads must lie in"):
        measure_and_store(lambda: REPORT, threads=10**6, path="")
