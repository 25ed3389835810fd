import dataclasses

import numpy as np
import pytest

from experiments.data.criteo.dense_features import log1p_dense
from experiments.data.criteo.formats import Rows, open_binary, write_binary
from experiments.data.criteo.kaggle import read_kaggle
from experiments.data.criteo.row_sources import Place, StoredRows, TextRows


def joined(blocks):
    parts = [(block.dense, block.ids, block.labels) for block in blocks]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def equal(blocks, dense, ids, labels) -> None:
    read = joined(blocks)
    for part, expected in zip(read, (log1p_dense(dense), ids, labels), strict=True):
        np.testing.assert_array_equal(part, expected)
    assert [part.dtype for part in read] == [np.float32, np.int32, np.float32]


@pytest.fixture
def text(write, lines):
    """Two files, and what they hold together."""
    rows = lines(120, seed=1)
    paths = [write(rows[:70], "day_0"), write(rows[70:], "day_1")]
    return paths, read_kaggle(write(rows, "both"))


def test_text_is_numbered_by_the_vocabulary(text):
    paths, data = text
    source = TextRows(paths, data.vocabulary)
    equal(source.blocks(None, None), data.dense, data.ids, data.labels)
    # Text keeps its order.
    equal(source.blocks((1, 2), None), data.dense, data.ids, data.labels)


def test_text_goes_on_from_every_row(text):
    paths, data = text
    source = TextRows(paths, data.vocabulary)
    places = [b.place(k) for b in source.blocks(None, None) for k in range(len(b.ids))]
    assert [place.piece for place in places] == [0] * 70 + [1] * 50
    assert [place.line for place in places] == [*range(1, 71), *range(1, 51)]
    for row in (0, 1, 69, 70, 100, 119):
        rest = source.blocks(None, places[row])
        equal(rest, data.dense[row:], data.ids[row:], data.labels[row:])


def test_unknown_ids_of_text(text):
    paths, data = text
    known = read_kaggle(paths[0], vocabulary="all").vocabulary
    message = r"day_1, line \d+: column C1 holds [0-9a-f]{8}, which is not among"
    with pytest.raises(ValueError, match=message):
        list(TextRows(paths, known).blocks(None, None))
    _, ids, _ = joined(TextRows(paths, known, unknown="hash").blocks(None, None))
    assert (ids < known.counts).all()
    with pytest.raises(ValueError, match="unknown='oov' needs a row"):
        TextRows(paths, known, unknown="oov")


def test_unlabelled_text(write, lines, arrays, text):
    rows = lines(30, seed=3, labelled=False)
    source = TextRows([write(rows)], text[1].vocabulary, labelled=False)
    dense, _, labels = joined(source.blocks(None, None))
    np.testing.assert_array_equal(dense, log1p_dense(arrays(rows, False).dense))
    assert (labels == 0).all() and len(labels) == 30


def test_transform_of_text(text):
    paths, data = text
    source = TextRows(
        paths, data.vocabulary, dense_transform="log_shift", dense_minimum=-3
    )
    dense, _, _ = joined(source.blocks(None, None))
    assert np.isfinite(dense).all()
    # Negative and missing integers stay apart.
    assert {np.float32(np.log(2.0)), np.float32(np.log(5.0))} <= set(dense.ravel())


def test_text_is_checked_when_it_is_named(text):
    paths, data = text
    for changes, message in (
        ({"paths": paths[0]}, "paths must be a list of files, got '.*day_0'"),
        ({"paths": []}, "paths must be a list of files"),
        ({"paths": [paths[0] + "x"]}, "there is no file .*day_0x"),
        ({"on_bad_line": "warn"}, "on_bad_line must be"),
        ({"dense_transform": "log_shift"}, "needs dense_minimum"),
    ):
        with pytest.raises(ValueError, match=message):
            TextRows(**{"paths": paths, "vocabulary": data.vocabulary} | changes)


@pytest.fixture
def stored(tmp_path):
    """Two binary files of several blocks, and what they hold together."""
    rng = np.random.default_rng(0)
    whole = Rows(
        rng.integers(-3, 1000, (10_000, 13)),
        rng.integers(0, 100, (10_000, 26)),
        rng.integers(0, 2, 10_000),
    )
    parts = []
    for name, rows in (("a", slice(0, 5000)), ("b", slice(5000, None))):
        path = str(tmp_path / name)
        write_binary(path, [Rows(*(part[rows] for part in whole))])
        parts.append(open_binary(path))
    return parts, whole


def test_stored_rows_in_order_and_from_every_place(stored):
    parts, whole = stored
    source = StoredRows(parts, counts=[100] * 26)
    assert len(source) == 10_000
    equal(source.blocks(None, None), *whole)
    places = [b.place(k) for b in source.blocks(None, None) for k in range(len(b.ids))]
    for row in (0, 4095, 4096, 4999, 5000, 9999):
        rest = Rows(*(part[row:] for part in whole))
        equal(source.blocks(None, places[row]), *rest)


def test_stored_blocks_are_visited_in_a_drawn_order(stored):
    parts, whole = stored
    source = StoredRows(parts)
    orders = set()
    for epoch in range(6):
        blocks = list(source.blocks((7, epoch), None))
        dense, ids, _ = joined(blocks)
        rest = source.blocks((7, epoch), Place(blocks[2].piece, 5, 5))
        np.testing.assert_array_equal(
            joined(rest)[0], dense[-len(joined(blocks[2:])[0]) + 5 :]
        )
        order = np.lexsort(ids.T), np.lexsort(whole.ids.T)
        np.testing.assert_array_equal(
            dense[order[0]], log1p_dense(whole.dense)[order[1]]
        )
        orders.add(ids.tobytes())
    assert len(orders) > 2


def test_stored_ids_are_checked(stored):
    parts, _ = stored
    counts = [100] * 25 + [99]
    with pytest.raises(ValueError, match=r"row \d+: the id of column C26 is 99, exp"):
        list(StoredRows(parts, counts=counts).blocks(None, None))
    with pytest.raises(ValueError, match="the preprocessed files hold no row"):
        StoredRows([parts[0].select(3, 3)])


def test_fingerprints_tell_data_and_treatment_apart(text, stored):
    paths, data = text
    source = TextRows(paths, data.vocabulary)
    changes = [
        {"paths": paths[:1]},
        {"vocabulary": read_kaggle(paths[0]).vocabulary},
        {"unknown": "hash"},
        {"dense_transform": "none"},
        {"on_bad_line": "skip"},
    ]
    others = [dataclasses.replace(source, **change) for change in changes]
    assert len({s.fingerprint for s in [source, *others]}) == 6
    rows = StoredRows(stored[0])
    others = [
        StoredRows(stored[0][:1]),
        StoredRows([part.select(1, 5) for part in stored[0]]),
        StoredRows(stored[0], dense_transform="none"),
        StoredRows(stored[0], identity="x"),
    ]
    assert len({s.fingerprint for s in [rows, *others]}) == 5
    assert rows.fingerprint == StoredRows(stored[0]).fingerprint
