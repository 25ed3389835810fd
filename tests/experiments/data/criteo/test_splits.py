import numpy as np
import pytest

from experiments.data.criteo.splits import (
    SubSampling,
    part_sizes,
    split_parts,
    training_order,
)


def test_parts_are_nearly_equal_with_the_larger_ones_first():
    assert part_sizes(23).tolist() == [4, 4, 3, 3, 3, 3, 3]
    assert part_sizes(0).tolist() == [0] * 7
    assert part_sizes(45_840_617).tolist() == [6_548_660] * 4 + [6_548_659] * 3
    assert part_sizes(5, 3).tolist() == [2, 2, 1]
    with pytest.raises(ValueError, match="need total >= 0 and parts >= 1"):
        part_sizes(-1)


def test_last_part_is_halved_without_a_shared_row():
    split = split_parts(np.array([4, 4, 3]))
    assert split.train == slice(0, 8)
    assert split.test == slice(8, 10) and split.validation == slice(10, 11)
    other = split_parts(np.array([4, 4, 3]), "validation_first")
    assert other.validation == split.test and other.test == split.validation
    with pytest.raises(ValueError, match="halves must be one of .* got 'random'"):
        split_parts(np.array([4, 4]), "random")
    with pytest.raises(ValueError, match="at least two parts are needed, got 1"):
        split_parts(np.array([4]))


def test_training_order():
    counts = np.array([5, 3, 4, 6])
    assert training_order(counts, "none").tolist() == list(range(12))
    by_day = training_order(counts, "day")
    assert sorted(by_day[:5]) == [0, 1, 2, 3, 4] and sorted(by_day[5:8]) == [5, 6, 7]
    total = training_order(counts, "total")
    assert sorted(total) == sorted(by_day) == list(range(12))
    # The legacy generator's permutations, day after day.
    draw = np.random.RandomState(123)
    assert by_day[:5].tolist() == draw.permutation(5).tolist()
    assert by_day[5:8].tolist() == (5 + draw.permutation(3)).tolist()
    expected = np.random.RandomState(123).permutation(12)
    assert total.tolist() == expected.tolist()
    assert total.tolist() != training_order(counts, "total", seed=124).tolist()
    with pytest.raises(ValueError, match="randomize must be one of .* got 'week'"):
        training_order(counts, "week")


def test_sub_sampling_draws_one_number_per_row():
    labels = (np.arange(1000) % 4 == 0).astype(np.int32)
    uniform = np.random.RandomState(5).uniform(size=1000)
    expected = (labels == 1) | (uniform >= 0.875)
    for step in (1000, 1, 77):  # however the rows are cut
        sampling = SubSampling(0.875, seed=5)
        kept = [sampling.keep(labels[i : i + step]) for i in range(0, 1000, step)]
        np.testing.assert_array_equal(np.concatenate(kept), expected)
    assert 60 < expected.sum() - 250 < 130


def test_sub_sampling_at_the_ends_of_its_range():
    labels = np.array([0, 1, 0, 1])
    assert SubSampling(0.0, seed=0).keep(labels).all()
    assert SubSampling(1.0, seed=0).keep(labels).tolist() == [False, True, False, True]
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"sub_sample_rate must lie in \[0, 1\]"):
            SubSampling(rate, seed=0)
    with pytest.raises(ValueError, match=r"seed must lie in \[0, 2\*\*32\), got -1"):
        SubSampling(0.5, seed=-1)
