"""Batches of a fixed size from rows of any source, resumable at every batch.

Rows pass through a shuffle buffer that is filled, emptied in random order and filled
again. Each filling is drawn from (seed, epoch, number of the filling), so that the
state is where it began and how many of its rows are gone; resuming fills it again.
"""

from typing import Any, NamedTuple

import grain
import numpy as np

from experiments.data.criteo.parsing import NUM_DENSE, NUM_IDS
from experiments.data.criteo.row_sources import Place, RowSource, SourceBlock

Batch = dict[str, np.ndarray]


def stream_batches(
    source: RowSource,
    *,
    batch_size: int,
    shuffle_rows: int = 0,
    seed: int = 0,
    epochs: int | None = None,
    prefetch: int = 0,
) -> grain.DatasetIterator[Batch]:
    """Opens batches in which every row of an epoch comes once.

    A batch is a dict of `dense` float32 [B, 13], `ids` int32 [B, 26] (one row per
    sample, one column per table), `labels` float32 [B] and `weights` float32 [B]. The
    last batch of an epoch is filled up with rows of zeros that have weight 0, all
    others have weight 1. Memory is the shuffle buffer, a block or two of the source and
    `prefetch` batches, whatever the size of the files.

    The iterator has `get_state()`, a dict that JSON can hold, and `set_state()`; a
    resumed iterator gives exactly the batches that would have followed. Batch size,
    prefetch and number of epochs may change in between.

    Args:
      source: `TextRows` or `StoredRows`.
      batch_size: B, >= 1.
      shuffle_rows: rows of the shuffle buffer; 0 keeps the order. `StoredRows` then
        also visit their blocks of 4,096 rows in random order, which makes a buffer of
        some hundred thousand rows nearly a full shuffle.
      seed: of the order, which also differs from epoch to epoch; >= 0.
      epochs: how many to give; None is endless.
      prefetch: batches that a thread of its own makes ahead; 0 has no thread.

    Returns:
      The iterator.

    Raises:
      ValueError: for numbers out of range; while iterating, if there is no row.
    """
    for name, value, low in (
        ("batch_size", batch_size, 1),
        ("shuffle_rows", shuffle_rows, 0),
        ("seed", seed, 0),
        ("epochs", 1 if epochs is None else epochs, 1),
        ("prefetch", prefetch, 0),
    ):
        if not value >= low:
            raise ValueError(f"{name} must be >= {low}, got {value}")
    batches: grain.IterDataset = _Batches(
        source, batch_size, shuffle_rows, seed, epochs
    )
    if prefetch:
        batches = grain.experimental.ThreadPrefetchIterDataset(
            batches, prefetch_buffer_size=prefetch
        )
    return iter(batches)


class _Batches(grain.IterDataset):
    """What `stream_batches` was asked for."""

    def __init__(
        self,
        source: RowSource,
        batch_size: int,
        shuffle_rows: int,
        seed: int,
        epochs: int | None,
    ):
        super().__init__()
        self.source, self.batch_size = source, batch_size
        self.shuffle_rows, self.order_seed, self.epochs = shuffle_rows, seed, epochs

    def __iter__(self) -> grain.DatasetIterator:
        return _BatchIterator(self)


class _Filling(NamedTuple):
    """Rows of the buffer, and the order in which they leave it.

    Without shuffling it is a block of the source, in its order.
    """

    rows: SourceBlock
    order: np.ndarray | None

    @property
    def size(self) -> int:
        return self.rows.size

    def take(self, start: int, stop: int) -> Batch:
        chosen = slice(start, stop) if self.order is None else self.order[start:stop]
        return {
            "dense": self.rows.dense[chosen],
            "ids": self.rows.ids[chosen],
            "labels": self.rows.labels[chosen],
            "weights": np.ones(stop - start, np.float32),
        }


