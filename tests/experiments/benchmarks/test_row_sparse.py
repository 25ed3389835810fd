"""The cost of row-sparse steps: what is compared, what is judged, and that it runs."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.benchmarks import row_sparse
from experiments.benchmarks.row_sparse import (
    Stepper,
    densified_step,
    fused_batches,
    judge,
    sparse_step,
    spread_batches,
    zipf_ranks,
)
from optim_jax.row_sparse import sparse_sgd


def _milliseconds(**values):
    return {name: np.full(4, 1e-3 * ms) for name, ms in values.items()}


def _growth(*milliseconds):
    rows = (10_000, 1_000_000, 10_000_000)
    return {
        ("step", n): np.full(4, 1e-3 * ms)
        for n, ms in zip(rows, milliseconds, strict=True)
    }


def test_bars_are_judged_from_the_rounds():
    temporary = {10_000: 1000, 1_000_000: 1000, 10_000_000: 2_000_000}
    densified = _milliseconds(sparse=1.0, densified=19.0)
    bars = judge(_growth(1.0, 1.2, 1.4), temporary, densified, batch=2048)
    met = {bar["name"]: (round(bar["figure"], 6), bar["met"]) for bar in bars}
    assert met == {
        "step on 1,000,000 rows / on 10,000 rows": (1.2, True),
        "step on 10,000,000 rows / on 10,000 rows": (1.4, False),
        "temporary bytes, 10,000 rows": (1000, True),
        "temporary bytes, 1,000,000 rows": (1000, True),
        "temporary bytes, 10,000,000 rows": (2_000_000, False),
        "densified step / sparse step, at least": (19.0, False),
    }
    assert judge({}, {10: 1}, _milliseconds(sparse=1, densified=20), 1)[-1]["met"]


def test_zipf_draws_follow_their_law():
    ranks = zipf_ranks(np.random.default_rng(0), 50, 200_000, exponent=1.0)
    weights = 1.0 / np.arange(1, 51)
    expected = weights / weights.sum()
    np.testing.assert_allclose(
        np.bincount(ranks, minlength=50) / 200_000, expected, rtol=0.1
    )


def test_batches_of_two_tables_repeat_the_same_samples():
    small, large = (spread_batches(rows, 500) for rows in (10_000, 1_000_000))
    assert max(map(np.max, large)) > 900_000
    for one, other in zip(small, large, strict=True):
        same_as_first = [(ids == ids[0]).tolist() for ids in (one, other)]
        assert same_as_first[0] == same_as_first[1]
        assert len(np.unique(one)) == len(np.unique(other)) < 500


def test_fused_ids_stay_in_their_tables():
    for ids in fused_batches(3, 10, 40):
        assert (ids.reshape(40, 3) // 10 == np.arange(3)).all()


def test_both_steps_compute_the_same():
    batches, targets = [np.array([3, 1, 3, 0], np.int32)], jnp.arange(4.0)
    table = jnp.full((5, row_sparse.WIDTH), 0.01)
    rule, dense = sparse_sgd(0.1), optax.sgd(0.1)
    ours = Stepper(
        sparse_step(rule), (jnp.copy(table), rule.init(table)), batches, targets, 3
    )
    theirs = Stepper(
        densified_step(dense), (jnp.copy(table), dense.init(table)), batches, targets, 3
    )
    np.testing.assert_allclose(ours.run()[0], theirs.run()[0], rtol=1e-5)


@pytest.mark.slow
def test_runs_on_small_tables(monkeypatch, capsys):
    monkeypatch.setattr(row_sparse, "_POPULAR", 50)
    report = row_sparse.run(
        rounds=2, sizes=(60, 500), densified_rows=500, fused_rows=40, batch=32
    )
    printed = capsys.readouterr().out
    assert "| jnp.unique" in printed and "temporary bytes, 500 rows" in printed
    assert [row["name"] for row in report["growth"]] == [
        "step, 60 rows",
        "step, 500 rows",
        "addition, 60 rows",
        "addition, 500 rows",
    ]
    rows = report["growth"] + report["densified"] + report["fused"]
    assert all(row["min_ms"] > 0.0 for row in rows)
    json.dumps(report)
