import numpy as np
import pytest

from experiments.data.documents import ChosenDocuments, FileDocuments, Shard
from experiments.data.row_format import RowFormat
from experiments.data.tokenizers import load_tokenizer
from experiments.data.windows import CorpusWindows, RowBatches, StreamWindows

TEXTS = ["a" * n for n in (0, 3, 40, 7, 200, 18, 65, 1)]
FORMAT = RowFormat(load_tokenizer("byte"), 16)


def in_memory(shard=Shard(), seed=0):  # noqa: B008
    return CorpusWindows(FORMAT.read(iter(TEXTS)), FORMAT, seed, shard)


def stream(texts=TEXTS, pieces=5):
    def read(path, field, first, stride):
        return ((i, texts[i]) for i in range(first, len(texts), stride))

    source = FileDocuments(["file"], "", read, "text")
    return StreamWindows(
        lambda order_seed: ChosenDocuments(
            source.open(order_seed, Shard()), lambda text: True
        ),
        FORMAT,
        0,
        pieces,
    )


def test_epochs_in_memory_have_equally_many_rows_in_other_orders():
    windows = iter(in_memory())
    first, second, third = (next(windows) for _ in range(3))
    assert len(first) == len(second) == len(third) > 20
    assert (first.starts != second.starts).any()
    assert (second.starts != third.starts).any()
    # Whole pieces and one shorter one per document.
    assert sorted(first.starts) == sorted(second.starts)


def test_processes_divide_the_rows_of_every_epoch():
    whole = iter(in_memory())
    parts = [iter(in_memory(Shard(p, 4))) for p in range(4)]
    for _ in range(4):
        rows, shares = next(whole), [next(part) for part in parts]
        assert sum(map(len, shares)) == len(rows)
        starts = np.concatenate([share.starts for share in shares])
        assert sorted(starts) == sorted(rows.starts)


def test_windows_of_a_stream_end_with_the_epoch(monkeypatch):
    monkeypatch.setattr("experiments.data.row_format._DOCUMENTS_AT_A_TIME", 1)
    windows = iter(stream())
    predictions = sum(len(text) + 1 for text in TEXTS if text)
    for epoch in range(3):
        seen = 0
        while seen < predictions:
            seen += int(next(windows).sizes.sum())
            assert windows.get_state()["epoch"] == epoch
        assert seen == predictions and windows.get_state()["window"] > 2


def test_a_batch_may_span_windows_and_epochs():
    rows = iter(RowBatches(in_memory(), 100))
    window = iter(in_memory())
    tokens = [
        rows_of.batch(0, len(rows_of))["tokens"]
        for rows_of in (next(window) for _ in range(10))
    ]
    expected = np.concatenate(tokens)[:200]
    read = np.concatenate([next(rows)["tokens"], next(rows)["tokens"]])
    assert (read == expected).all()


def test_state_is_small_and_taken_anywhere():
    rows = iter(RowBatches(stream(), 3))
    for _ in range(7):
        next(rows)
    state = rows.get_state()
    assert len(str(state)) < 200
    expected = [next(rows)["tokens"] for _ in range(20)]
    rows.set_state(state)
    again = [next(rows)["tokens"] for _ in range(20)]
    assert all((a == b).all() for a, b in zip(expected, again, strict=True))


def test_a_stream_without_text_does_not_spin():
    with pytest.raises(ValueError, match="hold no text to predict"):
        next(iter(stream(texts=[])))
    with pytest.raises(ValueError, match="hold no text to predict"):
        next(iter(stream(texts=[None, None])))
