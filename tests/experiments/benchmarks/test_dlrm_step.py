"""The cost of a DLRM step: what is judged, and that the whole benchmark runs."""

import json

import jax
import numpy as np
import pytest

from experiments.benchmarks import dlrm_step, torch_dlrm
from experiments.benchmarks.dlrm_step import (
    Measured,
    draw_batches,
    format_summary,
    judge,
    kaggle_config,
    summarize,
    touched_bytes,
)
from models.dlrm import DLRMConfig, count_params
from models.embeddings import TableConfig
from tests.experiments.training.sparse_runs import adagrad_step


def _measured(**milliseconds):
    return Measured(
        seconds={name: np.full(4, 1e-3 * ms) for name, ms in milliseconds.items()},
        batch=2000,
        flops=6e9,
        bytes=20e6,
        product_flops=0.8e9,
        copy_bytes=400e6,
        losses={"step": [0.7, 0.6]},
    )


PARTS = {"gradients": 70.0, "product": 8.0, "copy": 20.0}


def test_bars_are_judged_from_the_rounds():
    slow = _measured(step=80.0, pytorch=100.0, **{"table update": 9.0}, **PARTS)
    assert [(bar["figure"], bar["met"]) for bar in judge(slow)] == [
        (pytest.approx(9.0), False),
        (pytest.approx(1.25), False),
    ]
    fast = _measured(step=80.0, pytorch=120.0, **{"table update": 8.0}, **PARTS)
    assert all(bar["met"] for bar in judge(fast))
    alone = _measured(step=80.0, **{"table update": 8.0}, **PARTS)
    assert [bar["limit"] for bar in judge(alone)] == [dlrm_step.UPDATE_MS]


def test_floor_is_that_of_products_and_copies():
    measured = _measured(step=122.0, pytorch=150.0, **{"table update": 5.0}, **PARTS)
    summary = summarize(measured)
    # 6 GFLOP at 100 GFLOP/s, and 20 MB at 20 GB/s.
    assert summary["floor"]["of_flops_ms"] == pytest.approx(60.0)
    assert summary["floor"]["of_bytes_ms"] == pytest.approx(1.0)
    assert summary["step_min_over_floor"] == pytest.approx(2.0)
    text = format_summary(summary)
    assert "step, minimum over floor: 2.00" in text
    assert "16,393" in text  # samples of a second
    assert "NOT met  samples/s / pytorch's, at least: 1.23, limit 1.5" in text


def test_shapes_are_the_published_ones():
    counts = count_params(kaggle_config(10**9))
    assert counts["tables"] == 540_201_232
    assert counts["bottom"] + counts["top"] == 475_985
    assert max(table.rows for table in kaggle_config(1000).tables) == 1000


def test_distinct_rows_are_touched_once():
    config = DLRMConfig((TableConfig(5, 16),), (13, 16), (1,))
    ids = np.array([[0, 3, 3, 0]])
    dense = 13 * 16 + 16 + 17 + 1
    # A row is read, and read and written; a statistic is read and written.
    assert touched_bytes(config, [{"ids": ids}]) == 4 * (2 * (3 * 16 + 2) + 6 * dense)


def test_popular_ids_lie_anywhere():
    config = DLRMConfig((TableConfig(1000, 16),), (13, 16), (1,))
    batches = draw_batches(config, 4000)
    values, counts = np.unique(batches[0]["ids"], return_counts=True)
    assert counts.max() > 10 * counts.mean() and values[counts.argmax()] != 0
    assert values[counts.argmax()] in batches[1]["ids"]


def test_peer_takes_the_same_steps():
    pytest.importorskip(torch_dlrm.PACKAGE)
    config = DLRMConfig((TableConfig(9, 4), TableConfig(5, 4)), (3, 6, 4), (8, 1))
    step = adagrad_step(config)
    batches = draw_batches(config, 16)[:3]
    params = step.model.init(jax.random.key(0))
    peer = torch_dlrm.TorchDLRM(config, params, 0.1, threads=1)
    state = step.init(params)
    for batch in batches:
        state, metrics = step.step(state, batch)
        loss = float(peer.step(peer.place(batch)))
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    found = step.params(state)["tables"]
    for table, bag in zip(("0", "1"), peer.tables, strict=True):
        np.testing.assert_allclose(
            found[table]["table"], bag.weight.detach().numpy(), rtol=1e-4, atol=1e-5
        )


@pytest.mark.slow
def test_runs_on_small_tables(capsys):
    report = dlrm_step.run(cap=50, batch=64, rounds=2, threads=1, warmup=1)
    assert "| table update" in capsys.readouterr().out
    names = {"step", "gradients", "table update", "product", "copy"}
    if torch_dlrm.IS_INSTALLED:
        names |= {"pytorch"}
        ours, theirs = report["losses"]["step"], report["losses"]["pytorch"]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert {row["name"] for row in report["rows"]} == names
    assert all(row["ms"] > 0.0 for row in report["rows"])
    json.dumps(report)


@pytest.mark.parametrize("options", [{"cap": 0}, {"batch": 0}])
def test_refuses_empty_sizes(options):
    with pytest.raises(ValueError, match="must be >= 1, got 0"):
        dlrm_step.run(**({"cap": 5, "batch": 5, "rounds": 1, "threads": 1} | options))
