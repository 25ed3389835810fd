"""Where batches come from: text files, or preprocessed rows in memory maps.

A source gives one epoch block by block, from any row on. The place of a row is three
integers, so that a run can stop anywhere and go on exactly there.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from experiments.data.criteo.dense_features import check_transform, transform_dense
from experiments.data.criteo.formats import RowFiles
from experiments.data.criteo.text_files import (
    SkippedLines,
    check_on_bad_line,
    join_blocks,
    read_blocks,
)
from experiments.data.criteo.vocabulary import Vocabulary
from experiments.data.files import names_and_sizes_sha256

# Rows that are looked up in the vocabulary together. Of text this is no part of the
# order; of stored rows it is the grain of the shuffle.
_ROWS_AT_A_TIME = 1 << 12


class Place(NamedTuple):
    """Where a row stands.

    Attributes:
      piece: of text, the file; of stored rows, the block in the order of the epoch.
      offset: of text, the byte in the uncompressed file; else the row in the block.
      line: of text, the line number from 1; else the same as `offset`.
    """

    piece: int
    offset: int
    line: int


class SourceBlock(NamedTuple):
    """Consecutive rows of an epoch.

    Attributes:
      dense: network inputs, float32 [n, 13].
      ids: rows of the embedding tables, int32 [n, 26].
      labels: float32 [n].
      piece: see `Place`.
      offsets: see `Place`, int64 [n].
      lines: see `Place`, int64 [n].
    """

    dense: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    piece: int
    offsets: np.ndarray
    lines: np.ndarray

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.labels)

    def place(self, row: int) -> Place:
        """Where a row of the block stands."""
        return Place(self.piece, int(self.offsets[row]), int(self.lines[row]))

    def behind(self, row: int) -> "SourceBlock":
        """The rows from `row` on."""
        return SourceBlock(
            self.dense[row:],
            self.ids[row:],
            self.labels[row:],
            self.piece,
            self.offsets[row:],
            self.lines[row:],
        )


class RowSource(Protocol):
    """Rows of one epoch, from any place on."""

    @property
    def fingerprint(self) -> str:
        """Digest of what a place depends on."""
        ...

    def blocks(
        self, order_seed: tuple[int, ...] | None, start: Place | None
    ) -> Iterator[SourceBlock]:
        """Rows of an epoch.

        Args:
          order_seed: shuffles what the source can shuffle cheaply; None keeps the
            stored order.
          start: the first row, None for the epoch's beginning.

        Yields:
          Blocks of at least one row.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class TextRows:
    """Rows of text files, read in the order given and parsed as they are used.

    Attributes:
      paths: the files, plain or gzipped. A gzipped one resumes slowly, because it is
        decompressed up to the place.
      vocabulary: numbers the ids.
      unknown: `error`, `oov` or `hash`, for ids that it does not hold; see
        `Vocabulary.check_unknown`.
      dense_transform: see `transform_dense`.
      dense_minimum: of `log_shift`.
      labelled: whether lines begin with a label; without, labels are 0.
      on_bad_line: `error` or `skip`.
      skipped: counts the lines skipped, once per epoch, and warns at its end.
    """

    paths: Sequence[str]
    vocabulary: Vocabulary
    unknown: str | None = None
    dense_transform: str = "log1p_clip"
    dense_minimum: int | None = None
    labelled: bool = True
    on_bad_line: str = "error"
    skipped: SkippedLines = dataclasses.field(default_factory=SkippedLines)

    def __post_init__(self) -> None:
        if isinstance(self.paths, str) or not self.paths:
            raise ValueError(f"paths must be a list of files, got {self.paths!r}")
        for path in self.paths:
            if not os.path.isfile(path):
                raise ValueError(f"there is no file {path}")
        self.vocabulary.check_unknown(self.unknown)
        check_transform(self.dense_transform, self.dense_minimum)
        check_on_bad_line(self.on_bad_line)

    @property
    def fingerprint(self) -> str:
        """Digest of names and sizes of the files, and of what is done to them."""
        settings = (self.unknown, self.dense_transform, self.dense_minimum)
        return _digest(
            names_and_sizes_sha256(list(self.paths)),
            self.vocabulary.sha256,
            *settings,
            self.on_bad_line,
        )

    def blocks(
        self, order_seed: tuple[int, ...] | None, start: Place | None
    ) -> Iterator[SourceBlock]:
        """Rows of an epoch, in the order of the files whatever `order_seed` is."""
        del order_seed
        place = start or Place(0, 0, 1)
        for piece in range(place.piece, len(self.paths)):
            path = self.paths[piece]
            blocks = read_blocks(
                path,
                labelled=self.labelled,
                on_bad_line=self.on_bad_line,
                skipped=self.skipped,
                offset=place.offset,
                line=place.line,
            )
            for block in join_blocks(blocks, _ROWS_AT_A_TIME):
                ids = self.vocabulary.encode(
                    block.ids,
                    block.missing,
                    unknown=self.unknown,
                    describe_row=_LineOf(path, block.lines),
                )
                dense = transform_dense(
                    block.dense, self.dense_transform, minimum=self.dense_minimum
                )
                labels = np.zeros(len(ids), np.float32)
                if block.labels is not None:
                    labels[:] = block.labels
                yield SourceBlock(dense, ids, labels, piece, block.offsets, block.lines)
            place = Place(piece + 1, 0, 1)
        self.skipped.report()


