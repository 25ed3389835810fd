import json

import numpy as np
import pytest

from experiments.data.criteo.vocabulary import (
    Vocabulary,
    VocabularyBuilder,
    VocabularyConfig,
    load_vocabulary,
)


def column_of(values) -> np.ndarray:
    """Ids whose first column is given; the others are 7."""
    ids = np.full((len(values), 26), 7, np.uint32)
    ids[:, 0] = values
    return ids


def build(values, missing=None, **settings) -> Vocabulary:
    builder = VocabularyBuilder(VocabularyConfig(**settings))
    for start in range(0, len(values), 2):  # in several chunks
        rows = slice(start, start + 2)
        absent = None if missing is None else missing[rows]
        builder.add(column_of(values)[rows], absent)
    return builder.build()


def rows_of(vocabulary, values, missing=None, **options) -> list[int]:
    encoded = vocabulary.encode(column_of(values), missing, **options)
    assert encoded.dtype == np.int32 and encoded.shape == (len(values), 26)
    assert (encoded >= 0).all() and (encoded < vocabulary.counts).all()
    return encoded[:, 0].tolist()


def test_all_numbers_in_order_of_first_occurrence():
    vocabulary = build([9, 0, 0xFFFFFFFF, 9, 0x80000000, 0], kind="all")
    assert vocabulary.dictionaries[0].tolist() == [9, 0, 0xFFFFFFFF, 0x80000000]
    assert vocabulary.counts.tolist() == [4] + [1] * 25
    assert rows_of(vocabulary, [0x80000000, 9, 0, 0xFFFFFFFF]) == [3, 0, 1, 2]


def test_train_has_one_more_row_for_the_unseen():
    vocabulary = build([9, 0, 9], kind="train")
    assert vocabulary.counts.tolist() == [3] + [2] * 25
    assert rows_of(vocabulary, [0, 5, 9, 0xFFFFFFFF]) == [1, 2, 0, 2]
    assert vocabulary.oov_row(0) == 2 and vocabulary.oov_row(1) == 1


def test_rare_ids_share_row_one():
    values = [5, 8, 8, 6, 5, 5, 4, 6]
    vocabulary = build(values, kind="frequency", min_count=2)
    # First seen 5, 8, 6 (4 comes once), from row 2 on; row 0 is unused.
    assert vocabulary.dictionaries[0].tolist() == [5, 8, 6]
    assert rows_of(vocabulary, [5, 8, 6, 4, 99]) == [2, 3, 4, 1, 1]
    assert vocabulary.counts.tolist() == [5] + [3] * 25
    for keep_all in (0, 1):
        vocabulary = build(values, kind="frequency", min_count=keep_all)
        assert rows_of(vocabulary, [5, 8, 6, 4, 99]) == [2, 3, 4, 5, 1]


def test_hashing_needs_no_rows():
    sizes = tuple(range(10, 36))
    vocabulary = build([], kind="hash", hash_rows=sizes)
    assert rows_of(vocabulary, [3, 25, 0xFFFFFFFF]) == [3, 5, 0xFFFFFFFF % 10]
    assert vocabulary.counts.tolist() == list(sizes)
    mixed = build([], kind="hash", hash_rows=1000, hash_seed=1)
    assert mixed.counts.tolist() == [1000] * 26
    encoded = mixed.encode(np.full((1, 26), 12345, np.uint32))
    assert len(set(encoded[0].tolist())) > 20  # columns are mixed differently
    assert (encoded == mixed.encode(np.full((1, 26), 12345, np.uint32))).all()


def test_range_is_applied_before_the_dictionary():
    vocabulary = build([12, 3, 7, 0xFFFFFFFF], kind="all", max_ind_range=5)
    assert vocabulary.dictionaries[0].tolist() == [2, 3, 0]
    assert rows_of(vocabulary, [7, 8, 5]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("settings", "missing_row", "count"),
    [
        ({"kind": "all"}, 2, 3),
        ({"kind": "train"}, 2, 4),
        ({"kind": "frequency"}, 0, 4),
        ({"kind": "hash", "hash_rows": 10}, 10, 11),
    ],
)
def test_missing_ids_may_have_a_row_of_their_own(settings, missing_row, count):
    values = [0, 4, 0]
    missing = np.zeros((3, 26), bool)
    missing[2, 0] = True
    vocabulary = build(values, missing, separate_missing=True, **settings)
    rows = rows_of(vocabulary, values, missing)
    assert rows[2] == missing_row == vocabulary.missing_row(0)
    assert len({*rows, vocabulary.oov_row(0)} - {None}) == 3 + (
        vocabulary.oov_row(0) is not None
    )
    assert vocabulary.counts[0] == count
    together = build(values, missing, **settings)
    assert rows_of(together, values, missing)[2] == rows[0]
    assert together.missing_row(0) is None
    with pytest.raises(ValueError, match="separate_missing needs `missing`"):
        vocabulary.encode(column_of(values))


