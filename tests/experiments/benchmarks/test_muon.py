"""The cost of Muon: what is judged, and that the whole benchmark runs."""

import json

import numpy as np
import pytest

from experiments.benchmarks import muon
from experiments.benchmarks.muon import (
    Measured,
    Stack,
    format_summary,
    iteration_flops,
    judge,
    stacks_of,
    summarize,
)
from experiments.benchmarks.trees import TREES


def _measured(**milliseconds):
    seconds = {name: np.full(4, 1e-3 * ms) for name, ms in milliseconds.items()}
    return Measured(
        seconds=seconds,
        floors={"muon": 0.1, "muon_bfloat16": 0.05},
        flops={"muon": 1e9, "muon_bfloat16": 1e9},
        temporary=dict.fromkeys(seconds, 6.5),
        stacks=(Stack(8, 128, 256),),
        parameters=1000,
    )


SLOW_HALVES = {"adamw": 5.0, "optax_muon": 260.0, "muon": 156.0, "muon_bfloat16": 130.0}


def test_bars_are_judged_from_the_rounds():
    summary = summarize(_measured(**SLOW_HALVES), ["avx512_bf16"])
    assert [(bar["figure"], bar["met"]) for bar in summary["bars"]] == [
        (pytest.approx(0.6), True),
        (pytest.approx(0.5), False),
    ]
    text = format_summary("5M", summary)
    assert "hidden matrices: 8 of 128 x 256" in text
    assert "met      muon step / optax_muon step: 0.600 <= 0.75" in text
    assert "NOT met  muon_bfloat16 step / optax_muon step: 0.500 <= 0.45" in text


def test_half_precision_is_not_judged_without_its_instructions():
    (bar,) = judge(_measured(**SLOW_HALVES), [])
    assert bar["name"] == "muon step / optax_muon step"


def test_only_ours_have_a_floor():
    rows = {row["name"]: row for row in summarize(_measured(**SLOW_HALVES), [])["rows"]}
    assert rows["muon"]["min_over_floor"] == pytest.approx(1.56)
    assert rows["optax_muon"]["floor_ms"] is None
    assert rows["muon"]["adamw_ratio"]["median"] == pytest.approx(31.2)


def test_matrices_of_the_five_million_tree():
    # Query and output; key and value; gate, up and down: of four layers.
    stacks = {Stack(8, 128, 256), Stack(8, 256, 256), Stack(12, 256, 704)}
    assert set(stacks_of(TREES["5M"])) == stacks


def test_flops_are_those_of_every_matrix():
    one = iteration_flops(Stack(1, 64, 64), "float32")
    assert one == pytest.approx(15 * 2 * 64**3, rel=0.05)
    assert iteration_flops(Stack(3, 64, 64), "float32") == 3 * one


@pytest.mark.slow
def test_runs_on_a_tiny_tree(capsys):
    report = muon.run(["tiny"], rounds=2, warmup=1)
    assert "| muon_bfloat16" in capsys.readouterr().out
    rows = report["sizes"]["tiny"]["rows"]
    assert [row["name"] for row in rows] == list(muon.NAMES)
    assert all(row["step_ms"] > 0.0 for row in rows)
    assert all(row["floor_ms"] > 0.0 for row in rows if row["name"] in muon.DTYPES)
    json.dumps(report)


@pytest.mark.parametrize("sizes", [[], ["6M"]])
def test_refuses_unknown_sizes(sizes):
    with pytest.raises(ValueError, match="sizes must be among tiny"):
        muon.run(sizes, rounds=1)
