"""Which batch size a run had from which sample on: recorded, stored and followed.

A path is a CSV file with the header `samples_seen,batch_size`, one line per change:
from `samples_seen` rows on, a step takes `batch_size` rows.
"""

import bisect
import csv
import io
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from experiments.training.run_directory import write_text

HEADER = ("samples_seen", "batch_size")
FILE_NAME = "batch_path.csv"


class Change(NamedTuple):
    """From `samples` rows on, a step takes `size` rows."""

    samples: int
    size: int


def size_along(path: Sequence[Change]) -> Callable[[int], int]:
    """The batch size as a function of the rows trained on so far.

    Args:
      path: changes in increasing order; the first one at 0.
    """
    starts = [change.samples for change in path]

    def size_at(samples: int) -> int:
        return path[bisect.bisect_right(starts, samples) - 1].size

    return size_at


def read_batch_path(file: str | pathlib.Path, *, quantum: int) -> tuple[Change, ...]:
    """Reads and checks a path.

    Args:
      file: the CSV.
      quantum: rows of a micro-batch; every size must be a multiple of it.

    Raises:
      ValueError: names file and line: another header, a line that is not two
        integers, samples that do not increase from 0 on, a size that is no multiple
        of the micro-batch.
      OSError: the file cannot be read.
    """
    lines = pathlib.Path(file).read_text(encoding="utf-8").splitlines()
    rows = list(csv.reader(lines))
    if not rows or tuple(field.strip() for field in rows[0]) != HEADER:
        raise ValueError(f"{file}, line 1: the header must be {','.join(HEADER)}")
    path: list[Change] = []
    for number, row in enumerate(rows[1:], start=2):
        change = _change(f"{file}, line {number}", row)
        if change is None:
            continue
        _check_order(f"{file}, line {number}", change, path)
        if change.size < 1 or change.size % quantum:
            raise ValueError(
                f"{file}, line {number}: batch_size must be a positive multiple of the "
                f"micro-batch of {quantum} rows, got {change.size}"
            )
        path.append(change)
    if not path:
        raise ValueError(f"{file}: no line after the header")
    return tuple(path)


def _change(place: str, row: list[str]) -> Change | None:
    """The change on a line; None for an empty line."""
    if not row:
        return None
    try:
        samples, size = (int(field) for field in row)
    except ValueError:
        raise ValueError(
            f"{place}: must be two integers, got {','.join(row)!r}"
        ) from None
    return Change(samples, size)


def _check_order(place: str, change: Change, earlier: Sequence[Change]) -> None:
    if not earlier and change.samples != 0:
        raise ValueError(f"{place}: the first samples_seen must be 0")
    if earlier and change.samples <= earlier[-1].samples:
        raise ValueError(
            f"{place}: samples_seen must increase, got {change.samples} after "
            f"{earlier[-1].samples}"
        )


def write_batch_path(file: str | pathlib.Path, path: Iterable[Change]) -> None:
    """Writes a path as a whole; the reverse of `read_batch_path`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(path)
    write_text(pathlib.Path(file), text.getvalue())


class BatchPathRecorder:
    """Keeps the path of a run in its folder, up to date at every change.

    Args:
      folder: of the run.
      enabled: False makes every method do nothing; only process 0 should write.
    """

    def __init__(self, folder: pathlib.Path, *, enabled: bool):
        self._file = folder / FILE_NAME
        self._enabled = enabled
        self._path: list[Change] = []

    def start(self, samples: int) -> None:
        """Takes up the path of the run that is continued, up to `samples` rows."""
        if self._enabled and samples and self._file.exists():
            changes = read_batch_path(self._file, quantum=1)
            self._path = [change for change in changes if change.samples < samples]

    def note(self, samples: int, size: int) -> None:
        """Notes the size of the step that starts after `samples` rows."""
        if not self._enabled or (self._path and self._path[-1].size == size):
            return
        self._path.append(Change(samples, size))
        write_batch_path(self._file, self._path)
