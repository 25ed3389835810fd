"""Windows of documents, shuffled and packed, and the batches cut from them.

A window is a number of documents whose pieces are shuffled and packed together. A
corpus in memory is one window per epoch, shared out row by row: process p of P takes
every P-th row, so the batches of all processes together are those of a single one. A
stream is cut into windows that end with the epoch at the latest.

Every iterator's state is a few numbers: where the current window began and how many
of its rows are gone. Resuming builds that window again.
"""

from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from experiments.data.documents import Shard
from experiments.data.packing import Batch, PackedRows
from experiments.data.row_format import RowFormat, TokenizedText


class CorpusWindows(grain.IterDataset):
    """A corpus in memory: one window per epoch, shuffled as a whole."""

    def __init__(
        self,
        text: TokenizedText,
        row_format: RowFormat,
        seed: int,
        shard: Shard,
    ):
        """Takes the text of all processes.

        Args:
          text: the training documents.
          row_format: how they become rows.
          seed: of the order.
          shard: which rows this process takes.
        """
        super().__init__()
        self.text, self.row_format = text, row_format
        self.order_seed, self.shard = seed, shard

    def __iter__(self) -> grain.DatasetIterator:
        return _CorpusWindowIterator(self)


class _CorpusWindowIterator(grain.DatasetIterator):
    """State: the epoch."""

    def __init__(self, corpus: CorpusWindows):
        super().__init__()
        self._corpus, self._epoch = corpus, 0

    def __next__(self) -> PackedRows:
        corpus, epoch = self._corpus, self._epoch
        rows = corpus.row_format.pack(corpus.text, (corpus.order_seed, epoch))
        self._epoch += 1
        # Rows are numbered through all epochs, which have equally many each, and
        # process p takes the numbers that leave p on division by P.
        index, count = corpus.shard.index, corpus.shard.count
        first = (index - epoch * len(rows)) % count
        return rows.select(np.arange(first, len(rows), count))

    def get_state(self) -> dict[str, Any]:
        return {"epoch": self._epoch}

    def set_state(self, state: dict[str, Any]) -> None:
        self._epoch = state["epoch"]


class StreamWindows(grain.IterDataset):
    """A stream: windows of a given number of pieces, never across epochs."""

    def __init__(
        self,
        open_epoch: Callable[[int | None], grain.DatasetIterator],
        row_format: RowFormat,
        seed: int,
        pieces: int,
    ):
        """Takes the share of this process.

        Args:
          open_epoch: order seed -> documents of one epoch.
          row_format: how they become rows.
          seed: of the order.
          pieces: a window ends with the documents that reach this number.
        """
        super().__init__()
        self.open_epoch, self.row_format = open_epoch, row_format
        self.order_seed, self.pieces = seed, pieces

    def __iter__(self) -> grain.DatasetIterator:
        return _StreamWindowIterator(self)


class _StreamWindowIterator(grain.DatasetIterator):
    """State: epoch, window within it, and where the next window's documents begin."""

    def __init__(self, stream: StreamWindows):
        super().__init__()
        self._stream = stream
        self._open(0)

    def _open(self, epoch: int) -> None:
        self._epoch, self._window = epoch, 0
        seeds = np.random.SeedSequence((self._stream.order_seed, epoch))
        self._documents = self._stream.open_epoch(int(seeds.generate_state(1)[0]))

    def __next__(self) -> PackedRows:
        stream = self._stream
        while True:
            text = stream.row_format.read(self._documents, pieces=stream.pieces)
            if text.predictions:
                break
            if self._window == 0:
                raise ValueError(
                    "the training data of this process hold no text to predict"
                )
            self._open(self._epoch + 1)
        seed = (stream.order_seed, self._epoch, self._window)
        self._window += 1
        return stream.row_format.pack(text, seed)

    def get_state(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "window": self._window,
            "documents": self._documents.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._open(state["epoch"])
        self._window = state["window"]
        self._documents.set_state(state["documents"])


class RowBatches(grain.IterDataset):
    """Consecutive rows of the windows, a fixed number at a time."""

    def __init__(self, windows: grain.IterDataset, rows: int):
        """Takes windows.

        Args:
          windows: dataset of `PackedRows`, endless.
          rows: rows of a batch.
        """
        super().__init__(windows)
        self._rows = rows

    def __iter__(self) -> grain.DatasetIterator:
        return _RowBatchIterator(iter(self._parent), self._rows)


class _RowBatchIterator(grain.DatasetIterator):
    """State: that of the windows before the current one, and the next row in it."""

    def __init__(self, windows: grain.DatasetIterator, rows: int):
        super().__init__(windows)
        self._rows = rows
        self._enter(windows.get_state(), 0)

    def _enter(self, before: dict[str, Any], row: int) -> None:
        self._before, self._row = before, row
        self._window: PackedRows | None = None

    def __next__(self) -> Batch:
        parts, missing = [], self._rows
        while missing:
            window = self._window
            if window is None:
                window = self._window = next(self._parent)
            stop = min(self._row + missing, len(window))
            if stop > self._row:
                parts.append(window.batch(self._row, stop))
            missing -= stop - self._row
            self._row = stop
            if stop == len(window):
                self._enter(self._parent.get_state(), 0)
        if len(parts) == 1:
            return parts[0]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def get_state(self) -> dict[str, Any]:
        return {"windows": self._before, "row": self._row}

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["windows"])
        self._enter(state["windows"], state["row"])
