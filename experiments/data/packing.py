"""Documents cut into pieces, pieces packed into rows of a fixed length.

A document of m tokens (its marks included) holds m - 1 predictions. It is cut into
pieces of at most `seq_len` predictions; a piece of n predictions reads n + 1 tokens,
so the last token of one piece is the first input of the next and every token but the
document's first is predicted exactly once. A row holds one or more whole pieces side
by side, each a segment of its own: no prediction crosses from one to the next.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

Batch = dict[str, np.ndarray]


def join_documents(
    encoded: Sequence[np.ndarray],
    *,
    bos_id: int | None,
    eos_id: int | None,
    dtype: np.typing.DTypeLike,
) -> tuple[np.ndarray, np.ndarray]:
    """Lays documents end to end, each between its marks.

    Args:
      encoded: token ids, one array per document.
      bos_id: put before each document; None for nothing.
      eos_id: put after each document; None for nothing.
      dtype: of the result.

    Returns:
      The flat tokens and the length of each document in them.
    """
    begin = np.array([] if bos_id is None else [bos_id], dtype)
    end = np.array([] if eos_id is None else [eos_id], dtype)
    parts = [part for ids in encoded for part in (begin, ids.astype(dtype), end)]
    extra = len(begin) + len(end)
    lengths = np.array([len(ids) + extra for ids in encoded], np.int64)
    return np.concatenate([begin[:0], *parts]), lengths


def token_dtype(vocab_size: int) -> type[np.integer]:
    """The smallest type that holds every id."""
    return next(
        t for t in (np.uint8, np.uint16, np.int32) if vocab_size - 1 <= np.iinfo(t).max
    )


def cut_pieces(lengths: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts documents that lie end to end.

    Args:
      lengths: tokens of each document.
      seq_len: most predictions of a piece.

    Returns:
      For each piece its first token and its number of predictions.
    """
    predictions = np.maximum(lengths - 1, 0)
    counts = -(-predictions // seq_len)
    rank = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(np.cumsum(lengths) - lengths, counts) + rank * seq_len
    sizes = np.minimum(seq_len, np.repeat(predictions, counts) - rank * seq_len)
    return starts, sizes


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Rows as a table over flat tokens; batches are cut from it without a loop.

    Attributes:
      tokens: the documents end to end.
      starts: [pieces] first token of each piece, pieces in row order.
      sizes: [pieces] predictions of each piece.
      row_splits: [rows + 1] row r holds pieces `row_splits[r]:row_splits[r + 1]`.
      seq_len: predictions a row has room for.
      pad_id: token of unused positions.
    """

    tokens: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    row_splits: np.ndarray
    seq_len: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.row_splits) - 1

    def select(self, rows: np.ndarray) -> "PackedRows":
        """The given rows, in the given order."""
        counts = np.diff(self.row_splits)[rows]
        splits = np.concatenate([[0], np.cumsum(counts)])
        pieces = np.repeat(self.row_splits[rows] - splits[:-1], counts)
        pieces += np.arange(splits[-1])
        return dataclasses.replace(
            self,
            starts=self.starts[pieces],
            sizes=self.sizes[pieces],
            row_splits=splits,
        )

    def batch(self, first: int, stop: int, *, rows: int | None = None) -> Batch:
        """Rows `first:stop` as arrays.

        Args:
          first: first row.
          stop: one past the last row.
          rows: height of the arrays; rows beyond `stop - first` are padding.

        Returns:
          `tokens`, `targets`, `positions`, `segment_ids` (from 1; 0 is padding)
          int32 and `weights` float32, all [rows, seq_len].
        """
        height = stop - first if rows is None else rows
        splits = self.row_splits[first : stop + 1]
        sizes = self.sizes[splits[0] : splits[-1]]
        per_row = np.diff(splits)
        row = np.repeat(np.arange(len(per_row)), per_row)
        rank = np.arange(len(sizes)) - np.repeat(splits[:-1] - splits[0], per_row)
        # Column of each piece: predictions before it in the window, less those
        # before its row.
        before = np.cumsum(sizes) - sizes
        column = before - before[np.arange(len(sizes)) - rank]
        positions = np.arange(sizes.sum()) - np.repeat(before, sizes)
        place = positions + np.repeat(row * self.seq_len + column, sizes)
        source = positions + np.repeat(self.starts[splits[0] : splits[-1]], sizes)

        def spread(values, fill: float = 0, dtype: type = np.int32) -> np.ndarray:
            out = np.full(height * self.seq_len, fill, dtype)
            out[place] = values
            return out.reshape(height, self.seq_len)

        return {
            "tokens": spread(self.tokens[source], self.pad_id),
            "targets": spread(self.tokens[source + 1]),
            "positions": spread(positions),
            "segment_ids": spread(np.repeat(rank + 1, sizes)),
            "weights": spread(1.0, 0.0, np.float32),
        }


def pack_rows(
    tokens: np.ndarray,
    lengths: np.ndarray,
    *,
    seq_len: int,
    pad_id: int,
    rng: np.random.Generator,
) -> PackedRows:
    """Cuts documents, shuffles the pieces and packs them into rows in random order.

    Whole pieces fill a row each. The shorter ones, at most one per document, are
    packed best-fit: a row starts with the longest that is left and takes the longest
    that still fits until none does; among equals the shuffled order decides. The
    number of rows therefore depends on the lengths alone and not on `rng`.

    Args:
      tokens: documents end to end.
      lengths: tokens of each document.
      seq_len: predictions of a row.
      pad_id: token of unused positions.
      rng: source of both shuffles.

    Returns:
      The rows.
    """
    starts, sizes = cut_pieces(lengths, seq_len)
    order = rng.permutation(len(sizes))
    full = order[sizes[order] == seq_len]
    short = order[sizes[order] < seq_len]
    packed, counts = _best_fit(sizes[short], seq_len)
    pieces = np.concatenate([full, short[packed]])
    counts = np.concatenate([np.ones(len(full), np.int64), counts])
    rows = PackedRows(
        tokens=tokens,
        starts=starts[pieces],
        sizes=sizes[pieces],
        row_splits=np.concatenate([[0], np.cumsum(counts)]),
        seq_len=seq_len,
        pad_id=pad_id,
    )
    return rows.select(rng.permutation(len(counts)))


def _best_fit(sizes: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Order of the pieces by row, and pieces per row."""
    shelves: dict[int, list[int]] = {}
    for index, size in enumerate(sizes.tolist()):
        shelves.setdefault(size, []).append(index)
    # Bit s is set while a piece of size s is left, so that the longest one that
    # fits into a gap is the highest set bit at or below it.
    left = sum(1 << size for size in shelves)
    order, counts = [], []
    while left:
        gap, count = seq_len, 0
        while fitting := left & ((2 << gap) - 1):
            size = fitting.bit_length() - 1
            order.append(shelves[size].pop())
            if not shelves[size]:
                left ^= 1 << size
            gap -= size
            count += 1
        counts.append(count)
    return np.array(order, np.int64), np.array(counts, np.int64)
