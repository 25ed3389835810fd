import collections

import numpy as np
import pytest

from experiments.data import criteo
from experiments.data.criteo.kaggle import read_kaggle


@pytest.mark.parametrize(
    ("name", "max_ind_range"), [("criteo_small", -1), ("criteo_hashed", 5)]
)
def test_numbers_of_the_original_implementation(golden_dir, name, max_ind_range):
    path = str(golden_dir / "dlrm" / f"{name}.tsv")
    data = read_kaggle(path, max_ind_range=max_ind_range, vocabulary="all")
    with np.load(golden_dir / "dlrm" / f"{name}.npz", allow_pickle=False) as golden:
        np.testing.assert_array_equal(data.dense, golden["X_int"])
        np.testing.assert_array_equal(data.ids, golden["X_cat"])
        np.testing.assert_array_equal(data.labels, golden["y"])
        np.testing.assert_array_equal(data.counts, golden["counts"])
        np.testing.assert_array_equal(data.day_count, golden["day_count"])
        for column, values in enumerate(data.dictionaries):
            np.testing.assert_array_equal(values, golden[f"dict_{column}"])
    assert (data.dense.dtype, data.ids.dtype) == (np.int64, np.int32)
    assert data.skipped.count == 0


def slow_dictionaries(ids, rows):
    return [list(dict.fromkeys(column[:rows].tolist())) for column in ids.T]


def test_train_vocabulary_agrees_with_all_up_to_the_split(write, lines, arrays):
    text = lines(201, seed=1)
    path, expected = write(text), arrays(text)
    train, whole = read_kaggle(path), read_kaggle(path, vocabulary="all")
    split = train.split()
    assert split.train == slice(0, 29 * 5 + 28)
    assert (split.test.stop, split.validation.stop) == (187, 201)
    for column, values in enumerate(slow_dictionaries(expected.ids, split.train.stop)):
        assert train.dictionaries[column].tolist() == values
        assert train.counts[column] == len(values) + 1
        unseen = ~np.isin(expected.ids[:, column], values)
        assert (train.ids[unseen, column] == len(values)).all()
        assert (whole.ids[~unseen, column] == train.ids[~unseen, column]).all()
        assert whole.counts[column] == len(set(expected.ids[:, column].tolist()))
    np.testing.assert_array_equal(train.dense, np.maximum(expected.dense, 0))


@pytest.mark.parametrize("vocabulary", ["all", "train"])
def test_sub_sampling_replays_the_draws(write, lines, arrays, vocabulary):
    text = lines(150, seed=2)
    data = read_kaggle(write(text), sub_sample_rate=0.6, seed=9, vocabulary=vocabulary)
    expected, draw = arrays(text), np.random.RandomState(9)
    kept, counts, first = [], [], 0
    for part in range(7):
        size = 150 // 7 + (part < 150 % 7)
        uniform = draw.uniform(0.0, 1.0, size)
        labels = expected.labels[first : first + size]
        rows = [i for i in range(size) if labels[i] or uniform[i] >= 0.6]
        kept += [first + row for row in rows]
        counts.append(len(rows))
        first += size
    assert data.day_count.tolist() == counts
    np.testing.assert_array_equal(data.labels, expected.labels[kept])
    np.testing.assert_array_equal(data.dense, np.maximum(expected.dense[kept], 0))
    deciding = sum(counts) if vocabulary == "all" else sum(counts[:-1])
    dictionaries = slow_dictionaries(expected.ids[kept], deciding)
    assert [values.tolist() for values in data.dictionaries] == dictionaries


def test_frequency_counts_training_rows_only(write, lines, arrays):
    text = lines(300, seed=3)
    expected = arrays(text)
    data = read_kaggle(write(text), vocabulary="frequency", min_count=4)
    train = data.split().train.stop
    for column in (0, 13, 25):
        ids = expected.ids[:, column].tolist()
        counts = collections.Counter(ids[:train])
        kept = [value for value, count in counts.items() if count >= 4]
        assert data.dictionaries[column].tolist() == kept
        rows = [kept.index(value) + 2 if value in kept else 1 for value in ids]
        assert data.ids[:, column].tolist() == rows
        assert 1 in rows and data.counts[column] == len(kept) + 2


def test_hash_and_missing_rows(write, lines, arrays):
    text = lines(50, seed=4)
    expected = arrays(text)
    data = read_kaggle(
        write(text), vocabulary="hash", hash_rows=[17] * 26, separate_missing=True
    )
    missing = np.array([[not f for f in line.split(b"\t")[14:]] for line in text])
    np.testing.assert_array_equal(data.ids, np.where(missing, 17, expected.ids % 17))
    assert data.counts.tolist() == [18] * 26
    for vocabulary in ("all", "train", "frequency"):
        data = read_kaggle(write(text), vocabulary=vocabulary, separate_missing=True)
        rows = [data.vocabulary.missing_row(column) for column in range(26)]
        np.testing.assert_array_equal(data.ids == rows, missing)


def test_skipped_lines_belong_to_no_part(write, lines):
    text = lines(80, seed=5)
    clean = read_kaggle(write(text), sub_sample_rate=0.5)
    damaged = [b"bad line", *text[:40], text[3] + b"\t", *text[40:]]
    path = write(damaged, "damaged.txt")
    data = read_kaggle(path, sub_sample_rate=0.5, on_bad_line="skip")
    for name in ("dense", "ids", "labels", "counts", "day_count"):
        np.testing.assert_array_equal(getattr(data, name), getattr(clean, name))
    assert data.skipped.count == 2
    assert "damaged.txt, line 42: expected 40 fields" in data.skipped.messages[1]
    with pytest.raises(ValueError, match="damaged.txt, line 1: expected 40 fields"):
        read_kaggle(path)


def test_names_are_reached_through_the_package(write, lines):
    data = criteo.read_kaggle(write(lines(14)))
    assert criteo.log1p_dense(data.dense).shape == (14, 13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": "both"}, "vocabulary must be one of"),
        ({"max_ind_range": 0}, "max_ind_range must be"),
        ({"sub_sample_rate": 2.0}, "sub_sample_rate must lie in"),
        ({"seed": -1}, "seed must lie in"),
        ({"on_bad_line": "warn"}, "on_bad_line must be"),
        ({"hash_rows": 3}, "hash_rows=3 has no use"),
    ],
)
def test_arguments_are_checked_before_the_file(options, message):
    with pytest.raises(ValueError, match=message):
        read_kaggle("absent", **options)


def test_files_without_rows(write, lines):
    with pytest.raises(ValueError, match="train.txt holds no row"):
        read_kaggle(write([]))
    negatives = [b"0" + line[1:] for line in lines(9)]
    path = write(negatives)
    with pytest.raises(ValueError, match="sub_sample_rate=1.0 leaves no row"):
        read_kaggle(path, sub_sample_rate=1.0)
