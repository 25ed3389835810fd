"""Shares of a batch hold its samples once each, and few shapes."""

import dataclasses

import numpy as np
import pytest

from experiments.sharding import batch_shares as module
from experiments.sharding.batch_shares import batch_shares, share_capacities
from models.click_batch import BatchRules
from models.dlrm import make_batch

RULES = BatchRules((9, 5), 3)


def _bags(size, seed=0, longest=3, rules=RULES, weighted=False):
    """A batch of bags, and the bags as lists by table and sample."""
    rng = np.random.default_rng(seed)
    lengths = [rng.integers(0, longest + 1, size) for _ in rules.rows]
    ids = [
        rng.integers(0, rows, of_table.sum())
        for rows, of_table in zip(rules.rows, lengths, strict=True)
    ]
    batch = make_batch(
        rules,
        rng.normal(size=(size, 3)),
        ids,
        lengths=lengths,
        id_weights=[rng.random(len(i)) for i in ids] if weighted else None,
        labels=rng.integers(0, 2, size),
    )
    bags = [
        np.split(of_table, np.cumsum(counts)[:-1])
        for of_table, counts in zip(ids, lengths, strict=True)
    ]
    return batch, bags


def _check_bags(shares, bags, size, parts):
    share = shares["dense"].shape[1]
    for table, of_table in enumerate(bags):
        for sample, bag in enumerate(of_table):
            part, place = divmod(sample, share)
            if isinstance(shares["ids"], tuple):
                ids, segments = (shares[n][table][part] for n in ("ids", "segments"))
            else:
                ids, segments = (shares[n][part, table] for n in ("ids", "segments"))
            np.testing.assert_array_equal(ids[segments == place], bag)
            assert (np.diff(segments) >= 0).all()
            assert (ids[segments == share] == np.iinfo(np.int32).max).all()
    assert shares["weights"].shape == (parts, share)
    assert shares["weights"].sum() == size


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [3, 10, 16])
def test_bags_keep_their_ids_in_order(size, parts):
    batch, bags = _bags(size)
    shares = batch_shares(batch, parts)
    _check_bags(shares, bags, size, parts)
    flat = shares["dense"].reshape(-1, 3)
    np.testing.assert_array_equal(flat[:size], batch["dense"])
    assert not flat[size:].any() and not shares["labels"].reshape(-1)[size:].any()


def test_tables_may_have_capacities_of_their_own():
    rules = dataclasses.replace(RULES, capacities=(40, 24))
    batch, bags = _bags(10, rules=rules)
    shares = batch_shares(batch, 4)
    assert [ids.shape[0] for ids in shares["ids"]] == [4, 4]
    _check_bags(shares, bags, 10, 4)


def test_weights_of_ids_go_with_them():
    batch, _ = _bags(10, weighted=True)
    shares = batch_shares(batch, 4)
    for table in (0, 1):
        count = (batch["segments"][table] < 10).sum()
        kept = shares["segments"][:, table] < shares["dense"].shape[1]
        np.testing.assert_array_equal(
            shares["id_weights"][:, table][kept], batch["id_weights"][table][:count]
        )
        assert not shares["id_weights"][:, table][~kept].any()


def test_one_id_for_each_sample():
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, rows, 10) for rows in RULES.rows]
    batch = make_batch(RULES, rng.normal(size=(10, 3)), ids)
    shares = batch_shares(batch, 4)
    assert "labels" not in shares and "segments" not in shares
    assert shares["ids"].shape == (4, 2, 3)
    flat = shares["ids"].swapaxes(0, 1).reshape(2, 12)
    np.testing.assert_array_equal(flat[:, :10], np.stack(ids))
    assert (flat[:, 10:] == np.iinfo(np.int32).max).all()
    np.testing.assert_array_equal(
        shares["weights"].reshape(-1), np.repeat([1.0, 0.0], [10, 2])
    )


def test_weights_of_samples_are_kept():
    batch, _ = _bags(4)
    batch["weights"] = np.array([0.0, 2.0, 1.0, 0.5], np.float32)
    shares = batch_shares(batch, 3)
    np.testing.assert_array_equal(
        shares["weights"].reshape(-1), [0.0, 2.0, 1.0, 0.5, 0.0, 0.0]
    )


def test_few_shapes_whatever_the_lengths():
    rules = dataclasses.replace(RULES, capacities=(96, 64))
    shapes = set()
    for seed in range(100):
        longest = 1 + seed % 3
        batch, _ = _bags(24, seed, longest, rules)
        shapes.add(tuple(i.shape for i in batch_shares(batch, 8)["ids"]))
    # A share has an eighth, a quarter, half or all of the batch's room.
    assert len(shapes) <= 4


def test_room_grows_for_all_tables_together():
    whole, fraction = np.array([96, 64]), 1 / 8
    assert list(share_capacities(whole, np.array([12, 8]), fraction)) == [12, 8]
    assert list(share_capacities(whole, np.array([12, 9]), fraction)) == [24, 16]
    assert list(share_capacities(whole, np.array([0, 64]), fraction)) == [96, 64]


def test_processes_with_fewer_samples_get_shapes_of_the_fullest(monkeypatch):
    small, bags = _bags(3, longest=1)
    large, _ = _bags(10, seed=1, longest=3)
    seen = []
    monkeypatch.setattr(
        module, "_over_processes", lambda own, _: seen.append(own) or own
    )
    expected = batch_shares(large, 2, 2)
    largest = iter(list(seen))
    monkeypatch.setattr(module, "_over_processes", lambda own, _: next(largest))
    shares = batch_shares(small, 2, 2)
    assert {n: a.shape for n, a in shares.items()} == {
        n: a.shape for n, a in expected.items()
    }
    _check_bags(shares, bags, 3, 2)
