import dataclasses
import zipfile

import numpy as np
import pytest

from experiments.data.criteo.formats import Rows, open_binary, write_binary
from experiments.data.criteo.multi_hot import (
    HOT_SIZES,
    MultiHot,
    open_multi_hot,
    write_multi_hot,
)

ROWS = tuple(range(50, 76))


def test_published_sizes():
    assert len(HOT_SIZES) == 26 and sum(HOT_SIZES) == 214
    assert (HOT_SIZES[0], HOT_SIZES[20], HOT_SIZES[21]) == (3, 100, 27)


@pytest.mark.parametrize("distribution", ["uniform", "pareto"])
def test_an_id_always_stands_for_the_same_bag(distribution):
    multi_hot = MultiHot(ROWS, distribution=distribution)
    ids = np.array([4, 49, 4, 0, 49])
    bags = multi_hot.bags(ids, 20)
    assert bags.shape == (5, 100) and bags.dtype == np.int32
    np.testing.assert_array_equal(bags[:, 0], ids)
    np.testing.assert_array_equal(bags[0], bags[2])
    np.testing.assert_array_equal(bags[1], bags[4])
    assert (bags[0, 1:] != bags[1, 1:]).any()
    assert bags.min() >= 0 and bags.max() < ROWS[20]
    other = dataclasses.replace(multi_hot, seed=1).bags(ids, 20)
    assert (other != bags).any()


def test_laws_of_the_drawn_ids():
    rows = (1000,) * 26
    ids = np.arange(1000).repeat(1)
    uniform = MultiHot(rows).bags(ids, 20)[:, 1:]
    counts = np.bincount(uniform.ravel() // 10, minlength=100)
    # Chi-square with 99 degrees of freedom; 170 is beyond one in 10,000.
    assert ((counts - 990.0) ** 2 / 990.0).sum() < 170.0
    # Lomax of exponent 1/4: P(floor X = 0) = 1 - 2**-0.25 = 0.159, and X mod 1000
    # adds no more than a thousandth of the tail.
    pareto = MultiHot(rows, distribution="pareto").bags(ids, 20)[:, 1:]
    assert (pareto == 0).mean() == pytest.approx(1 - 2**-0.25, abs=0.006)


def test_files(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50, (30, 26))
    binary, path = str(tmp_path / "rows.bin"), str(tmp_path / "day_0.npz")
    write_binary(binary, [Rows(np.zeros((30, 13), int), ids, np.zeros(30, int))])
    multi_hot = MultiHot(ROWS)
    write_multi_hot(path, open_binary(binary), multi_hot)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [f"{i}.npy" for i in range(26)]
        assert {m.compress_type for m in archive.infolist()} == {zipfile.ZIP_STORED}
    bags = open_multi_hot(path)
    with np.load(path, allow_pickle=False) as loaded:
        for column in range(26):
            expected = multi_hot.bags(ids[:, column], column)
            np.testing.assert_array_equal(bags[column].map(), expected)
            np.testing.assert_array_equal(loaded[str(column)], expected)


def test_refuses_settings_ids_and_files(tmp_path):
    with pytest.raises(ValueError, match="rows must be 26 numbers >= 1"):
        MultiHot((5,) * 25)
    with pytest.raises(ValueError, match="sizes must be 26 numbers >= 1"):
        MultiHot(ROWS, sizes=(0,) * 26)
    with pytest.raises(ValueError, match="distribution must be one of .*'zipf'"):
        MultiHot(ROWS, distribution="zipf")
    with pytest.raises(
        ValueError, match=r"table 2, row 1: the id 52 is not in \[0, 52"
    ):
        MultiHot(ROWS).bags(np.array([51, 52]), 2)
    path = str(tmp_path / "a.npz")
    arrays = {str(i): np.zeros((4, 1), np.int32) for i in range(26)}
    for changes, message in (
        ({"5": np.zeros((3, 1), np.int32)}, r"'5', has the shape \[3, 1\], expected"),
        ({"5": np.zeros((4, 1))}, "'5', holds float64, expected integers"),
    ):
        np.savez(path, **arrays | changes)
        with pytest.raises(ValueError, match=message):
            open_multi_hot(path)
    np.savez(path, **{"0": np.zeros((4, 1))})
    with pytest.raises(ValueError, match="lacks the arrays 1, 2, "):
        open_multi_hot(path)
