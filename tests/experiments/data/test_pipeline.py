import itertools
import json
import re

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.config import DataConfig
from experiments.data.pipeline import build_text_data

STREAMED = ("jsonl", "parquet", "array_record")
SOURCES = ("text", *STREAMED)  # huggingface: test_huggingface.py


@pytest.mark.parametrize("source", SOURCES)
def test_every_token_is_predicted_once_per_epoch(corpus, checks, source):
    checks["epoch"](corpus(source))


@pytest.mark.parametrize("source", SOURCES)
def test_resumes_exactly_within_and_across_epochs(corpus, checks, source):
    checks["resume"](corpus(source))


@pytest.mark.parametrize("source", STREAMED)
def test_processes_read_disjoint_shares(corpus, checks, source):
    checks["shards"](corpus(source))


@pytest.mark.parametrize("source", ("jsonl", "parquet"))
def test_processes_train_on_disjoint_pieces(corpus, checks, source):
    checks["static_shards"](corpus(source))


def test_a_corpus_in_memory_is_shared_row_by_row(corpus, equal):
    # The batches of three processes, interleaved, are those of one, epoch after epoch.
    text = corpus("text")
    alone = list(itertools.islice(text.build(rows=6).train, 150))
    parts = [text.build(rows=2, shard=(p, 3), evaluation=(2, 3)) for p in range(3)]
    for batch in alone:
        local = [next(part.train) for part in parts]
        for key, value in batch.items():
            both = np.stack([one[key] for one in local], axis=1)
            assert (both.reshape(value.shape) == value).all()


@pytest.mark.parametrize("source", ("text", "jsonl"))
def test_validation_is_shared_row_by_row(corpus, source):
    text = corpus(source)
    alone = list(text.build(evaluation=(6, 4)).validation())
    parts = [
        list(text.build(evaluation=(2, 4), shard=(p, 3)).validation()) for p in range(3)
    ]
    for number, batch in enumerate(alone):
        for key, value in batch.items():
            both = np.stack([part[number][key] for part in parts], axis=1)
            assert (both.reshape(value.shape) == value).all()


@pytest.mark.parametrize("source", ("text", "jsonl"))
def test_rows_do_not_depend_on_the_micro_batch(corpus, source):
    text, streams = corpus(source), []
    for rows, count in ((1, 240), (3, 80), (16, 15)):
        batches = list(itertools.islice(text.build(rows=rows).train, count))
        streams.append(np.concatenate([batch["tokens"] for batch in batches]))
    assert (streams[0] == streams[1]).all() and (streams[0] == streams[2]).all()


@pytest.mark.parametrize("source", ("text", "jsonl", "array_record"))
def test_threads_and_read_ahead_keep_the_order(corpus, equal, source):
    text = corpus(source)
    settings = ({"num_threads": 0}, {"num_threads": 3}, {"prefetch": 0})
    streams = [
        list(itertools.islice(text.build(**setting).train, 60)) for setting in settings
    ]
    assert equal(streams[0], streams[1]) and equal(streams[0], streams[2])


@pytest.mark.parametrize("source", ("text", "jsonl", "array_record"))
def test_seeds_order_the_training_text_and_leave_validation_alone(
    corpus, equal, source
):
    text = corpus(source)
    first, again, other = (text.build(seed=seed) for seed in (0, 0, 1))
    a, b, c = (list(itertools.islice(data.train, 8)) for data in (first, again, other))
    assert equal(a, b) and not equal(a, c)
    assert equal(list(first.validation()), list(other.validation()))


@pytest.mark.parametrize("source", SOURCES)
def test_validation_is_held_out_stable_and_padded(corpus, rows_of, equal, source):
    text = corpus(source)
    data = text.build(evaluation=(8, 40))  # more room than text
    batches = list(data.validation())
    assert len(batches) == 40 and equal(batches, list(data.validation()))
    assert all(batch["tokens"].shape == (8, 16) for batch in batches)
    seen = sum((rows_of(batch) for batch in batches), start=type(text.pieces())())
    assert seen == text.pieces(held_out=True)
    assert batches[-1]["weights"].sum() == 0
    documents = [document.encode() for document in text.side(held_out=True)]
    size = sum(map(len, documents))
    assert data.bytes_per_token == size / (size + len(documents))


def test_validation_path_leaves_all_of_path_for_training(corpus, tmp_path):
    text = corpus("jsonl")
    apart = tmp_path / "validation.jsonl"
    apart.write_text(json.dumps({"text": "held out " * 40}) + "\n")
    data = text.build(
        path=str(tmp_path / "c4-*"), validation_path=str(apart), num_threads=0
    )
    (batch, *_) = data.validation()
    assert b"held out" in bytes(batch["tokens"].astype(np.uint8))
    text.fraction = 0.0  # nothing else is held out
    total = sum((len(p) - 1) * n for p, n in text.pieces().items())
    seen = 0
    while seen < total:
        seen += next(data.train)["weights"].sum()
    # Batches of four rows: the next epoch may have begun.
    assert data.train.get_state()["windows"]["epoch"] <= 1


