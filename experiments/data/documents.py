"""What a source hands to the pipeline: documents in memory, or streams of them.

A small corpus is read whole (`Corpus`). A large one is a `DocumentSource`, which opens
a Grain iterator over one epoch of this process's share; its state is a few numbers,
so that a run can stop anywhere and go on exactly there.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which share of the documents a process reads."""

    index: int = 0
    count: int = 1


class Corpus(NamedTuple):
    """Documents read whole, in a fixed order."""

    texts: list[str]
    files: list[str]  # names for the metadata
    sha256: str  # of names and contents


class DocumentSource(Protocol):
    """Documents too many to hold in memory."""

    @property
    def files(self) -> Sequence[str]:
        """Names for the metadata, different for different data."""
        ...

    @property
    def sha256(self) -> str:
        """Digest of what is known without reading: names and sizes."""
        ...

    def open(
        self, order_seed: int | None, shard: Shard
    ) -> grain.DatasetIterator[str | None]:
        """One epoch of a process's share.

        Args:
          order_seed: shuffles what the source can shuffle cheaply (files, or single
            documents where access is random); None keeps the stored order.
          shard: the share; shares are disjoint and together complete.

        Returns:
          A checkpointable iterator; a record without text gives None.
        """
        ...


def digest(names: Sequence[str], contents: Sequence[bytes]) -> str:
    """SHA-256 of names and contents, each with its length so that none run together."""
    total = hashlib.sha256()
    for part in (part for pair in zip(names, contents, strict=True) for part in pair):
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def content_position(text: str) -> float:
    """Where in [0, 1) a document falls by its content, alike on every machine."""
    data = text.encode("utf-8", errors="replace")
    word = hashlib.blake2b(data, digest_size=8).digest()
    # 53 bits: every value is a float and none rounds up to 1.
    return (int.from_bytes(word, "little") >> 11) / 2**53


def split_corpus(texts: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """Splits documents into training and validation by their content.

    A document is held out if its `content_position` lies below `fraction`, wherever
    it stands and whatever else there is, so copies stay together. If that leaves a
    side empty, the nearest document changes sides.

    Args:
      texts: the documents.
      fraction: expected share of the documents held out.

    Returns:
      Training and validation documents, in their order.

    Raises:
      ValueError: if fewer than two different documents are given.
    """
    positions = np.array([content_position(text) for text in texts])
    lowest, highest = positions.min(), positions.max()
    if lowest == highest:
        raise ValueError(
            "validation text is held out by whole documents, and the data have only "
            "one: give data.validation_path"
        )
    # Moved by at most one document, so that neither side is empty.
    held = (positions < fraction) | (positions == lowest)
    held &= positions < highest
    train = [text for text, out in zip(texts, held, strict=True) if not out]
    return train, [text for text, out in zip(texts, held, strict=True) if out]


# (path, field, first record, stride) -> pairs (record, text); a text of None is a
# record without one.
RecordReader = Callable[[str, str, int, int], Iterator[tuple[int, str | None]]]


@dataclasses.dataclass(frozen=True)
class FileDocuments:
    """Files that are read from front to back, one record after the other.

    With at least as many files as processes, each process reads whole files of its
    own; otherwise all read every file and take every `count`-th record.
    """

    files: Sequence[str]
    sha256: str
    reader: RecordReader
    field: str

    def open(
        self, order_seed: int | None, shard: Shard
    ) -> grain.DatasetIterator[str | None]:
        """One epoch, the files in an order drawn from `order_seed`."""
        if len(self.files) >= shard.count:
            files, shard = list(self.files[shard.index :: shard.count]), Shard()
        else:
            files = list(self.files)
        if order_seed is not None:
            np.random.default_rng(order_seed).shuffle(files)
        return _FileIterator(self, files, shard)


class _FileIterator(grain.DatasetIterator):
    """State: the file, and the next record in it."""

    def __init__(self, source: FileDocuments, files: list[str], shard: Shard):
        super().__init__()
        self._source, self._files, self._shard = source, files, shard
        self.set_state({"file": 0, "record": shard.index})

    def __next__(self) -> str | None:
        while self._file < len(self._files):
            if self._records is None:
                self._records = self._source.reader(
                    self._files[self._file],
                    self._source.field,
                    self._record,
                    self._shard.count,
                )
            for record, text in self._records:
                self._record = record + self._shard.count
                return text
            self._file += 1
            self._record, self._records = self._shard.index, None
        raise StopIteration

    def get_state(self) -> dict[str, Any]:
        return {"file": self._file, "record": self._record}

    def set_state(self, state: dict[str, Any]) -> None:
        self._file, self._record = state["file"], state["record"]
        self._records: Iterator[tuple[int, str | None]] | None = None


@dataclasses.dataclass(frozen=True)
class IndexedDocuments:
    """Records reached by number: shuffled over the whole epoch."""

    files: Sequence[str]
    sha256: str
    records: Any  # len() and [i] -> text or None
    num_threads: int  # that read ahead; 0 reads in the caller's thread

    def open(
        self, order_seed: int | None, shard: Shard
    ) -> grain.DatasetIterator[str | None]:
        """One epoch, the documents in an order drawn from `order_seed`."""
        documents = grain.MapDataset.source(self.records)
        if order_seed is not None:
            documents = documents.seed(order_seed).shuffle()
        documents = documents[shard.index :: shard.count]
        ahead = 64 if self.num_threads else 0
        options = grain.ReadOptions(self.num_threads, ahead)
        # A record without text is None; Grain would drop it and count it as suspect.
        return iter(documents.to_iter_dataset(options, allow_nones=True))


class ChosenDocuments(grain.DatasetIterator):
    """Documents with text that lie on one side of the split by content."""

    def __init__(
        self,
        parent: grain.DatasetIterator[str | None],
        choose: Callable[[str], bool],
    ):
        """Wraps an iterator.

        Args:
          parent: documents or None.
          choose: whether a document belongs to this side.
        """
        super().__init__(parent)
        self._choose = choose

    def __next__(self) -> str:
        for text in self._parent:
            if text and self._choose(text):
                return text
        raise StopIteration

    def get_state(self) -> dict[str, Any]:
        """State of the parent."""
        return self._parent.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Sets the state of the parent."""
        self._parent.set_state(state)
