"""Endless, resumable batches of clicks for this process: from arrays, bags or streams.

All of them are laid out by `models.dlrm.make_batch`. A global batch of B samples over P
processes gives process p the samples p B / P to (p + 1) B / P.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from experiments.data.criteo.multi_hot import MultiHot
from experiments.data.reference_random import RandomBatch
from models.dlrm import make_batch


class Clicks(NamedTuple):
    """Samples in memory (or mapped), one id per feature."""

    dense: np.ndarray  # float32 [N, num_dense]
    ids: np.ndarray  # integers [N, T]
    labels: np.ndarray  # float32 [N]

    def __len__(self) -> int:
        return len(self.labels)


class Part(NamedTuple):
    """Which samples of a global batch this process takes."""

    size: int  # of the global batch; a multiple of the processes
    index: int = 0
    count: int = 1

    @property
    def mine(self) -> slice:
        """Positions in the global batch."""
        share = self.size // self.count
        return slice(self.index * share, (self.index + 1) * share)


class ArrayBatches(grain.IterDataset):
    """Epoch after epoch over arrays, every sample once, the last batch filled up."""

    def __init__(self, clicks: Clicks, rules: Any, part: Part, seed: int | None):
        """Takes the samples of all processes.

        Args:
          clicks: the samples.
          rules: `BatchRules` of the model.
          part: batch size and process.
          seed: of the order, which differs from epoch to epoch; None keeps the order.
        """
        super().__init__()
        self.clicks, self.rules, self.part = clicks, rules, part
        self.order_seed = seed

    def __iter__(self) -> grain.DatasetIterator:
        return _ArrayIterator(self)


class _ArrayIterator(grain.DatasetIterator):
    """State: the epoch and the batch in it."""

    def __init__(self, batches: ArrayBatches):
        super().__init__()
        self._batches = batches
        self._enter(0, 0)

    def _enter(self, epoch: int, batch: int) -> None:
        self._epoch, self._batch, seed = epoch, batch, self._batches.order_seed
        size = len(self._batches.clicks)
        self._order = np.arange(size)
        if seed is not None:
            self._order = np.random.default_rng((seed, epoch)).permutation(size)

    def __next__(self) -> dict[str, Any]:
        batches, part = self._batches, self._batches.part
        start = self._batch * part.size
        chosen = self._order[start : start + part.size][part.mine]
        found = batch_of_clicks(batches.clicks, chosen, batches.rules, part)
        if start + part.size >= len(batches.clicks):
            self._enter(self._epoch + 1, 0)
        else:
            self._batch += 1
        return found

    def get_state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "batch": self._batch}

    def set_state(self, state: dict[str, Any]) -> None:
        self._enter(state["epoch"], state["batch"])


def batch_of_clicks(
    clicks: Clicks, chosen: np.ndarray, rules: Any, part: Part
) -> dict[str, Any]:
    """A batch of these samples, filled up with samples of weight 0."""
    share = part.size // part.count
    missing = share - len(chosen)
    weights = np.ones(share, np.float32)
    if missing:
        # Repeated samples are always well-formed.
        filler = np.zeros(missing, chosen.dtype)
        chosen, weights[share - missing :] = np.concatenate([chosen, filler]), 0.0
    return make_batch(
        rules,
        clicks.dense[chosen],
        clicks.ids[chosen].T,
        labels=clicks.labels[chosen],
        weights=weights,
    )


def validation_batches(
    clicks: Clicks, rules: Any, part: Part, most: int
) -> Iterator[dict[str, Any]]:
    """The first samples in their order, at most `most` batches; the last filled up."""
    for start in range(0, min(len(clicks), most * part.size), part.size):
        chosen = np.arange(start, min(start + part.size, len(clicks)))[part.mine]
        yield batch_of_clicks(clicks, chosen, rules, part)


class BagBatches(grain.IterDataset):
    """The original's generated batches, the same ones in every epoch."""

    def __init__(self, batches: Sequence[RandomBatch], rules: Any):
        """Takes batches that are in memory.

        Args:
          batches: of one size, the last perhaps shorter.
          rules: `BatchRules` with capacities, so that one shape serves all.
        """
        super().__init__()
        self.batches, self.rules = batches, rules

    def __iter__(self) -> grain.DatasetIterator:
        return _BagIterator(self)


class _BagIterator(grain.DatasetIterator):
    """State: the batch in the epoch."""

    def __init__(self, bags: BagBatches):
        super().__init__()
        self._bags, self._batch = bags, 0

    def __next__(self) -> dict[str, Any]:
        bags = self._bags
        found = batch_of_bags(bags.batches[self._batch], bags.rules, bags.batches[0])
        self._batch = (self._batch + 1) % len(bags.batches)
        return found

    def get_state(self) -> dict[str, Any]:
        return {"batch": self._batch}

    def set_state(self, state: dict[str, Any]) -> None:
        self._batch = state["batch"]


def batch_of_bags(batch: RandomBatch, rules: Any, first: RandomBatch) -> dict[str, Any]:
    """One generated batch, filled up to the size of the first."""
    missing = len(first.dense) - len(batch.dense)
    weights = np.pad(np.ones(len(batch.dense), np.float32), (0, missing))
    return make_batch(
        rules,
        np.pad(batch.dense, ((0, missing), (0, 0))),
        batch.ids,
        offsets=[
            # Empty bags at the end.
            np.pad(offsets, (0, missing), constant_values=len(ids))
            for offsets, ids in zip(batch.offsets, batch.ids, strict=True)
        ],
        labels=np.pad(batch.labels[:, 0], (0, missing)),
        weights=weights,
    )


class StreamedBatches(grain.IterDataset):
    """Batches of a stream of all processes, laid out for the model."""

    def __init__(
        self,
        open_stream: Callable[[], grain.DatasetIterator],
        rules: Any,
        part: Part,
        multi_hot: MultiHot | None = None,
    ):
        """Takes a stream of global batches `dense, ids [B, T], labels, weights`.

        Args:
          open_stream: opens it at its beginning.
          rules: `BatchRules` of the model.
          part: batch size and process.
          multi_hot: turns every id into a bag; None leaves one id per feature.
        """
        super().__init__()
        self.open_stream, self.rules, self.part = open_stream, rules, part
        self.multi_hot = multi_hot

    def __iter__(self) -> grain.DatasetIterator:
        return _StreamIterator(self)


class _StreamIterator(grain.DatasetIterator):
    """State: that of the stream."""

    def __init__(self, batches: StreamedBatches):
        super().__init__()
        self._batches = batches
        self._stream = batches.open_stream()

    def __next__(self) -> dict[str, Any]:
        mine, multi_hot = self._batches.part.mine, self._batches.multi_hot
        batch = next(self._stream)
        ids, lengths = batch["ids"][mine].T, None
        if multi_hot is not None:
            bags = [multi_hot.bags(column, index) for index, column in enumerate(ids)]
            lengths = [np.full(len(bag), bag.shape[1]) for bag in bags]
            ids = [bag.reshape(-1) for bag in bags]
        return make_batch(
            self._batches.rules,
            batch["dense"][mine],
            ids,
            lengths=lengths,
            labels=batch["labels"][mine],
            weights=batch["weights"][mine],
        )

    def get_state(self) -> dict[str, Any]:
        return self._stream.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._stream.set_state(state)
