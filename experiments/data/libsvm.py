"""The sparse text format of LIBSVM: a line is `label index:value index:value …`.

Indices count from 1 and ascend within a line; features that are not named are zero.
What follows a `#` is a comment, blank lines are passed over, and so is a leading
`qid:…` of SVMlight. scikit-learn parses; a second reading by lines, made only when
something is wrong, says where.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from experiments.data.text_lines import open_lines

_LARGEST_INDEX = 2**31 - 1


class SparseRows(NamedTuple):
    """Samples with few features that are not zero, rows one after another.

    Row i has the entries `row_starts[i]:row_starts[i + 1]` of `values` and `columns`.

    Attributes:
      values: float64 (nnz,).
      columns: int32 (nnz,), from 0, ascending within a row.
      row_starts: int64 (N + 1,).
      labels: float64 (N,), as the file gives them.
      num_features: width d of the table.
    """

    values: np.ndarray
    columns: np.ndarray
    row_starts: np.ndarray
    labels: np.ndarray
    num_features: int

    @property
    def density(self) -> float:
        """Share of the table's entries that are stored."""
        return len(self.values) / max(1, len(self.labels) * self.num_features)

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows at the width k of the longest one, for programs of fixed shape.

        Returns:
          columns int32 (N, k) and values float64 (N, k); what a shorter row lacks is
          value 0 in column 0, so that sums over a row stay what they are.
        """
        lengths = np.diff(self.row_starts)
        width = max(1, int(lengths.max(initial=0)))
        used = np.arange(width) < lengths[:, None]
        columns = np.zeros(used.shape, np.int32)
        values = np.zeros(used.shape)
        columns[used], values[used] = self.columns, self.values
        return columns, values

    def dense(self) -> np.ndarray:
        """The whole table, float64 (N, d)."""
        table = np.zeros((len(self.labels), self.num_features))
        rows = np.repeat(np.arange(len(self.labels)), np.diff(self.row_starts))
        table[rows, self.columns] = self.values
        return table


def read_libsvm(path: str, num_features: int | None = None) -> SparseRows:
    """Reads a file.

    Args:
      path: the file, gzipped if it ends in `.gz`.
      num_features: width of the table; by default the largest index of the file.

    Returns:
      Its samples, in their order.

    Raises:
      ValueError: naming file and line (from 1) for a line that does not keep the
        format or holds a number that is not finite; naming the file if it cannot be
        read, has no samples, or has an index above `num_features`.
      ImportError: without scikit-learn, of the `experiments` extra.
    """
    from sklearn.datasets import load_svmlight_file

    try:
        with open_lines(path) as file:
            matrix, labels = load_svmlight_file(file, zero_based=False)
        fault = None if _is_finite(matrix.data, labels) else "a number is not finite"
    except (ValueError, OverflowError, TypeError) as error:
        matrix, labels, fault = None, None, error
    if fault is not None:
        with open_lines(path) as file:
            _check_lines(path, file)
        raise ValueError(f"cannot read {path}: {fault}")
    if not len(labels):
        raise ValueError(f"{path} holds no samples")
    found = int(matrix.indices.max(initial=-1)) + 1
    if num_features is not None and found > num_features:
        raise ValueError(
            f"{path} has the index {found}, above num_features={num_features}"
        )
    return SparseRows(
        values=matrix.data,
        columns=matrix.indices.astype(np.int32),
        row_starts=matrix.indptr.astype(np.int64),
        labels=labels,
        num_features=found if num_features is None else num_features,
    )


def _is_finite(values: np.ndarray, labels: np.ndarray) -> bool:
    return bool(np.isfinite(values).all() and np.isfinite(labels).all())


def _check_lines(path: str, lines: Iterable[bytes]) -> None:
    """Raises for the first line that does not keep the format."""
    for number, line in enumerate(lines, start=1):
        fault = _fault_of(line)
        if fault:
            raise ValueError(f"{path}, line {number}: {fault}")


def _fault_of(line: bytes) -> str | None:
    """What is wrong with a line; None if nothing is."""
    words = line.partition(b"#")[0].split()
    if not words:
        return None
    label, *pairs = words
    if not _is_number(label):
        return f"the label {_shown(label)} is not a finite number"
    if pairs and pairs[0].startswith(b"qid:"):
        pairs = pairs[1:]
    previous = 0
    for pair in pairs:
        text, colon, value = pair.partition(b":")
        if not colon:
            return f"{_shown(pair)} lacks a colon between index and value"
        index = _integer(text)
        if index is None:
            return f"the index {_shown(text)} of {_shown(pair)} is not an integer"
        if not 1 <= index <= _LARGEST_INDEX:
            return f"the index {index} is outside [1, {_LARGEST_INDEX}]"
        if index == previous:
            return f"the index {index} comes twice"
        if index < previous:
            return f"the index {index} follows {previous}; indices must ascend"
        if not _is_number(value):
            return f"the value {_shown(value)} of index {index} is not a finite number"
        previous = index
    return None


def _is_number(text: bytes) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _integer(text: bytes) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _shown(text: bytes) -> str:
    return repr(text.decode("utf-8", errors="replace"))
