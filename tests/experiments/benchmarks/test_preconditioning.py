"""The cost of Shampoo: what is judged, and that the whole benchmark runs."""

import numpy as np
import pytest

from experiments.benchmarks import preconditioning
from experiments.benchmarks.preconditioning import MethodFigures, judge


def _figures(**changes):
    figures = {
        "step": 20.0,
        "statistics": 9.0,
        "refresh": 150.0,
        "floor": 16.0,
        "temporary": 6.0,
        "cond_max": 170.0,
        "staggered": np.full(100, 36.0),
    }
    return MethodFigures(**figures | changes)


def test_a_period_shares_out_the_refresh():
    assert _figures().mean(10) == 35.0 and _figures().mean(100) == 21.5


def test_bars():
    slow = _figures(step=40.0, temporary=9.5, staggered=np.full(100, 60.0))
    bars = {
        bar["name"]: (bar["figure"], bar["met"])
        for bar in judge(1.0, {"shampoo": _figures(), "soap": slow})
    }
    assert bars["Shampoo, period 10 / adamw"] == (35.0, True)
    assert bars["Shampoo, period 100 / adamw"] == (21.5, True)
    assert bars["SOAP, period 10 / adamw"] == (55.0, False)
    assert bars["shampoo: step without refresh / floor"] == (1.25, True)
    assert bars["soap: temporary bytes per parameter"] == (9.5, False)
    assert bars["soap: staggered max / cond max"][1] is False
    assert bars["shampoo: staggered p99 / median"] == (1.0, True)


def test_the_slowest_percentile_counts():
    seconds = np.full(100, 10.0)
    seconds[:3] = 20.0
    (bar,) = (
        bar
        for bar in judge(
            1.0, {"shampoo": _figures(staggered=seconds), "soap": _figures()}
        )
        if bar["name"] == "shampoo: staggered p99 / median"
    )
    assert bar["figure"] == pytest.approx(2.0) and not bar["met"]


@pytest.mark.slow
def test_runs_on_a_tiny_tree(capsys):
    report = preconditioning.report_on("tiny", rounds=1, block=32)
    printed = capsys.readouterr().out
    assert "| shampoo |" in printed and "each step" in printed
    for figures in report["methods"].values():
        assert figures["step_ms"] > 0.0 and figures["refresh_ms"] > 0.0
    assert len(report["bars"]) == 11