@dataclasses.dataclass(frozen=True, eq=False)
class StoredRows:
    """Preprocessed rows in files.

    Attributes:
      parts: the files, in their order.
      dense_transform: see `transform_dense`; not applied to dense columns that are
        logarithms already.
      dense_minimum: of `log_shift`.
      counts: rows of every table, 26 numbers, to check ids against; None does not.
      identity: digest of what the files hold, if it is known.
    """

    parts: Sequence[RowFiles]
    dense_transform: str = "log1p_clip"
    dense_minimum: int | None = None
    counts: Sequence[int] | None = None
    identity: str = ""

    def __post_init__(self) -> None:
        check_transform(self.dense_transform, self.dense_minimum)
        if not len(self):
            raise ValueError("the preprocessed files hold no row")

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def fingerprint(self) -> str:
        """Digest of the sizes of the parts, and of what is done to them."""
        sizes = [(part.first, len(part), part.dense_is_log) for part in self.parts]
        return _digest(self.identity, sizes, self.dense_transform, self.dense_minimum)

    def blocks(
        self, order_seed: tuple[int, ...] | None, start: Place | None
    ) -> Iterator[SourceBlock]:
        """Rows of an epoch: blocks of 4,096 rows, shuffled with an `order_seed`."""
        place = start or Place(0, 0, 0)
        sizes = np.array([-(-len(part) // _ROWS_AT_A_TIME) for part in self.parts])
        ends = np.cumsum(sizes)
        order = np.arange(ends[-1])
        if order_seed is not None:
            order = np.random.default_rng(order_seed).permutation(order)
        for piece in range(place.piece, len(order)):
            index = int(np.searchsorted(ends, order[piece], side="right"))
            first = int(order[piece] - (ends[index] - sizes[index])) * _ROWS_AT_A_TIME
            part = self.parts[index]
            begin = place.offset if piece == place.piece else 0
            stop = min(first + _ROWS_AT_A_TIME, len(part))
            yield self._block(part, first + begin, stop, piece, begin)

    def _block(
        self, part: RowFiles, start: int, stop: int, piece: int, begin: int
    ) -> SourceBlock:
        rows = part.read(start, stop)
        self._check_ids(rows.ids, part, start)
        dense = rows.dense
        if not part.dense_is_log:
            dense = transform_dense(
                dense, self.dense_transform, minimum=self.dense_minimum
            )
        offsets = np.arange(begin, begin + stop - start)
        return SourceBlock(
            dense.astype(np.float32, copy=False),
            rows.ids.astype(np.int32, copy=False),
            rows.labels.astype(np.float32),
            piece,
            offsets,
            offsets,
        )

    def _check_ids(self, ids: np.ndarray, part: RowFiles, start: int) -> None:
        limits = np.full(ids.shape[1], np.iinfo(np.int32).max + 1, np.int64)
        if self.counts is not None:
            limits[:] = self.counts
        outside = (ids < 0) | (ids >= limits)
        if outside.any():
            row, column = np.argwhere(outside)[0]
            raise ValueError(
                f"{part.name}, row {start + row}: the id of column C{column + 1} is "
                f"{ids[row, column]}, expected one in [0, {limits[column]})"
            )


class _LineOf:
    """Names file and line of a row."""

    def __init__(self, path: str, lines: np.ndarray):
        self._path, self._lines = path, lines

    def __call__(self, row: int) -> str:
        return f"{self._path}, line {self._lines[row]}"


def _digest(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