def test_unknown_ids_by_policy():
    known = build(list(range(100, 150)), kind="all")
    with pytest.raises(
        ValueError, match="row 1: column C1 holds 000003e7, .* the 50 ids of"
    ):
        known.encode(column_of([120, 999]))
    with pytest.raises(ValueError, match="day_0, line 8: column C1 holds"):
        known.encode(
            column_of([999]), describe_row=lambda row: f"day_0, line {row + 8}"
        )
    with pytest.raises(ValueError, match="unknown='oov' needs a row for unseen ids"):
        known.encode(column_of([999]), unknown="oov")
    with pytest.raises(ValueError, match="unknown must be one of error, oov, hash"):
        known.encode(column_of([999]), unknown="drop")
    spread = rows_of(known, list(range(5000, 5400)), unknown="hash")
    assert len(set(spread)) == 50
    assert spread == rows_of(known, list(range(5000, 5400)), unknown="hash")
    trained = build([3, 4], kind="train")
    assert rows_of(trained, [5], unknown="oov") == [2]
    assert rows_of(trained, [5, 6, 7, 8], unknown="hash") != [2] * 4
    with pytest.raises(ValueError, match="column C1 holds 00000005"):
        trained.encode(column_of([5]), unknown="error")


def test_may_write_over_the_raw_ids():
    vocabulary = build([9, 0, 9], kind="train")
    ids = column_of([0, 5, 9])
    vocabulary.encode(ids, out=ids.view(np.int32))
    assert ids[:, 0].tolist() == [1, 2, 0] and (ids[:, 1:] == 0).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "train", "max_ind_range": 6},
        {"kind": "frequency", "min_count": 2, "separate_missing": True},
        {"kind": "hash", "hash_rows": 11, "hash_seed": 4},
    ],
)
def test_files_give_the_same_vocabulary(tmp_path, settings):
    values = [5, 0xFFFFFFFF, 5, 2, 0xFFFFFFFF]
    missing = np.zeros((5, 26), bool)
    vocabulary = build(values, missing, **settings)
    path = str(tmp_path / "vocabulary.npz")
    vocabulary.save(path)
    loaded = load_vocabulary(path)
    assert loaded.config == vocabulary.config
    assert loaded.sha256 == vocabulary.sha256
    asked = [1, 5, 2, 0xFFFFFFFF, 77]
    assert rows_of(loaded, asked, missing) == rows_of(vocabulary, asked, missing)


def test_digest_depends_on_order_and_settings():
    digests = {
        build([1, 2], kind="train").sha256,
        build([2, 1], kind="train").sha256,
        build([1, 2], kind="all").sha256,
        build([1, 2], kind="train", max_ind_range=9).sha256,
    }
    assert len(digests) == 4
    assert build([1, 2, 1], kind="train").sha256 in digests


def test_files_that_hold_no_vocabulary(tmp_path):
    path = str(tmp_path / "other.npz")
    np.savez(path, unique=np.arange(3))
    with pytest.raises(ValueError, match="other.npz holds no vocabulary"):
        load_vocabulary(path)
    settings = json.dumps({"kind": "train"})
    floats = {f"dict_{i}": np.zeros(3, np.float32) for i in range(26)}
    np.savez(path, settings=np.array(settings), **floats)
    with pytest.raises(ValueError, match="ids must be uint32 vectors"):
        load_vocabulary(path)
    with pytest.raises(ValueError, match="absent.npz holds no vocabulary"):
        load_vocabulary(str(tmp_path / "absent.npz"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "test"}, "vocabulary must be one of .* got 'test'"),
        ({"max_ind_range": 0}, "max_ind_range must be negative .* got 0"),
        ({"max_ind_range": 2**33}, r"lie in \[1, 2\*\*32\], got 8589934592"),
        ({"min_count": 3}, "min_count=3 has no use with vocabulary='train'"),
        ({"kind": "frequency", "min_count": -1}, "min_count must be >= 0, got -1"),
        ({"hash_rows": 3}, "hash_rows=3 has no use with vocabulary='train'"),
        ({"kind": "hash"}, "vocabulary='hash' needs hash_rows: .* got None"),
        ({"kind": "hash", "hash_rows": 0}, "hash_rows: .* got 0"),
        ({"kind": "hash", "hash_rows": 1.5}, "hash_rows: .* got 1.5"),
        ({"kind": "hash", "hash_rows": (3, 4)}, r"26 of them, .* got \(3, 4\)"),
    ],
)
def test_refuses_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        VocabularyConfig(**settings)


def test_refuses_ids_of_another_type():
    vocabulary = build([1], kind="train")
    for ids in (np.zeros((2, 26), np.int64), np.zeros((2, 25), np.uint32)):
        with pytest.raises(ValueError, match=r"raw ids must be uint32 \[n, 26\], got"):
            vocabulary.encode(ids)
