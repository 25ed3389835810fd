import numpy as np
import pytest

from experiments.data.criteo.shuffling import draw_buckets, two_pass_shuffle


def shuffle(rows, sizes, folder, seed=0, step=7):
    blocks = (rows[i : i + step] for i in range(0, len(rows), step))
    buckets = list(two_pass_shuffle(blocks, sizes, folder=folder, seed=seed))
    assert [len(bucket) for bucket in buckets] == list(sizes)
    assert not list(folder.iterdir())
    return np.concatenate(buckets)


def test_every_row_comes_once(tmp_path):
    row = np.dtype([("ids", np.int32, 3), ("label", np.float32)])
    rows = np.zeros(100, row)
    rows["ids"] = np.arange(300).reshape(100, 3)
    rows["label"] = np.arange(100)
    shuffled = shuffle(rows, [40, 0, 35, 25], tmp_path)
    assert shuffled.dtype == row
    order = shuffled["label"].astype(int)
    assert sorted(order) == list(range(100)) and order.tolist() != list(range(100))
    np.testing.assert_array_equal(shuffled, rows[order])


def test_order_depends_on_the_seed_alone(tmp_path):
    rows = np.arange(60).reshape(30, 2)
    first = shuffle(rows, [10, 20], tmp_path, seed=3)
    np.testing.assert_array_equal(first, shuffle(rows, [10, 20], tmp_path, seed=3))
    assert (first != shuffle(rows, [10, 20], tmp_path, seed=4)).any()


def test_rows_end_anywhere(tmp_path):
    # Of a uniform shuffle the mean place of every row is the middle, with a standard
    # deviation of 5.77 / sqrt(400) = 0.29.
    places = np.zeros((400, 20))
    for seed in range(400):
        order = shuffle(np.arange(20), [7, 7, 6], tmp_path, seed=seed)
        places[seed, order] = np.arange(20)
    assert np.abs(places.mean(axis=0) - 9.5).max() < 4.5 * 0.29


def test_buckets_are_drawn_among_those_with_room():
    rng = np.random.default_rng(0)
    room = np.array([3, 0, 1000, 5])
    drawn = np.concatenate([draw_buckets(room, n, rng) for n in (4, 0, 500, 504)])
    assert np.bincount(drawn).tolist() == [3, 0, 1000, 5] and not room.any()
    # The small ones are full long before the rows run out.
    assert np.flatnonzero(drawn != 2).max() < 60
    # Three buckets with room are equally likely.
    many = draw_buckets(np.full(3, 10**6), 30_000, rng)
    assert np.abs(np.bincount(many) - 10_000).max() < 4 * 82


def test_rows_must_fit(tmp_path):
    for sizes, message in (
        ([10, 5], "have room for 15 rows, there are more"),
        ([10, 25], "have room for 35 rows, there are only 30"),
    ):
        with pytest.raises(ValueError, match=message):
            shuffle(np.arange(30), sizes, tmp_path)
        assert not list(tmp_path.iterdir())
