"""Batches of clicks: every sample once, resumable, shared out over processes."""

import itertools

import numpy as np
import pytest

from experiments.data.click_batches import (
    ArrayBatches,
    BagBatches,
    Clicks,
    Part,
    validation_batches,
)
from experiments.data.reference_random import random_batches
from models.click_batch import BatchRules

SIZE = 23
RULES = BatchRules((SIZE, 5), 1)


def _clicks():
    number = np.arange(SIZE)
    return Clicks(
        number[:, None].astype(np.float32),
        np.stack([number, number % 5], 1),
        (number % 2).astype(np.float32),
    )


def _samples(batch):
    return batch["ids"][0][batch["weights"] > 0].tolist()


def _take(iterator, count):
    return list(itertools.islice(iterator, count))


def test_every_epoch_has_every_sample_once_in_another_order():
    batches = _take(iter(ArrayBatches(_clicks(), RULES, Part(8), seed=3)), 6)
    first, second = (
        [i for batch in epoch for i in _samples(batch)]
        for epoch in (batches[:3], batches[3:])
    )
    assert sorted(first) == sorted(second) == list(range(SIZE))
    assert first != second
    assert all(batch["ids"].shape == (2, 8) for batch in batches)
    assert batches[2]["weights"].tolist() == [1.0] * 7 + [0.0]
    for batch in batches:
        np.testing.assert_array_equal(batch["dense"][:, 0], batch["ids"][0])
        np.testing.assert_array_equal(batch["labels"], batch["ids"][0] % 2)


def test_without_a_seed_the_order_is_that_of_the_data():
    batches = _take(iter(ArrayBatches(_clicks(), RULES, Part(8), seed=None)), 4)
    assert _samples(batches[0]) == list(range(8)) == _samples(batches[3])


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_position_goes_on_exactly_there(stop):
    dataset = ArrayBatches(_clicks(), RULES, Part(8), seed=3)
    straight = _take(iter(dataset), 7)
    iterator = iter(dataset)
    _take(iterator, stop)
    state = iterator.get_state()
    resumed = iter(dataset)
    resumed.set_state(state)
    for a, b in zip(straight[stop:], _take(resumed, 7 - stop), strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_processes_take_their_part_of_the_same_batches():
    whole = _take(iter(ArrayBatches(_clicks(), RULES, Part(8), seed=3)), 3)
    parts = [
        _take(iter(ArrayBatches(_clicks(), RULES, Part(8, p, 2), seed=3)), 3)
        for p in range(2)
    ]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert _samples(batch) == _samples(first) + _samples(second)
        assert len(first["dense"]) == len(second["dense"]) == 4


def test_validation_keeps_the_order_and_stops():
    batches = list(validation_batches(_clicks(), RULES, Part(8), most=2))
    assert [_samples(b) for b in batches] == [list(range(8)), list(range(8, 16))]
    batches = list(validation_batches(_clicks(), RULES, Part(8), most=10))
    assert sum(len(_samples(b)) for b in batches) == SIZE


def test_generated_bags_fill_one_shape():
    drawn = list(
        random_batches(
            seed=1,
            rows=(7, 3),
            num_dense=2,
            batch_size=4,
            num_batches=0,
            data_size=10,
            indices_per_lookup=3,
            fixed=False,
            round_targets=True,
            distribution="uniform",
        )
    )
    assert [len(batch.dense) for batch in drawn] == [4, 4, 2]
    iterator = iter(BagBatches(drawn, BatchRules((7, 3), 2, capacities=(12, 12))))
    batches = _take(iterator, 4)
    assert {batch["ids"].shape for batch in batches} == {(2, 12)}
    assert batches[2]["weights"].tolist() == [1, 1, 0, 0]
    np.testing.assert_array_equal(batches[0]["ids"], batches[3]["ids"])
    real = batches[2]["segments"][0] < 4
    assert real.sum() == len(drawn[2].ids[0])
    np.testing.assert_array_equal(batches[2]["ids"][0][real], drawn[2].ids[0])
    assert np.all(batches[2]["ids"][0][~real] == 7)
