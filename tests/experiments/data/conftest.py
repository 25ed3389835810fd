"""Small data sets of every format, in the form in which the originals come."""

import collections
import gzip
import itertools
import json
import random

import numpy as np
import pytest

from experiments.config import DataConfig
from experiments.data.documents import Shard, content_position
from experiments.data.pipeline import build_text_data
from experiments.data.sources import open_source

SEQ_LEN = 16
WORDS = "the of Ångström data λ rows tokens 東京 gradient step\n loss norm".split(" ")


def _texts() -> list[str]:
    draw = random.Random(0)
    return [
        f"{i} " + " ".join(draw.choices(WORDS, k=draw.randint(1, 30)))
        for i in range(90)
    ]


def _write_text(folder, texts):
    for i, text in enumerate(texts):
        (folder / f"{i:03}.txt").write_text(text, encoding="utf-8")
    return folder


def _write_jsonl(folder, texts):
    # As C4: gzipped shards of one object per line.
    for shard in range(3):
        name = folder / f"c4-train.{shard:05}-of-00003.json.gz"
        with gzip.open(name, "wt", encoding="utf-8") as file:
            for text in texts[shard::3]:
                record = {
                    "text": text,
                    "timestamp": "2019-04-25T12:57:54Z",
                    "url": "https://example.org/",
                }
                file.write(json.dumps(record) + "\n")
    return folder


def _write_parquet(folder, texts):
    # As FineWeb: one column of text among others, several row groups per file.
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    for shard in range(2):
        mine = texts[shard::2]
        table = pyarrow.table(
            {
                "text": mine,
                "id": [f"<urn:uuid:{i}>" for i in range(len(mine))],
                "dump": ["CC-MAIN-2013-20"] * len(mine),
                "url": ["http://example.org"] * len(mine),
                "language": ["en"] * len(mine),
                "language_score": [0.9] * len(mine),
                "token_count": [len(text) for text in mine],
            }
        )
        name = folder / f"{shard:03}_00000.parquet"
        parquet.write_table(table, name, row_group_size=20)
    return folder


def _write_array_record(folder, texts):
    module = pytest.importorskip("array_record.python.array_record_module")
    for shard in range(2):
        name = folder / f"train.array_record-{shard:05}-of-00002"
        writer = module.ArrayRecordWriter(str(name), "group_size:1")
        for text in texts[shard::2]:
            writer.write(text.encode())
        writer.close()
    return folder


def _write_huggingface(folder, texts):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"text": texts, "url": [""] * len(texts)})
    data.save_to_disk(str(folder / "saved"))
    return folder / "saved"


WRITERS = {
    "text": _write_text,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
    "array_record": _write_array_record,
    "huggingface": _write_huggingface,
}


class Corpus:
    """Documents on disk in one format, and what the pipeline must make of them."""

    fraction = 0.2

    def __init__(self, source, folder):
        self.texts, self.source = _texts(), source
        self.path = str(WRITERS[source](folder, self.texts)) if folder else ""

    def config(self, **changes) -> DataConfig:
        """A configuration that reads them."""
        given = {
            "source": self.source,
            "path": self.path,
            "seq_len": SEQ_LEN,
            "validation_fraction": self.fraction,
            "shuffle_window": 150,
        }
        return DataConfig(**given | changes)

    def build(self, *, rows=4, seed=0, shard=(0, 1), evaluation=(4, 3), **changes):
        """Opens them."""
        return build_text_data(
            self.config(**changes),
            rows=rows,
            evaluation_rows=evaluation[0],
            evaluation_batches=evaluation[1],
            seed=seed,
            process_index=shard[0],
            process_count=shard[1],
        )

    def side(self, held_out: bool) -> list[str]:
        """Documents on one side of the split."""
        return [
            text
            for text in self.texts
            if (content_position(text) < self.fraction) == held_out
        ]

    def pieces(self, held_out: bool = False) -> collections.Counter:
        """Pieces of one side, cut as the rules say, by a loop over bytes."""
        pieces = collections.Counter()
        for text in self.side(held_out):
            tokens = b"\0" + text.encode() + b"\0"
            for start in range(0, len(tokens) - 1, SEQ_LEN):
                pieces[tokens[start : start + SEQ_LEN + 1]] += 1
        return pieces


