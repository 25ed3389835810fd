"""Every source of clicks opens, with rows, batches and positions that fit a model."""

import dataclasses
import itertools
import shutil

import numpy as np
import pytest

from experiments.click_config import ClickDataConfig
from experiments.data.click_data import build_click_data
from experiments.data.criteo.formats import Rows, write_reference_npz, write_torchrec
from experiments.data.criteo.multi_hot import HOT_SIZES

SIZES = dict(rows=4, evaluation_rows=4, evaluation_batches=100, seed=0)


@pytest.fixture
def criteo(golden_dir, tmp_path):
    """Settings that prepare the original's test file, three times over."""
    text = tmp_path / "train.txt"
    text.write_bytes((golden_dir / "dlrm" / "criteo_small.tsv").read_bytes() * 3)
    return ClickDataConfig(
        source="criteo", path=str(text), cache_dir=str(tmp_path / "prepared")
    )


def _open(config, **changes):
    return build_click_data(config, **{**SIZES, **changes})


def _weight(batches):
    return sum(float(batch["weights"].sum()) for batch in batches)


def _check(data):
    batch = next(data.train)
    assert batch["dense"].shape == (4, data.rules.num_dense)
    assert len(batch["ids"]) == len(data.rules.rows)
    assert np.all(batch["ids"] >= 0)
    per_epoch = -(-data.samples // 4)
    rest = itertools.islice(data.train, per_epoch - 1)
    assert _weight([batch, *rest]) == data.samples
    assert len(data.metadata["corpus_sha256"]) == 64
    return batch


@pytest.mark.parametrize("world", ["P1", "O1"])
def test_planted(world):
    data = _open(ClickDataConfig(world=world, train_rows=30, test_rows=9))
    _check(data)
    assert _weight(data.validation()) == 9
    other = _open(ClickDataConfig(world=world, train_rows=31, test_rows=9))
    assert other.metadata["corpus_sha256"] != data.metadata["corpus_sha256"]


def test_generated_bags():
    config = ClickDataConfig(source="random", samples=10, ids_per_lookup=3)
    data = _open(config)
    batch = _check(data)
    assert data.rules.capacities == (12, 12, 12) and batch["ids"].shape == (3, 12)
    with pytest.raises(ValueError, match="single process"):
        _open(config, process_count=2)


def test_criteo_text_is_prepared_once_and_streamed(criteo):
    data = _open(criteo)
    _check(data)
    assert data.samples + 2 * _weight(data.validation()) >= 0.8 * data.samples
    # The text is not needed any more; another configuration is refused.
    again = _open(dataclasses.replace(criteo, source="prepared", path=criteo.cache_dir))
    assert again.rules == data.rules
    with pytest.raises(ValueError, match="sub_sample_rate"):
        _open(dataclasses.replace(criteo, sub_sample_rate=0.5))
    with pytest.raises(ValueError, match="needs data.cache_dir"):
        _open(dataclasses.replace(criteo, cache_dir=""))


def test_vocabularies(criteo, tmp_path):
    def rows(name, **fields):
        folder = str(tmp_path / name)
        return _open(dataclasses.replace(criteo, cache_dir=folder, **fields)).rules.rows

    assert set(rows("hash", vocabulary="hash", hash_rows=7)) == {7}
    # Rows 0 and 1 are for nothing and for the rare; no id comes 100 times.
    rare = rows("rare", vocabulary="frequency", min_count=100)
    some = rows("some", vocabulary="frequency", min_count=4)
    assert set(rare) == {2} and sum(some) > sum(rare)
    with pytest.raises(ValueError, match="min_count=4 has no use"):
        rows("bad", vocabulary="all", min_count=4)


def test_a_stream_resumes(criteo):
    straight = [next(it) for it in [_open(criteo).train] for _ in range(9)]
    first = _open(criteo).train
    for _ in range(5):
        next(first)
    second = _open(criteo).train
    second.set_state(first.get_state())
    for expected in straight[5:]:
        found = next(second)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])


def test_processes_share_a_stream(criteo):
    whole = next(_open(criteo).train)
    parts = [
        next(_open(criteo, process_index=p, process_count=2).train) for p in (0, 1)
    ]
    joined = np.concatenate([part["ids"] for part in parts], axis=1)
    np.testing.assert_array_equal(joined, whole["ids"])


def test_every_id_becomes_its_bag(criteo):
    data = _open(dataclasses.replace(criteo, multi_hot=True))
    batch = next(data.train)
    assert [len(ids) for ids in batch["ids"]] == [4 * size for size in HOT_SIZES]
    plain = next(_open(criteo).train)
    for ids, size, first in zip(batch["ids"], HOT_SIZES, plain["ids"], strict=True):
        np.testing.assert_array_equal(ids[::size], first)
    assert batch["segments"][0].tolist() == np.repeat(range(4), HOT_SIZES[0]).tolist()


def _rows(count):
    generator = np.random.default_rng(5)
    return Rows(
        generator.integers(0, 50, (count, 13)).astype(np.int32),
        generator.integers(0, 9, (count, 26)).astype(np.int32),
        generator.integers(0, 2, count).astype(np.int32),
    )


def test_the_originals_npz(tmp_path):
    rows = _rows(70)
    path = tmp_path / "joined.npz"
    write_reference_npz(str(path), rows)
    data = _open(ClickDataConfig(source="npz", path=str(path)))
    batch = _check(data)
    # Seven parts of ten; the last one is for test and validation.
    assert data.samples == 60 and _weight(data.validation()) == 5
    assert max(data.rules.rows) <= 9
    assert batch["dense"].max() <= np.log1p(50)


def test_torchrec_triples(tmp_path):
    for day in range(3):
        rows = _rows(10)
        rows = rows._replace(dense=np.log1p(rows.dense).astype(np.float32))
        write_torchrec(str(tmp_path / f"day_{day}"), [rows], 10)
    config = ClickDataConfig(source="torchrec", path=str(tmp_path))
    data = _open(config)
    _check(data)
    assert data.samples == 20
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(ValueError, match="files of at least two days"):
        _open(config)
