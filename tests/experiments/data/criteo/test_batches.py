import functools
import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments.data.criteo import row_sources
from experiments.data.criteo.batches import stream_batches
from experiments.data.criteo.formats import Rows, open_binary, write_binary
from experiments.data.criteo.kaggle import read_kaggle
from experiments.data.criteo.row_sources import StoredRows, TextRows
from experiments.data.criteo.text_files import read_blocks

ROWS, SIZE = 103, 8
EPOCH = -(-ROWS // SIZE)
ROOT = pathlib.Path(__file__).resolve().parents[4]


@pytest.fixture(params=["text", "stored"])
def source(request, write, lines, tmp_path, monkeypatch):
    """Rows that are known by their first integer, in small blocks."""
    monkeypatch.setattr(row_sources, "_ROWS_AT_A_TIME", 16)
    small = functools.partial(read_blocks, block_bytes=2000)
    monkeypatch.setattr(row_sources, "read_blocks", small)
    text = lines(ROWS, seed=1)
    numbered = []
    for row, line in enumerate(text):
        fields = line.split(b"\t")
        numbered.append(b"\t".join([fields[0], b"%d" % row, *fields[2:]]))
    data = read_kaggle(write(numbered, "all"))
    if request.param == "text":
        paths = [write(numbered[:60], "day_0"), write(numbered[60:], "day_1")]
        return TextRows(paths, data.vocabulary, dense_transform="none")
    path = str(tmp_path / "rows.bin")
    small = np.minimum(data.dense, 10**9)  # the file has 32 bits for an integer
    write_binary(path, [Rows(small, data.ids, data.labels)])
    rows = open_binary(path)
    return StoredRows([rows.select(0, 60), rows.select(60, ROWS)], "none")


def numbers(batches) -> list[int]:
    """Row numbers of the samples, padding left out."""
    found = []
    for batch in batches:
        real = batch["weights"] == 1
        assert real[: real.sum()].all() and not batch["weights"][real.sum() :].any()
        for name in ("dense", "ids", "labels"):
            assert not batch[name][~real].any()
        found += batch["dense"][real, 0].astype(int).tolist()
    return found


def same(first, second) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all((a[key] == b[key]).all() for a, b in pairs for key in a)


@pytest.mark.parametrize("shuffle_rows", [0, 1, 30, 1000])
def test_every_row_comes_once_per_epoch(source, shuffle_rows):
    batches = list(
        stream_batches(source, batch_size=SIZE, shuffle_rows=shuffle_rows, epochs=3)
    )
    assert len(batches) == 3 * EPOCH
    forms = {"dense": (SIZE, 13), "ids": (SIZE, 26), "labels": (SIZE,)}
    for batch in batches:
        assert {key: batch[key].shape for key in forms} == forms
        types = {key: value.dtype for key, value in batch.items()}
        assert types.pop("ids") == np.int32
        assert set(types) == {"dense", "labels", "weights"}
        assert set(types.values()) == {np.dtype(np.float32)}
    orders = [numbers(batches[i : i + EPOCH]) for i in (0, EPOCH, 2 * EPOCH)]
    assert all(sorted(order) == list(range(ROWS)) for order in orders)
    if shuffle_rows == 0:
        assert orders[0] == orders[1] == list(range(ROWS))
    if shuffle_rows > 1:
        assert len(set(map(tuple, orders))) == 3


def test_rows_stay_together(source, lines):
    plain = list(stream_batches(source, batch_size=ROWS, epochs=1))[0]
    mixed = list(stream_batches(source, batch_size=ROWS, shuffle_rows=64, epochs=1))[0]
    order = np.argsort(mixed["dense"][:, 0])
    for key in plain:
        np.testing.assert_array_equal(mixed[key][order], plain[key])


def test_order_depends_on_seed_and_epoch_alone(source):
    def order(seed, size=SIZE, **options):
        taken = stream_batches(
            source, batch_size=size, shuffle_rows=30, seed=seed, epochs=1, **options
        )
        return numbers(taken)

    assert order(1) == order(1) == order(1, prefetch=3) == order(1, size=5)
    assert order(1) != order(2)


def test_order_of_text_does_not_depend_on_the_blocks(source, monkeypatch):
    if isinstance(source, StoredRows):
        pytest.skip("the block is the grain of its shuffle")
    options = {"batch_size": SIZE, "shuffle_rows": 20, "epochs": 1}
    order = numbers(stream_batches(source, **options))
    monkeypatch.setattr(row_sources, "_ROWS_AT_A_TIME", 1000)
    monkeypatch.setattr(row_sources, "read_blocks", read_blocks)
    assert numbers(stream_batches(source, **options)) == order


@pytest.mark.parametrize("shuffle_rows", [0, 1, 30, 1000])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_resumes_after_every_batch(source, shuffle_rows, prefetch):
    options = {"batch_size": SIZE, "shuffle_rows": shuffle_rows, "prefetch": prefetch}
    straight = stream_batches(source, **options)
    batches = list(itertools.islice(straight, 3 * EPOCH))
    stopped = stream_batches(source, **options)
    for stop in range(2 * EPOCH):
        state = json.loads(json.dumps(stopped.get_state()))
        resumed = stream_batches(source, **options)
        if stop % 2:
            next(resumed)
        resumed.set_state(state)
        assert resumed.get_state() == state
        following = list(itertools.islice(resumed, EPOCH // 2))
        assert same(following, batches[stop : stop + EPOCH // 2])
        resumed.close()
        next(stopped)
    stopped.close()
    straight.close()


def test_epoch_ends_with_its_last_batch(source):
    # 103 rows: of size 103 the last batch is full, of size 8 it is not.
    for size in (SIZE, ROWS):
        batches = stream_batches(source, batch_size=size, shuffle_rows=30, epochs=2)
        for epoch in (0, 1):
            for _ in range(-(-ROWS // size)):
                assert batches.get_state()["epoch"] == epoch
                next(batches)
        state = batches.get_state()
        assert (state["epoch"], state["start"], state["row"]) == (2, None, 0)
        with pytest.raises(StopIteration):
            next(batches)
        # A finished run goes on with the next epoch when it may.
        resumed = stream_batches(source, batch_size=size, shuffle_rows=30)
        resumed.set_state(state)
        every = stream_batches(source, batch_size=size, shuffle_rows=30, epochs=3)
        third = list(every)[-(-ROWS // size) * 2 :]
        assert same(itertools.islice(resumed, len(third)), third)


def test_another_position_is_refused(source):
    state = stream_batches(source, batch_size=SIZE, seed=1).get_state()
    for options, name in (({"seed": 2}, "seed"), ({"shuffle_rows": 9}, "shuffle_rows")):
        other = stream_batches(source, batch_size=SIZE, **{"seed": 1} | options)
        with pytest.raises(ValueError, match=f"another order: {name} was"):
            other.set_state(state)
    other = stream_batches(source, batch_size=5, seed=1)
    with pytest.raises(ValueError, match="in other data .*: source was 'x'"):
        other.set_state(state | {"source": "x"})
    other.set_state(state)  # the batch size is no part of the order


def test_a_bad_line_stays_bad_and_loses_no_row(write, lines):
    text = lines(40, seed=2)
    vocabulary = read_kaggle(write(text)).vocabulary
    paths = [write(text[:20], "day_0"), write([*text[:5], b"bad"], "day_1")]
    batches = stream_batches(TextRows(paths, vocabulary), batch_size=8)
    next(batches)
    next(batches)
    before = batches.get_state()
    for _ in range(2):
        with pytest.raises(ValueError, match="day_1, line 6: expected 40 fields"):
            next(batches)
        assert batches.get_state() == before


def test_skipped_lines_are_counted_in_the_source(write, lines):
    text = lines(20, seed=3)
    vocabulary = read_kaggle(write(text)).vocabulary
    source = TextRows([write([*text, b"bad"])], vocabulary, on_bad_line="skip")
    assert len(list(stream_batches(source, batch_size=20, epochs=2))) == 2
    assert source.skipped.count == 2


def test_refuses_settings(source, write):
    for name, value in (
        ("batch_size", 0),
        ("shuffle_rows", -1),
        ("seed", -1),
        ("epochs", 0),
        ("prefetch", -1),
    ):
        with pytest.raises(ValueError, match=f"{name} must be >= .*, got {value}"):
            stream_batches(source, **{"batch_size": 4} | {name: value})
    if isinstance(source, TextRows):
        empty = TextRows([write([], "empty")], source.vocabulary)
        with pytest.raises(ValueError, match="the data hold no row"):
            next(stream_batches(empty, batch_size=4))


# The growth of resident memory over a file after a short one has been read, in bytes.
MEMORY = """
import sys
from experiments.data.criteo import StoredRows, TextRows, Vocabulary, VocabularyConfig
from experiments.data.criteo import stream_batches
from experiments.data.criteo.formats import open_binary

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def most(path, shuffle_rows):
    vocabulary = Vocabulary(VocabularyConfig("hash", hash_rows=1000), ())
    binary = path.endswith(".bin")
    source = StoredRows([open_binary(path)]) if binary else TextRows([path], vocabulary)
    options = {"batch_size": 4096, "shuffle_rows": shuffle_rows, "epochs": 1}
    return max(resident() for batch in stream_batches(source, **options))

short, long, shuffle_rows = sys.argv[1:]
before = most(short, int(shuffle_rows))
print(most(long, int(shuffle_rows)) - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("form", ["text", "stored"])
def test_memory_is_flat_in_the_size_of_the_file(tmp_path, lines, form):
    if form == "text":
        part, name = b"".join(line + b"\n" for line in lines(4000)), ".txt"
    else:
        part, name = np.ones((10_000, 40), "<i4").tobytes(), ".bin"
    target = 100 << 20
    sizes = {"short": 6 << 20, "long": target}
    for stem, size in sizes.items():
        with open(tmp_path / f"{stem}{name}", "wb") as file:
            for _ in range(-(-size // len(part))):
                file.write(part)
    paths = [str(tmp_path / f"{stem}{name}") for stem in sizes]
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, *paths, "8192"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < target // 50