def read_pieces(batch) -> collections.Counter:
    """Takes a batch apart and checks the rules every row obeys."""
    pieces = collections.Counter()
    assert {key: value.dtype for key, value in batch.items()} == {
        "tokens": np.int32,
        "targets": np.int32,
        "positions": np.int32,
        "segment_ids": np.int32,
        "weights": np.float32,
    }
    for row in range(len(batch["tokens"])):
        one = {key: value[row] for key, value in batch.items()}
        used = one["segment_ids"] > 0
        assert (one["weights"] == used).all()
        assert not one["targets"][~used].any() and not one["positions"][~used].any()
        # Segments are numbered from 1, side by side, padding behind them.
        segments = one["segment_ids"][used]
        assert (np.diff(segments, prepend=0) <= 1).all() and used[: used.sum()].all()
        for segment in np.unique(segments):
            here = one["segment_ids"] == segment
            tokens, targets = one["tokens"][here], one["targets"][here]
            assert (targets[:-1] == tokens[1:]).all()
            assert (one["positions"][here] == np.arange(here.sum())).all()
            pieces[bytes([*tokens, targets[-1]])] += 1
    return pieces


def take_epoch(iterator, predictions) -> list[dict]:
    """Batches of one row each until an epoch's predictions are used up."""
    batches = []
    while predictions > 0:
        batches.append(next(iterator))
        predictions -= int(batches[-1]["weights"].sum())
    assert predictions == 0
    return batches


def same_batches(a, b) -> bool:
    """Whether two lists of batches are equal in every array."""
    return len(a) == len(b) and all(
        (x[key] == y[key]).all() for x, y in zip(a, b, strict=True) for key in x
    )


def check_resume(corpus: Corpus) -> None:
    """Stops in the middle of an epoch and beyond its end, goes on exactly there."""
    straight = corpus.build()
    batches = list(itertools.islice(straight.train, 260))
    epoch = sum(corpus.pieces().values()) // 4
    for stop in (0, 1, 7, epoch - 1, epoch, epoch + 1):
        assert stop + 10 < len(batches)
        stopped = corpus.build()
        for _ in range(stop):
            next(stopped.train)
        state = json.loads(json.dumps(stopped.train.get_state()))
        stopped.train.close()
        # Other threads and read-ahead: neither is part of the order.
        resumed = corpus.build(num_threads=0)
        next(resumed.train)
        resumed.train.set_state(state)
        following = list(itertools.islice(resumed.train, 10))
        assert same_batches(following, batches[stop : stop + 10])
    straight.train.close()


def check_epoch(corpus: Corpus) -> None:
    """Every piece once per epoch, in another order the next time."""
    expected = corpus.pieces()
    predictions = sum((len(piece) - 1) * n for piece, n in expected.items())
    data = corpus.build(rows=1, num_threads=0)
    orders = []
    for _ in range(2):
        batches = take_epoch(data.train, predictions)
        pieces = [p for batch in batches for p in read_pieces(batch).elements()]
        assert collections.Counter(pieces) == expected
        orders.append(pieces)
    assert orders[0] != orders[1]


def check_shards(corpus: Corpus) -> None:
    """Processes read disjoint shares that make up the epoch."""
    source = open_source(corpus.config(), validation=False)
    for count in (2, 5):  # fewer and more processes than files
        for order_seed in (None, 3):
            shares = [
                [text for text in source.open(order_seed, Shard(p, count)) if text]
                for p in range(count)
            ]
            assert sorted(sum(shares, [])) == sorted(corpus.texts)
            assert all(shares)


def check_static_shards(corpus: Corpus) -> None:
    """The same through the pipeline, for shares that stay from epoch to epoch."""
    expected = corpus.pieces()
    parts = []
    for index in range(2):
        data = corpus.build(rows=1, shard=(index, 2), num_threads=0)
        part = collections.Counter()
        # Two processes' epochs end apart; an epoch of one is over when a piece of
        # it comes a second time.
        while True:
            pieces = read_pieces(next(data.train))
            if any(part[piece] + n > expected[piece] for piece, n in pieces.items()):
                break
            part += pieces
        parts.append(part)
    assert parts[0] + parts[1] == expected
    assert min(map(len, parts)) > len(expected) / 4


@pytest.fixture
def corpus(tmp_path):
    """Makes the corpus of one source."""
    return lambda source: Corpus(source, tmp_path)


@pytest.fixture
def checks():
    """The checks every source passes."""
    return {
        "resume": check_resume,
        "epoch": check_epoch,
        "shards": check_shards,
        "static_shards": check_static_shards,
    }


@pytest.fixture
def rows_of():
    """The reader of rows."""
    return read_pieces


@pytest.fixture
def equal():
    """Equality of lists of batches."""
    return same_batches