class _BatchIterator(grain.DatasetIterator):
    """State: epoch, number and first row of the filling, and how many rows are gone."""

    def __init__(self, stream: _Batches):
        super().__init__()
        self._stream = stream
        self._fixed = {
            "source": stream.source.fingerprint,
            "seed": stream.order_seed,
            "shuffle_rows": stream.shuffle_rows,
        }
        self._buffer: SourceBlock | None = None
        self._enter(0, 0, None, 0)

    def _enter(self, epoch: int, number: int, start: Place | None, row: int) -> None:
        self._epoch, self._number, self._start, self._row = epoch, number, start, row
        self._blocks = self._rest = self._filling = None

    def __next__(self) -> Batch:
        stream = self._stream
        if stream.epochs is not None and self._epoch >= stream.epochs:
            raise StopIteration
        before = self.get_state()
        try:
            return self._next_batch(stream.batch_size)
        except BaseException:
            # Whoever goes on after a bad line meets it again; no row is lost.
            self.set_state(before)
            raise

    def _next_batch(self, missing: int) -> Batch:
        parts = []
        while missing:
            filling = self._filling
            if filling is None:
                filling = self._filling = self._fill()
            stop = min(self._row + missing, filling.size)
            parts.append(filling.take(self._row, stop))
            missing -= stop - self._row
            self._row = stop
            if stop == filling.size and self._leave():
                break
        if missing:
            parts.append(_padding(missing))
        if len(parts) == 1:
            return parts[0]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _leave(self) -> bool:
        """Goes on to the next filling, or to the next epoch; says whether to that."""
        self._look_ahead()
        if self._rest is None:
            self._enter(self._epoch + 1, 0, None, 0)
            return True
        self._number, self._row, self._filling = self._number + 1, 0, None
        self._start = self._rest.place(0)
        return False

    def _look_ahead(self) -> None:
        if self._rest is None:
            self._rest = next(self._blocks, None)

    def _fill(self) -> _Filling:
        stream = self._stream
        shuffles = stream.shuffle_rows > 0
        if self._blocks is None:
            order_seed = (stream.order_seed, self._epoch) if shuffles else None
            self._blocks = stream.source.blocks(order_seed, self._start)
        self._look_ahead()
        if self._rest is None:
            raise ValueError("the data hold no row")
        if not shuffles:
            rows, self._rest = self._rest, None
            return _Filling(rows, None)
        rows = self._fill_buffer()
        seed = (stream.order_seed, self._epoch, self._number)
        return _Filling(rows, np.random.default_rng(seed).permutation(rows.size))

    def _fill_buffer(self) -> SourceBlock:
        """Moves rows into the buffer and keeps what does not fit."""
        size = self._stream.shuffle_rows
        if self._buffer is None:
            self._buffer = SourceBlock(
                np.empty((size, NUM_DENSE), np.float32),
                np.empty((size, NUM_IDS), np.int32),
                np.empty(size, np.float32),
                0,
                np.empty(0, np.int64),
                np.empty(0, np.int64),
            )
        have = 0
        while have < size:
            self._look_ahead()
            if self._rest is None:
                break
            taken = min(size - have, self._rest.size)
            for name in ("dense", "ids", "labels"):
                part = getattr(self._rest, name)[:taken]
                getattr(self._buffer, name)[have : have + taken] = part
            have += taken
            whole = taken == self._rest.size
            self._rest = None if whole else self._rest.behind(taken)
        buffer = self._buffer
        return buffer._replace(
            dense=buffer.dense[:have],
            ids=buffer.ids[:have],
            labels=buffer.labels[:have],
        )

    def get_state(self) -> dict[str, Any]:
        start, row = self._start, self._row
        if self._filling is not None and self._filling.order is None:
            # Where blocks end depends on where reading began.
            start, row = self._filling.rows.place(row), 0
        return self._fixed | {
            "epoch": self._epoch,
            "filling": self._number,
            "start": None if start is None else list(start),
            "row": row,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        for name, value in self._fixed.items():
            if state.get(name) != value:
                raise ValueError(
                    f"the position is one in other data or another order: {name} was "
                    f"{state.get(name)!r}, is {value!r}"
                )
        start = state["start"]
        self._enter(
            state["epoch"],
            state["filling"],
            None if start is None else Place(*start),
            state["row"],
        )


def _padding(rows: int) -> Batch:
    return {
        "dense": np.zeros((rows, NUM_DENSE), np.float32),
        "ids": np.zeros((rows, NUM_IDS), np.int32),
        "labels": np.zeros(rows, np.float32),
        "weights": np.zeros(rows, np.float32),
    }
