"""Multi-hot ids made from one-hot ones, as in the second MLPerf recommendation task.

Each id stands for a fixed bag: the id itself and further rows drawn once for it. They
are computed from the id by a hash, so that a table of 40 million rows needs no stored
lookup. The law is that of the task, the numbers are this project's own.
"""

import dataclasses
import zipfile

import numpy as np

from experiments.data.criteo.array_files import (
    StoredArray,
    open_npz,
    row_ranges,
    write_npy_header,
)
from experiments.data.criteo.atomic_files import atomic_file
from experiments.data.criteo.formats import RowFiles
from experiments.data.criteo.id_hashing import mix_ids
from experiments.data.criteo.parsing import NUM_IDS

# Ids per bag in MLPerf's task, 214 in all.
HOT_SIZES = (
    *(3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1),
    *(6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1),
)
DISTRIBUTIONS = ("uniform", "pareto")
_PARETO_EXPONENT = 0.25
_ROWS_AT_A_TIME = 1 << 14


@dataclasses.dataclass(frozen=True)
class MultiHot:
    """How bags are made.

    Attributes:
      rows: of every table, 26 numbers.
      sizes: ids per bag of every table.
      distribution: of the further ids: `uniform` over the rows, or `pareto`, a Pareto
        (Lomax) variable of exponent 0.25, rounded down, modulo the rows.
      seed: of the draws.
    """

    rows: tuple[int, ...]
    sizes: tuple[int, ...] = HOT_SIZES
    distribution: str = "uniform"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("rows", 1), ("sizes", 1)):
            values = getattr(self, name)
            if len(values) != NUM_IDS or min(values) < low:
                raise ValueError(
                    f"{name} must be {NUM_IDS} numbers >= {low}, got {values}"
                )
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"distribution must be one of {', '.join(DISTRIBUTIONS)}, "
                f"got {self.distribution!r}"
            )

    def bags(self, ids: np.ndarray, column: int) -> np.ndarray:
        """Bags of the ids of one column.

        Args:
          ids: rows of the table, integers [n].
          column: which table.

        Returns:
          int32 [n, sizes[column]]; the first of each row is the id.

        Raises:
          ValueError: naming row and id, for one that is not in the table.
        """
        rows = self.rows[column]
        outside = (ids < 0) | (ids >= rows)
        if outside.any():
            row = int(np.argmax(outside))
            raise ValueError(
                f"table {column}, row {row}: the id {ids[row]} is not in [0, {rows})"
            )
        bags = np.empty((len(ids), self.sizes[column]), np.int32)
        bags[:, 0] = ids
        for turn in range(1, self.sizes[column]):
            keys = ids.astype(np.uint64) * np.uint64(self.sizes[column])
            bags[:, turn] = self._drawn(keys + np.uint64(turn), column)
        return bags

    def _drawn(self, keys: np.ndarray, column: int) -> np.ndarray:
        mixed, rows = mix_ids(keys, self.seed, column), self.rows[column]
        if self.distribution == "uniform":
            return mixed % np.uint64(rows)
        uniform = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
        return np.fmod(np.floor(uniform ** (-1.0 / _PARETO_EXPONENT) - 1.0), rows)


def write_multi_hot(path: str, rows: RowFiles, multi_hot: MultiHot) -> None:
    """Writes the bags of rows: arrays `0` to `25`, int32 [n, size of the bag].

    Args:
      path: the `.npz` file, uncompressed; an older one is replaced.
      rows: preprocessed rows.
      multi_hot: how bags are made.
    """
    with atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for column, size in enumerate(multi_hot.sizes):
            with archive.open(f"{column}.npy", "w", force_zip64=True) as member:
                write_npy_header(member, np.dtype(np.int32), (len(rows), size))
                for start, stop in row_ranges(len(rows), _ROWS_AT_A_TIME):
                    ids = rows.read(start, stop).ids[:, column]
                    member.write(multi_hot.bags(ids, column).data)


def open_multi_hot(path: str) -> tuple[StoredArray, ...]:
    """Opens what `write_multi_hot` or torchrec's scripts wrote.

    Args:
      path: the `.npz` file.

    Returns:
      26 arrays of bags, int32 [n, size of the bag].

    Raises:
      ValueError: naming the file, if arrays are missing or their shapes do not agree.
    """
    arrays = open_npz(path)
    absent = [str(i) for i in range(NUM_IDS) if str(i) not in arrays]
    if absent:
        raise ValueError(f"{path} lacks the arrays {', '.join(absent)}")
    bags = tuple(arrays[str(column)] for column in range(NUM_IDS))
    for array in bags:
        if len(array.shape) != 2 or array.shape[0] != bags[0].shape[0]:
            raise ValueError(
                f"{array.name} has the shape {list(array.shape)}, expected "
                f"[{bags[0].shape[0]}, ids per bag]"
            )
        if array.dtype.kind not in "iu":
            raise ValueError(f"{array.name} holds {array.dtype}, expected integers")
    return bags
