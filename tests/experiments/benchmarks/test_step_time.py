import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments.benchmarks import step_time
from experiments.benchmarks.update_step import Memory

ROOT = pathlib.Path(__file__).resolve().parents[3]


def _measured(**milliseconds):
    memory = Memory(state=12.0, scalars=8, temporary=0.0, traffic=36.0)
    seconds = {name: np.full(4, 1e-3 * ms) for name, ms in milliseconds.items()}
    return step_time.Measured(
        seconds=seconds,
        update_seconds=seconds,
        memory=dict.fromkeys(seconds, memory),
        bandwidth=1e9,
        parameters=10_000,
        leaves=3,
    )


def test_bars_are_judged_from_the_rounds():
    summary = step_time.summarize(
        _measured(adamw=1.0, gpa_adamw=1.1, schedule_free_adamw=1.2)
    )
    met = {bar["name"]: bar["met"] for bar in summary["bars"]}
    assert met == {
        "gpa_adamw step / adamw step": True,
        "gpa_adamw step / schedule_free_adamw step": False,
        "gpa_adamw state bytes per parameter": True,
        "gpa_adamw temporary bytes per parameter": True,
    }
    text = step_time.format_summary("5M", summary)
    assert "NOT met  gpa_adamw step / schedule_free_adamw step: 0.917 <= 0.9" in text
    assert "met      gpa_adamw step / adamw step: 1.100 <= 1.2" in text


def test_floor_is_traffic_over_bandwidth():
    (row,) = step_time.summarize(_measured(adamw=0.72))["rows"]
    # 36 bytes x 10,000 parameters at 1 GB/s are 0.36 ms.
    assert row["floor_ms"] == pytest.approx(0.36)
    assert row["min_over_floor"] == pytest.approx(2.0)


def test_bars_of_absent_contenders_are_left_out():
    assert step_time.summarize(_measured(adamw=1.0))["bars"] == []


def test_only_keeps_the_reference():
    assert step_time.contender_names(["lion"]) == ["adamw", "lion"]
    assert step_time.contender_names([]) == list(step_time.CONTENDERS)


@pytest.mark.parametrize(
    "sizes, only, message",
    [
        (["6M"], [], r"sizes must be among tiny, .*got 6M"),
        ([], [], "sizes must be among"),
        (["tiny"], ["adamm"], r"only must name contenders among adamw, .*got adamm"),
    ],
)
def test_refuses_unknown_names(sizes, only, message):
    with pytest.raises(ValueError, match=message):
        step_time.run(sizes, only, rounds=1)


def test_run_returns_sane_ratios():
    report = step_time.run(["tiny"], ["gpa_adamw"], rounds=3, warmup=1)
    summary = report["sizes"]["tiny"]
    assert summary["parameters"] == 16_480
    adamw, gpa = summary["rows"]
    assert set(adamw["ratio"].values()) == {1.0}
    assert gpa["name"] == "gpa_adamw" and gpa["bytes_per_parameter"]["state"] == 12
    assert 0.05 < gpa["ratio"]["minimum"] < 50
    assert gpa["ratio"]["lower_quartile"] <= gpa["ratio"]["upper_quartile"]
    json.dumps(report)


@pytest.mark.slow
def test_binary_writes_json(tmp_path):
    path = tmp_path / "out" / "step_time.json"
    arguments = ["--sizes=tiny", "--only=lion", "--rounds=2", "--threads=1"]
    completed = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.step_time", *arguments]
        + [f"--json={path}"],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(path.read_text())
    assert report["cores_used"] == 1 and report["rounds"] == 2
    assert {"machine", "versions"} <= set(report["provenance"])
    assert [row["name"] for row in report["sizes"]["tiny"]["rows"]] == ["adamw", "lion"]
    assert "x adamw [quartiles]" in completed.stdout
