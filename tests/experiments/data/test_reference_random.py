"""Generated batches against the original implementation's, bit by bit."""

import json
import math

import jax
import numpy as np
import pytest

from experiments.data.reference_random import random_batches, synthetic_batches
from experiments.data.stack_distances import StackDistances, draw_trace

SETTINGS = dict(
    seed=123,
    rows=(4, 3, 2),
    num_dense=4,
    batch_size=2,
    num_batches=3,
    indices_per_lookup=10,
    fixed=False,
    round_targets=False,
)


def _uniform(**changes):
    return random_batches(**{**SETTINGS, "distribution": "uniform", **changes})


def _bags(batch, table):
    return np.split(batch.ids[table], batch.offsets[table][1:])


def test_the_original_batches_bit_by_bit(golden_dir):
    config = json.loads((golden_dir / "dlrm" / "random_batches.json").read_text())
    arrays = np.load(golden_dir / "dlrm" / "random_batches.npz", allow_pickle=False)
    batches = random_batches(
        seed=config["seed"],
        rows=config["ln_emb"],
        num_dense=config["m_den"],
        batch_size=config["batch"],
        num_batches=config["num_batches"],
        indices_per_lookup=config["num_indices_per_lookup"],
        fixed=config["fixed"],
        round_targets=config["round_targets"],
        distribution=config["dist"],
    )
    compared = 0
    for number, batch in enumerate(batches):
        found = {"dense": batch.dense, "label": batch.labels}
        for table in range(3):
            found[f"offsets_{table}"] = batch.offsets[table]
            found[f"indices_{table}"] = batch.ids[table]
        for name, array in found.items():
            expected = arrays[f"b{number}/{name}"]
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)
            compared += 1
    assert compared == len(arrays.files) and len(batches) == 3


def test_every_pass_begins_with_the_seed():
    batches = _uniform()
    for one, two in zip(batches, batches, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, two)
    first = next(iter(batches)).dense
    assert not np.array_equal(first, next(iter(_uniform(seed=1))).dense)


def test_bags_are_sorted_sets_of_the_table():
    batches = list(_uniform(rows=(50, 1), batch_size=40, indices_per_lookup=6))
    sizes = set()
    for batch in batches:
        for table, rows in enumerate((50, 1)):
            assert batch.offsets[table].shape == (40,)
            for bag in _bags(batch, table):
                assert (np.diff(bag) > 0).all() and 0 <= bag[0] <= bag[-1] < rows
                sizes.add((table, len(bag)))
    assert sizes == {(0, n) for n in range(1, 7)} | {(1, 1)}


def test_a_fixed_size_draws_no_size():
    generator = np.random.RandomState(5)
    generator.random_sample((1, 4))
    draws = generator.random_sample(3)
    batch = next(
        iter(
            _uniform(
                seed=5, rows=(1000,), batch_size=1, indices_per_lookup=3, fixed=True
            )
        )
    )
    np.testing.assert_array_equal(batch.ids[0], np.sort(np.rint(draws * 999)))


def test_the_end_ids_have_half_the_mass():
    settings = dict(rows=(5,), batch_size=40_000, num_batches=1)
    (batch,) = _uniform(**settings, indices_per_lookup=1, fixed=True)
    share = np.bincount(batch.ids[0], minlength=5) / 40_000
    np.testing.assert_allclose(share, [1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8], atol=0.01)


def test_gaussian_ids_are_made_unique_before_they_are_cut():
    settings = dict(
        rows=(3,),
        batch_size=200,
        num_batches=1,
        indices_per_lookup=8,
        fixed=True,
        distribution="gaussian",
        minimum=2,
        maximum=9,
        sigma=1.5,
    )
    (batch,) = random_batches(**{**SETTINGS, **settings})
    generator = np.random.RandomState(123)
    generator.random_sample((200, 4))
    for bag in _bags(batch, 0):
        draws = np.clip(generator.normal(5.5, 1.5, 8), 2, 9)
        np.testing.assert_array_equal(bag, np.floor(np.sort(np.unique(draws))))
    # Repetitions remain, and the table's 3 rows play no part.
    assert any(len(set(bag)) < len(bag) for bag in _bags(batch, 0))
    assert batch.ids[0].min() >= 2 and batch.ids[0].max() > 3
    (moved,) = random_batches(**{**SETTINGS, **settings, "mu": 100.0})
    assert set(moved.ids[0]) == {9}


