"""From a configuration to batches: one resumable pipeline for every source.

documents -> share of this process -> tokens -> pieces -> shuffle -> rows -> batches

Rows are formed before they are batched, so neither the size of the micro-batch nor
threads nor read-ahead change which row follows which.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from experiments.config import DataConfig
from experiments.data.documents import (
    ChosenDocuments,
    Corpus,
    DocumentSource,
    Shard,
    content_position,
    split_corpus,
)
from experiments.data.held_out import HeldOutRows, read_held_out
from experiments.data.packing import Batch
from experiments.data.row_format import RowFormat, TokenizedText
from experiments.data.sources import open_source
from experiments.data.tokenizers import (
    Tokenizer,
    describe_tokenizer,
    load_tokenizer,
)
from experiments.data.windows import CorpusWindows, RowBatches, StreamWindows

_NAMES_IN_METADATA = 100


@dataclasses.dataclass(frozen=True)
class TextData:
    """Everything a run needs of its text.

    Attributes:
      tokenizer: text <-> ids.
      train: endless, checkpointable iterator over micro-batches of this process.
      validation: opens exactly the agreed number of batches, the same ones at every
        call; rows that the text does not fill have weight 0.
      metadata: JSON-able facts: source, files, hash, sizes, tokenizer, and the
        settings that fix the order of the data.
      bytes_per_token: UTF-8 bytes of the validation text per predicted token; bits
        per byte are `loss / log(2) / bytes_per_token`.
    """

    tokenizer: Tokenizer
    train: grain.DatasetIterator
    validation: Callable[[], Iterator[Batch]]
    metadata: dict[str, Any]
    bytes_per_token: float


def build_text_data(
    config: DataConfig,
    *,
    rows: int,
    evaluation_rows: int,
    evaluation_batches: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> TextData:
    """Opens the data of a run and checks that they suffice.

    Args:
      config: which text, and how it becomes rows.
      rows: rows of a training micro-batch of this process.
      evaluation_rows: rows of a validation batch of this process.
      evaluation_batches: number of validation batches.
      seed: of the order of the training data; >= 0.
      process_index: this process.
      process_count: processes that share the data.

    Returns:
      The data.

    Raises:
      ValueError: for a missing, empty or unreadable file, a malformed record, text
        that is shorter than a batch or leaves nothing to validate on, and numbers out
        of range.
      ImportError: for a format whose package is not installed.
    """
    _check_numbers(rows, evaluation_rows, evaluation_batches, seed)
    shard = _checked_shard(process_index, process_count)
    row_format = RowFormat(load_tokenizer(config.tokenizer), config.seq_len)
    train, held_out = _open_sides(config)
    validation = read_held_out(
        held_out.documents(None, Shard()),
        row_format,
        rows=evaluation_rows,
        batches=evaluation_batches,
        shard=shard,
        whole=isinstance(held_out, _CorpusSide),
    )
    windows, size = train.windows(row_format, config, seed, shard, rows)
    facts = _describe(config, row_format, seed, shard, train, held_out)
    facts["train"] |= size
    facts["validation"] |= _size(validation)
    return TextData(
        tokenizer=row_format.tokenizer,
        train=_batches(windows, rows, config),
        validation=validation.open,
        metadata=facts,
        bytes_per_token=validation.bytes_per_token,
    )


def _batches(
    windows: grain.IterDataset, rows: int, config: DataConfig
) -> grain.DatasetIterator:
    batches: grain.IterDataset = RowBatches(windows, rows)
    if config.num_threads and config.prefetch:
        batches = grain.experimental.ThreadPrefetchIterDataset(
            batches, prefetch_buffer_size=config.prefetch
        )
    return iter(batches)


@dataclasses.dataclass(frozen=True)
class _CorpusSide:
    """Training or validation text that is in memory."""

    texts: list[str]
    files: list[str]
    sha256: str

    def documents(self, order_seed: int | None, shard: Shard) -> Iterator[str]:
        del order_seed  # single pieces are shuffled later
        return iter(self.texts[shard.index :: shard.count])

    def windows(
        self,
        row_format: RowFormat,
        config: DataConfig,
        seed: int,
        shard: Shard,
        rows: int,
    ) -> tuple[CorpusWindows, dict[str, Any]]:
        text = row_format.read(iter(self.texts))
        _check_enough(text.predictions, rows * shard.count, config)
        return CorpusWindows(text, row_format, seed, shard), _size(text)


@dataclasses.dataclass(frozen=True)
class _StreamSide:
    """Training or validation text of a source that is read as it is used."""

    source: DocumentSource
    choose: Callable[[str], bool]

    @property
    def files(self) -> list[str]:
        return list(self.source.files)

    @property
    def sha256(self) -> str:
        return self.source.sha256

    def documents(self, order_seed: int | None, shard: Shard) -> ChosenDocuments:
        return ChosenDocuments(self.source.open(order_seed, shard), self.choose)

    def windows(
        self,
        row_format: RowFormat,
        config: DataConfig,
        seed: int,
        shard: Shard,
        rows: int,
    ) -> tuple[grain.IterDataset, dict[str, Any]]:
        first = row_format.read(
            self.documents(None, shard), predictions=rows * row_format.seq_len
        )
        _check_enough(first.predictions, rows, config)
        windows: grain.IterDataset = StreamWindows(
            lambda order_seed: self.documents(order_seed, shard),
            row_format,
            seed,
            config.shuffle_window,
        )
        if config.num_threads:
            # The next window is tokenized while this one is used up.
            windows = grain.experimental.ThreadPrefetchIterDataset(
                windows, prefetch_buffer_size=1
            )
        return windows, {"documents": None, "bytes": None, "predictions": None}


def _open_sides(
    config: DataConfig,
) -> tuple[_CorpusSide | _StreamSide, _CorpusSide | _StreamSide]:
    """Training and validation text, disjoint."""
    fraction = config.validation_fraction
    if not config.validation_path and not fraction > 0:
        raise ValueError(
            "data.validation_fraction must be > 0 where data.validation_path is not "
            f"given, got {fraction}"
        )
    source = open_source(config, validation=False)
    if config.validation_path:
        other = open_source(config, validation=True)
        if source.sha256 == other.sha256 or set(source.files) & set(other.files):
            raise ValueError(
                f"data.validation_path={config.validation_path!r} holds files of "
                f"data.path={config.path!r}: it would validate on training text"
            )
        return _whole(source), _whole(other)
    if isinstance(source, Corpus):
        train, held_out = split_corpus(source.texts, fraction)
        return _whole(source._replace(texts=train)), _whole(
            source._replace(texts=held_out)
        )
    return (
        _StreamSide(source, lambda text: content_position(text) >= fraction),
        _StreamSide(source, lambda text: content_position(text) < fraction),
    )


def _whole(source: Corpus | DocumentSource) -> _CorpusSide | _StreamSide:
    if isinstance(source, Corpus):
        return _CorpusSide(*source)
    return _StreamSide(source, lambda text: True)


def _check_numbers(
    rows: int, evaluation_rows: int, evaluation_batches: int, seed: int
) -> None:
    for name, value, low in (
        ("rows", rows, 1),
        ("evaluation_rows", evaluation_rows, 1),
        ("evaluation_batches", evaluation_batches, 1),
        ("seed", seed, 0),
    ):
        if not value >= low:
            raise ValueError(f"{name} must be >= {low}, got {value}")


def _checked_shard(process_index: int, process_count: int) -> Shard:
    if not 0 <= process_index < process_count:
        raise ValueError(
            "process_index must lie in [0, process_count), got "
            f"{process_index} of {process_count}"
        )
    return Shard(process_index, process_count)


def _check_enough(predictions: int, rows: int, config: DataConfig) -> None:
    if predictions < rows * config.seq_len:
        raise ValueError(
            f"the training text (data.source={config.source!r}, "
            f"data.path={config.path!r}) has {predictions} tokens to predict, fewer "
            f"than one batch of {rows} rows x data.seq_len={config.seq_len}"
        )


def _size(text: TokenizedText | HeldOutRows) -> dict[str, Any]:
    return {
        "documents": text.documents,
        "bytes": text.bytes,
        "predictions": text.predictions,
    }


def _describe(
    config: DataConfig,
    row_format: RowFormat,
    seed: int,
    shard: Shard,
    train: _CorpusSide | _StreamSide,
    held_out: _CorpusSide | _StreamSide,
) -> dict[str, Any]:
    """What a run's metadata say of its data, sizes left out."""
    in_memory = isinstance(train, _CorpusSide)

    def files(side: _CorpusSide | _StreamSide) -> dict[str, Any]:
        names = list(side.files)
        return {"file_count": len(names), "files": names[:_NAMES_IN_METADATA]}

    return {
        "source": config.source,
        "path": config.path,
        "validation_path": config.validation_path,
        "corpus_sha256": train.sha256,
        # Of a stream: of the names and sizes of its files.
        "corpus_sha256_of": "contents" if in_memory else "names and sizes",
        "tokenizer": describe_tokenizer(row_format.tokenizer),
        "train": files(train),
        "validation": files(held_out),
        "order": {
            "seed": seed,
            "seq_len": config.seq_len,
            "shuffle_window": None if in_memory else config.shuffle_window,
            "process_count": shard.count,
            "numpy": np.__version__,
        },
    }
