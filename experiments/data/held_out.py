"""Validation rows: read once, kept in memory, the same at every evaluation."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from experiments.data.documents import Shard
from experiments.data.packing import Batch, PackedRows
from experiments.data.row_format import RowFormat

# Rows are drawn with a seed of their own, so that runs with different seeds are
# measured on the same text.
_SEED = (0,)


@dataclasses.dataclass(frozen=True)
class HeldOutRows:
    """The validation batches of one process.

    Attributes:
      packed: the rows of this process.
      rows: rows of a batch.
      batches: number of batches.
      documents: documents the rows were drawn from, over all processes.
      bytes: their UTF-8 length.
      predictions: tokens predicted in them.
    """

    packed: PackedRows
    rows: int
    batches: int
    documents: int
    bytes: int
    predictions: int

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per predicted token, document marks counted as tokens."""
        return self.bytes / self.predictions

    def open(self) -> Iterator[Batch]:
        """Exactly `batches` batches; rows that the text does not fill weigh 0."""
        for batch in range(self.batches):
            first = min(batch * self.rows, len(self.packed))
            stop = min(first + self.rows, len(self.packed))
            yield self.packed.batch(first, stop, rows=self.rows)


def read_held_out(
    documents: Iterator[str],
    row_format: RowFormat,
    *,
    rows: int,
    batches: int,
    shard: Shard,
    whole: bool,
) -> HeldOutRows:
    """Reads the validation text, the same on every process, and takes a share.

    Args:
      documents: validation documents in their stored order.
      row_format: how they become rows.
      rows: rows of a batch of this process.
      batches: number of batches.
      shard: process p of P takes every P-th row.
      whole: draws the rows from all documents; otherwise from as many of the first
        ones as fill them.

    Returns:
      The rows.

    Raises:
      ValueError: if there is no text.
    """
    wanted = rows * batches * shard.count
    enough = math.inf if whole else wanted * row_format.seq_len
    text = row_format.read(documents, predictions=enough)
    if text.predictions == 0:
        raise ValueError(
            "there is no validation text: raise data.validation_fraction or give "
            "data.validation_path"
        )
    packed = row_format.pack(text, _SEED)
    share = np.arange(min(len(packed), wanted))[shard.index :: shard.count]
    return HeldOutRows(
        packed=packed.select(share),
        rows=rows,
        batches=batches,
        documents=len(text.lengths),
        bytes=text.bytes,
        predictions=text.predictions,
    )
