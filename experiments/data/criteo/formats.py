"""The file formats in which preprocessed Criteo data are passed around.

* `.npz` files of DLRM's own code: a day with `X_int`, `X_cat_t`, `y`; joined or
  reordered ones with `X_cat` in place of `X_cat_t`; and `counts`, `total_per_file` or
  `unique` alone.
* Binary rows of 40 int32: label, integers, ids; no header.
* Triples of `.npy` as torchrec reads them: `…_dense`, `…_sparse`, `…_labels`.

Every reader gives `RowFiles`, which reads any range of rows through memory maps. Ids
are integers on every path: what float64 holds is checked to be whole, float32 is
refused because it has no room for ids above 2**24.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.data.criteo.array_files import (
    StoredArray,
    npy_writer,
    open_npy,
    open_npz,
    row_ranges,
)
from experiments.data.criteo.atomic_files import atomic_file
from experiments.data.criteo.kaggle import KaggleData
from experiments.data.criteo.parsing import DENSE_COLUMNS, NUM_DENSE, NUM_IDS

_BINARY_COLUMNS = 1 + NUM_DENSE + NUM_IDS
_ROWS_AT_A_TIME = 1 << 14
_INT32 = np.iinfo(np.int32)


class Rows(NamedTuple):
    """Consecutive rows.

    Attributes:
      dense: [n, 13], integers, or float32 after the logarithm.
      ids: [n, 26], an integer type.
      labels: 0 or 1, int32 [n].
    """

    dense: np.ndarray
    ids: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class RowFiles:
    """Rows in files.

    Attributes:
      name: what messages call them.
      size: number of rows.
      maps: makes maps of dense [size, 13], ids [size, 26] and labels [size].
      dense_is_log: whether the dense columns went through a logarithm already.
      first: number of the first row in the maps.
    """

    name: str
    size: int
    maps: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]
    dense_is_log: bool
    first: int = 0

    def __len__(self) -> int:
        return self.size

    def select(self, start: int, stop: int) -> "RowFiles":
        """Some consecutive rows of them.

        Args:
          start: first row.
          stop: row after the last one.

        Returns:
          The same files, restricted.

        Raises:
          ValueError: if the range is not within the rows.
        """
        if not 0 <= start <= stop <= self.size:
            raise ValueError(
                f"{self.name} has {self.size} rows, no range [{start}, {stop})"
            )
        return dataclasses.replace(self, size=stop - start, first=self.first + start)

    def read(self, start: int = 0, stop: int | None = None) -> Rows:
        """Copies rows into memory.

        Args:
          start: first row.
          stop: row after the last one, None for all.

        Returns:
          The rows.

        Raises:
          ValueError: for ids that are no whole numbers.
        """
        part = self.select(start, self.size if stop is None else stop)
        rows = slice(part.first, part.first + part.size)
        dense, ids, labels = part.maps()
        return Rows(
            np.array(dense[rows]),
            self._integers(ids[rows], start),
            np.array(labels[rows], np.int32),
        )

    def _integers(self, ids: np.ndarray, start: int) -> np.ndarray:
        if ids.dtype.kind in "iu":
            return np.array(ids)
        whole = (ids >= 0) & (ids < 1 << 32) & (np.floor(ids) == ids)
        if not whole.all():
            row, column = np.argwhere(~whole)[0]
            raise ValueError(
                f"{self.name}, row {start + row}: the id of column C{column + 1} is "
                f"{ids[row, column]}, expected a whole number below 2**32"
            )
        return np.array(ids, np.int64)


def select_rows(parts: Sequence[RowFiles], wanted: slice) -> list[RowFiles]:
    """Some consecutive rows of files that follow each other.

    Args:
      parts: the files.
      wanted: rows, numbered through all of them.

    Returns:
      The files that hold any of these rows, restricted to them.
    """
    first, chosen = 0, []
    for part in parts:
        start, stop = max(wanted.start - first, 0), min(wanted.stop - first, len(part))
        if start < stop:
            chosen.append(part.select(start, stop))
        first += len(part)
    return chosen


def open_reference_npz(path: str, *, scratch: str | None = None) -> RowFiles:
    """Opens a `.npz` with `X_int`, `y`, and `X_cat` or `X_cat_t`.

    Args:
      path: the file: a day, a joined or a reordered one.
      scratch: folder for expanding compressed members, by default the system's.

    Returns:
      Its rows; dense columns are integers.

    Raises:
      ValueError: naming the file, if it lacks an array, or shapes or types are wrong.
    """
    arrays = open_npz(path, scratch)
    transposed = "X_cat_t" in arrays
    names = ("X_int", "X_cat_t" if transposed else "X_cat", "y")
    absent = [name for name in names if name not in arrays]
    if absent:
        raise ValueError(
            f"{path} lacks {' and '.join(absent)}; it has {', '.join(arrays) or 'none'}"
        )
    dense, ids, labels = (arrays[name] for name in names)
    return _row_files(path, dense, ids, labels, transposed=transposed)


def open_binary(path: str) -> RowFiles:
    """Opens rows of 40 int32: label, 13 integers, 26 ids.

    Args:
      path: the file.

    Returns:
      Its rows; ids are uint32, so that raw ids above 2**31 come back as they were.

    Raises:
      ValueError: if its size is no multiple of 160 bytes.
    """
    try:
        size = os.path.getsize(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    rows, rest = divmod(size, 4 * _BINARY_COLUMNS)
    if rest:
        raise ValueError(
            f"{path} has {size:,} bytes, which are no whole rows of "
            f"{4 * _BINARY_COLUMNS} bytes"
        )
    stored = StoredArray(path, path, 0, np.dtype("<i4"), (rows, _BINARY_COLUMNS))

    def maps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        table = stored.map()
        ids = table[:, 1 + NUM_DENSE :].view(np.uint32)
        return table[:, 1 : 1 + NUM_DENSE], ids, table[:, 0]

    return RowFiles(path, rows, maps, dense_is_log=False)


def open_torchrec(prefix: str) -> RowFiles:
    """Opens the triple `<prefix>_dense.npy`, `_sparse.npy`, `_labels.npy`.

    Args:
      prefix: path of the files up to there, e.g. `data/day_0` or `data/train`.

    Returns:
      Its rows; dense columns are float32 after a logarithm.

    Raises:
      ValueError: naming the file that is missing or has a wrong shape or type.
    """
    parts = (open_npy(f"{prefix}_{part}.npy") for part in ("dense", "sparse", "labels"))
    return _row_files(prefix, *parts, dense_is_log=True)


def _row_files(
    name: str,
    dense: StoredArray,
    ids: StoredArray,
    labels: StoredArray,
    *,
    transposed: bool = False,
    dense_is_log: bool = False,
) -> RowFiles:
    rows = labels.shape[0] if labels.shape else 0
    of_ids = (NUM_IDS, rows) if transposed else (rows, NUM_IDS)
    for array, shapes in (
        (dense, ((rows, NUM_DENSE),)),
        (ids, (of_ids,)),
        (labels, ((rows,), (rows, 1))),
    ):
        if array.shape not in shapes:
            raise ValueError(
                f"{array.name} has the shape {list(array.shape)}, expected "
                f"{list(shapes[0])} for {rows} labels"
            )
    if ids.dtype.kind not in "iu" and ids.dtype != np.float64:
        raise ValueError(
            f"{ids.name} holds ids as {ids.dtype}, expected integers or float64: "
            "smaller floats have no room for ids above 2**24"
        )

    def maps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        mapped = ids.map()
        return dense.map(), mapped.T if transposed else mapped, labels.map().reshape(-1)

    return RowFiles(name, rows, maps, dense_is_log)


def write_reference_npz(
    path: str, rows: Rows, *, transposed: bool = True, counts: np.ndarray | None = None
) -> None:
    """Writes a `.npz` that DLRM's own code reads; ids are int32, not float64.

    Args:
      path: the file; an older one is replaced.
      rows: integers before the logarithm; may be memory maps.
      transposed: `X_cat_t`, the form of a day; otherwise `X_cat`, that of joined files.
      counts: rows of every table, as the joined file of the Kaggle data has them.

    Raises:
      ValueError: for numbers that do not fit in int32.
    """
    dense, ids = _as_int32(rows.dense, "dense"), _as_int32(rows.ids, "ids")
    arrays = {"X_int": dense, "y": _as_int32(rows.labels, "labels")}
    arrays |= {"X_cat_t": ids.T} if transposed else {"X_cat": ids}
    if counts is not None:
        arrays["counts"] = _as_int32(counts, "counts")
    write_npz(path, arrays)


def write_reference_files(folder: str, name: str, data: KaggleData) -> None:
    """Writes all files that DLRM's own code keeps of the Kaggle data.

    These are `<name>_day_0.npz` to `_day_6.npz`, `<name>_day_count.npz`,
    `<name>_fea_count.npz`, `<name>_fea_dict_0.npz` to `_25.npz`, and the joined
    `kaggleAdDisplayChallenge_processed.npz`.

    Args:
      folder: where; it must exist.
      name: what the files begin with.
      data: read with a vocabulary that has dictionaries.
    """
    rows = Rows(data.dense, data.ids, data.labels)
    stem = os.path.join(folder, name)
    ends = np.cumsum(data.day_count)
    for day, (size, end) in enumerate(zip(data.day_count, ends, strict=True)):
        part = Rows(*(array[end - size : end] for array in rows))
        write_reference_npz(f"{stem}_day_{day}.npz", part)
    write_npz(f"{stem}_day_count.npz", {"total_per_file": data.day_count})
    write_npz(f"{stem}_fea_count.npz", {"counts": data.counts})
    for column, values in enumerate(data.dictionaries):
        write_npz(f"{stem}_fea_dict_{column}.npz", {"unique": values})
    joined = os.path.join(folder, "kaggleAdDisplayChallenge_processed.npz")
    write_reference_npz(joined, rows, transposed=False, counts=data.counts)


def write_npz(path: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes an uncompressed `.npz`, which can be mapped."""
    with atomic_file(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def write_binary(path: str, blocks: Iterable[Rows]) -> None:
    """Writes rows of 40 int32.

    Args:
      path: the file; an older one is replaced.
      blocks: integers before the logarithm. Ids may be uint32 (raw ids; their bits are
        kept) or any integers that fit in int32.

    Raises:
      ValueError: for numbers that do not fit.
    """
    with atomic_file(path) as file:
        for rows in blocks:
            table = np.empty((len(rows.labels), _BINARY_COLUMNS), "<i4")
            table[:, 0] = rows.labels
            table[:, 1 : 1 + NUM_DENSE] = _as_int32(rows.dense, "dense")
            raw = rows.ids.dtype == np.uint32
            table[:, 1 + NUM_DENSE :] = (
                rows.ids.view(np.int32) if raw else _as_int32(rows.ids, "ids")
            )
            file.write(table.data)


def write_torchrec(prefix: str, blocks: Iterable[Rows], rows: int) -> None:
    """Writes the triple `<prefix>_dense.npy`, `_sparse.npy`, `_labels.npy`.

    Args:
      prefix: path of the files up to there; older ones are replaced.
      blocks: dense columns float32 after the logarithm, ids in int32.
      rows: how many there are in all.

    Raises:
      ValueError: for another number of rows, another type, or ids that do not fit.
    """
    with (
        npy_writer(f"{prefix}_dense.npy", np.float32, (rows, NUM_DENSE)) as dense,
        npy_writer(f"{prefix}_sparse.npy", np.int32, (rows, NUM_IDS)) as ids,
        npy_writer(f"{prefix}_labels.npy", np.int32, (rows, 1)) as labels,
    ):
        for block in blocks:
            dense(block.dense)
            ids(_as_int32(block.ids, "ids"))
            labels(_as_int32(block.labels, "labels").reshape(-1, 1))


def _as_int32(values: np.ndarray, what: str) -> np.ndarray:
    if values.dtype == np.int32:
        return values
    if values.dtype.kind not in "iu":
        raise ValueError(f"{what} must be integers, got {values.dtype}")
    for start, stop in row_ranges(len(values), _ROWS_AT_A_TIME):
        outside = (values[start:stop] < _INT32.min) | (values[start:stop] > _INT32.max)
        if outside.any():
            place = np.argwhere(outside)[0]
            where = f"{what}, row {start + place[0]}"
            if what == "dense":
                where += f", column {DENSE_COLUMNS[place[1]]}"
            value = values[start:stop][tuple(place)]
            raise ValueError(f"{where}: {value} does not fit in 32 bits")
    return values.astype(np.int32)