def test_rounded_targets():
    (batch,) = _uniform(batch_size=500, num_batches=1, round_targets=True)
    (real,) = _uniform(batch_size=500, num_batches=1)
    assert batch.labels.shape == (500, 1) and batch.labels.dtype == np.float32
    assert set(batch.labels[:, 0]) == {0.0, 1.0}
    np.testing.assert_array_equal(batch.labels, np.rint(real.labels))


def test_the_last_batch_of_a_data_size_is_short():
    batches = _uniform(batch_size=4, num_batches=0, data_size=10)
    assert [len(batch.dense) for batch in batches] == [4, 4, 2]
    # A number of batches wins, as it does in the original.
    assert len(_uniform(batch_size=4, num_batches=2, data_size=100)) == 2


# Imitated lookups.


@pytest.fixture
def profile():
    return StackDistances(
        lines=np.array([3, 0, 7, 5, 1]),
        distances=np.array([0, 1, 3]),
        cumulative=np.array([0.5, 0.7, 1.0]),
    )


def _synthetic(profiles, **changes):
    return synthetic_batches(profiles, **{**SETTINGS, "rows": (8, 8), **changes})


def test_each_bag_is_a_trace_of_its_own(profile):
    settings = dict(batch_size=30, num_batches=2, indices_per_lookup=5, seed=4)
    generator = np.random.RandomState(4)
    for batch in _synthetic([profile, profile], **settings):
        dense = generator.random_sample((30, 4)).astype(np.float32)
        np.testing.assert_array_equal(batch.dense, dense)
        for table in range(2):
            for bag in _bags(batch, table):
                share = generator.random_sample() * 5
                trace = draw_trace(profile, round(max(1.0, share)), generator)
                assert trace[0] == 3
                np.testing.assert_array_equal(bag, np.unique(trace))
        labels = generator.random_sample((30, 1)).astype(np.float32)
        np.testing.assert_array_equal(batch.labels, labels)


def test_ids_beyond_the_table_wrap_with_a_warning(profile):
    with pytest.warns(UserWarning, match="table 1: the profile has id 7, the table 6"):
        batches = _synthetic([profile, profile], rows=(8, 6), batch_size=50)
    assert 1 in np.concatenate([batch.ids[1] for batch in batches])
    assert max(batch.ids[1].max() for batch in batches) < 6


def test_padding_reaches_the_trace(profile):
    settings = dict(indices_per_lookup=40, rows=(8,), fixed=True, batch_size=50)
    (plain, *_), (padded, *_) = (
        list(_synthetic([profile], padding=padding, **settings))
        for padding in (False, True)
    )
    # Without new ids only the first three are ever seen.
    assert set(padded.ids[0]) == {0, 3, 7} and set(plain.ids[0]) == {0, 1, 3, 5, 7}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(distribution="zipf"), "distribution must be one of uniform, gaussian"),
        (dict(sigma=-1.0), "sigma must be >= 0 and finite, got -1.0"),
        (dict(minimum=2.0), "minimum=2.0 must not exceed maximum=1"),
        (dict(minimum=math.nan), "minimum=nan must not exceed"),
        (dict(batch_size=0), "batch_size must be >= 1, got 0"),
        (dict(num_batches=-1), "num_batches must be >= 0, got -1"),
        (dict(num_batches=0), "num_batches and data_size are both 0"),
        (dict(data_size=-1), "data_size must be >= 0, got -1"),
        (dict(num_dense=-1), "num_dense must be >= 0, got -1"),
        (dict(indices_per_lookup=0), "indices_per_lookup must be >= 1, got 0"),
        (dict(seed=-1), r"seed must lie in \[0, 2\*\*32\), got -1"),
        (dict(rows=()), "rows must be one or more numbers >= 1"),
        (dict(rows=(2, 0)), "rows must be one or more numbers >= 1"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _uniform(**changes)


def test_a_profile_for_each_table(profile):
    with pytest.raises(ValueError, match="one entry for each of 2 tables, got 1"):
        _synthetic([profile])