def test_pieces_of_one_long_document_are_far_apart(tmp_path):
    # Neighbours in the text must not be neighbours in the stream.
    numbers = " ".join(f"{i:05}" for i in range(6000))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": numbers}) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "other " * 50}) + "\n")
    config = DataConfig(
        source="jsonl",
        path=str(tmp_path / "a.jsonl"),
        validation_path=str(tmp_path / "b.jsonl"),
        seq_len=24,
    )
    data = build_text_data(
        config, rows=8, evaluation_rows=2, evaluation_batches=1, seed=0
    )
    neighbours = 0
    for batch in itertools.islice(data.train, 100):
        starts = [
            int(re.search(rb"\d{5}", bytes(row)).group())
            for row in batch["tokens"].astype(np.uint8)
        ]
        gaps = np.abs(np.subtract.outer(starts, starts))[np.triu_indices(8, 1)]
        neighbours += (gaps <= 4).sum()
    # 28 pairs of 1500 pieces: 0.037 by chance in a batch, 7 if read in order.
    assert neighbours < 20


def test_grain_items_of_a_checkpoint_restore(corpus, equal, tmp_path):
    text = corpus("parquet")
    data = text.build()
    for _ in range(5):
        next(data.train)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(
            5,
            args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(data.train)),
        )
        manager.wait_until_finished()
        expected = list(itertools.islice(data.train, 4))
        fresh = text.build()
        manager.restore(
            5,
            args=ocp.args.Composite(
                data=grain.checkpoint.CheckpointRestore(fresh.train)
            ),
        )
    assert equal(list(itertools.islice(fresh.train, 4)), expected)


@pytest.mark.parametrize("source", SOURCES)
def test_metadata_are_json_and_name_the_data(corpus, source):
    data = corpus(source).build()
    facts = json.loads(json.dumps(data.metadata))
    assert facts["source"] == source and len(facts["corpus_sha256"]) == 64
    assert facts["tokenizer"]["name"] == "byte"
    assert facts["order"]["seed"] == 0
    assert facts["validation"]["predictions"] > 0
    assert facts["train"]["file_count"] == len(facts["train"]["files"])
    assert facts["corpus_sha256"] == corpus(source).build().metadata["corpus_sha256"]


def test_a_file_tokenizer_runs_through_the_pipeline(corpus, tmp_path):
    library = pytest.importorskip("tokenizers")
    text = corpus("jsonl")
    bpe = library.ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        text.texts, vocab_size=300, special_tokens=["<|endoftext|>"]
    )
    (tmp_path / "vocabulary").mkdir()
    path = tmp_path / "vocabulary" / "tokenizer.json"
    bpe.save(str(path))
    shards = str(tmp_path / "*.json.gz")
    data = text.build(tokenizer=str(path), path=shards)
    end = data.tokenizer.eos_id
    assert data.bytes_per_token > 1.0
    assert data.metadata["tokenizer"]["sha256"]
    firsts = [
        batch["tokens"][batch["positions"] == 0]
        for batch in itertools.islice(data.train, 30)
    ]
    assert (np.concatenate(firsts) == end).any()  # begins documents as well


def build(config, **changes):
    given = {
        "rows": 4,
        "evaluation_rows": 4,
        "evaluation_batches": 2,
        "seed": 0,
    }
    return build_text_data(config, **given | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows must be >= 1, got 0"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"evaluation_rows": 0}, "evaluation_rows must be >= 1, got 0"),
        ({"evaluation_batches": 0}, "evaluation_batches must be >= 1, got 0"),
        (
            {"process_index": 2, "process_count": 2},
            r"process_index must lie in \[0, process_count\), got 2 of 2",
        ),
    ],
)
def test_numbers_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(DataConfig(), **changes)


def test_no_validation_share_is_an_error():
    with pytest.raises(ValueError, match="data.validation_fraction must be > 0"):
        build(DataConfig(validation_fraction=0.0))


@pytest.mark.parametrize("source", ("text", "jsonl"))
def test_fewer_tokens_than_a_batch_is_an_error(corpus, source):
    with pytest.raises(ValueError, match="fewer than one batch of 5000 rows x"):
        corpus(source).build(rows=5000)


@pytest.mark.parametrize("source", ("text", "jsonl"))
def test_validating_on_training_text_is_an_error(corpus, source):
    text = corpus(source)
    with pytest.raises(ValueError, match="would validate on training text"):
        text.build(validation_path=text.path)


def test_a_stream_without_validation_text_is_an_error(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"text": "x" * 1000}) + "\n")
    config = DataConfig(source="jsonl", path=str(path), validation_fraction=1e-6)
    with pytest.raises(ValueError, match="there is no validation text"):
        build(config)


def test_malformed_lines_beyond_the_first_batch_stop_the_reader(corpus, tmp_path):
    text = corpus("jsonl")
    lines = [json.dumps({"text": document}) for document in text.texts]
    lines[80] = '{"text": "cut off'
    path = tmp_path / "late.jsonl"
    path.write_text("\n".join(lines) + "\n")
    apart = tmp_path / "validation.jsonl"
    apart.write_text(json.dumps({"text": "held out " * 40}) + "\n")
    data = text.build(path=str(path), validation_path=str(apart), rows=1)
    with pytest.raises(ValueError, match=r"late\.jsonl, line 81: malformed JSON"):
        list(itertools.islice(data.train, 1000))
