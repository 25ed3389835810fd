"""The benchmark of progressive-batching L-BFGS: what is judged, and a small run."""

import json

import pytest

from experiments.benchmarks import pb_lbfgs


def _ratio(median):
    return {
        "median": median,
        "lower_quartile": median,
        "upper_quartile": median,
        "minimum": median,
    }


def _row(name, gradients, milliseconds, ratio):
    return {
        "name": name,
        "gradients": gradients,
        "milliseconds": milliseconds,
        "ratio": _ratio(ratio),
    }


def test_bars_compare_with_the_fastest_scipy():
    report = {
        "full_batch": {
            "small": {
                "rows": [
                    _row("optim_jax", 31, 1.0, 1.0),
                    _row("optax", 30, 1.25, 0.8),
                    _row("SciPy, compiled, own end", 30, 10.0, 0.1),
                    _row("SciPy, NumPy, own end", 30, 1.25, 0.8),
                ]
            }
        },
        "progressive": {"small": {"rows": [_row("progressive", 0, 1.0, 0.4)]}},
        "statistics": {"small": _ratio(1.2)},
    }
    bars = {bar["name"]: bar for bar in pb_lbfgs.judge(report)}
    assert [bar["met"] for bar in bars.values()] == [False, True, False, True, False]
    assert bars["small: gradients / Optax's"]["figure"] == pytest.approx(31 / 30)
    assert bars["small: time / SciPy, NumPy, own end"]["figure"] == 0.8


@pytest.mark.slow
def test_whole_benchmark(capsys):
    report = pb_lbfgs.run(rounds=1, large_rows=2000, large_rounds=1)
    printed = capsys.readouterr().out
    assert "| optax " in printed and "progressive / full batch" in printed
    assert {"breast_cancer", "synthetic_7000x50"} == set(report["full_batch"])
    assert report["memory"]["pairs"] == pytest.approx(20.0, abs=0.01)
    assert all(bar["figure"] > 0 for bar in report["bars"])
    json.dumps(report)


@pytest.mark.slow
def test_memory_of_an_iteration_does_not_grow_with_the_pairs():
    memory = pb_lbfgs.iteration_memory()
    assert memory["pairs"] == pytest.approx(20.0, abs=0.01)
    assert memory["temporaries"] < 12.0
