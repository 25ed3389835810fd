"""Which rows train, which validate and which test, and in which order they train.

The Kaggle file is cut in its order into seven parts of nearly equal size, one per day;
the Terabyte data come as 24 files, one per day. In both, all parts but the last are for
training and the last one is halved.
"""

from typing import NamedTuple

import numpy as np

KAGGLE_PARTS = 7
TERABYTE_DAYS = 24
HALVES = ("test_first", "validation_first")
RANDOMIZE = ("none", "day", "total")


class Split(NamedTuple):
    """Ranges of rows, numbered through all parts."""

    train: slice
    test: slice
    validation: slice


def part_sizes(total: int, parts: int = KAGGLE_PARTS) -> np.ndarray:
    """Sizes of nearly equal consecutive parts, the larger ones first.

    Args:
      total: number of rows, >= 0.
      parts: number of parts, >= 1.

    Returns:
      int64 [parts], summing to `total`.

    Raises:
      ValueError: for numbers out of range.
    """
    if total < 0 or parts < 1:
        raise ValueError(f"need total >= 0 and parts >= 1, got {total} and {parts}")
    sizes = np.full(parts, total // parts, np.int64)
    sizes[: total % parts] += 1
    return sizes


def split_parts(day_count: np.ndarray, halves: str = "test_first") -> Split:
    """Training rows, and the two halves of the last part.

    The halves share no row; of an odd number the first one has one more.

    Args:
      day_count: rows of each part, at least two parts.
      halves: `test_first`: the first half is the test set, as in DLRM's own code;
        `validation_first`: the opposite, as in torchrec and so in MLPerf's results.

    Returns:
      The ranges.

    Raises:
      ValueError: for one part, and for unknown `halves`.
    """
    if halves not in HALVES:
        raise ValueError(f"halves must be one of {', '.join(HALVES)}, got {halves!r}")
    if len(day_count) < 2:
        raise ValueError(
            "the last part is for validation and test: at least two parts are needed, "
            f"got {len(day_count)}"
        )
    stop = int(np.sum(day_count))
    start = stop - int(day_count[-1])
    middle = start + -(-(stop - start) // 2)
    first, second = slice(start, middle), slice(middle, stop)
    if halves == "validation_first":
        first, second = second, first
    return Split(slice(0, start), first, second)


def training_order(
    day_count: np.ndarray, randomize: str = "total", *, seed: int = 123
) -> np.ndarray:
    """The order in which training rows are used, for data in memory.

    Args:
      day_count: rows of each part; the last part does not train.
      randomize: `none` keeps the order of time, `day` permutes inside each part,
        `total` across all of them.
      seed: of NumPy's legacy generator.

    Returns:
      Row numbers, int64 [rows of all parts but the last].

    Raises:
      ValueError: for an unknown `randomize`.
    """
    check_randomize(randomize)
    ends = np.cumsum(day_count, dtype=np.int64)[:-1]
    rows = np.arange(ends[-1] if len(ends) else 0)
    draw = np.random.RandomState(seed)
    if randomize == "total":
        return draw.permutation(rows)
    if randomize == "day":
        return np.concatenate([draw.permutation(p) for p in np.split(rows, ends[:-1])])
    return rows


def check_randomize(randomize: str) -> None:
    """Refuses an order there is not.

    Raises:
      ValueError: naming the value.
    """
    if randomize not in RANDOMIZE:
        raise ValueError(
            f"randomize must be one of {', '.join(RANDOMIZE)}, got {randomize!r}"
        )


class SubSampling:
    """Leaves out rows of label 0 at random, as the original implementation draws them.

    One uniform number of NumPy's legacy generator belongs to every row, those of label
    1 as well, in the order of the rows and on through all parts; a row of label 0 goes
    if its number is below the rate. Nothing is drawn at rate 0.
    """

    def __init__(self, rate: float, seed: int):
        """Starts before the first row.

        Args:
          rate: probability with which a row of label 0 is left out, in [0, 1].
          seed: of the generator, in [0, 2**32).

        Raises:
          ValueError: for numbers out of range.
        """
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"sub_sample_rate must lie in [0, 1], got {rate}")
        if not 0 <= seed < 1 << 32:
            raise ValueError(f"seed must lie in [0, 2**32), got {seed}")
        self._rate, self._draw = rate, np.random.RandomState(seed)

    def keep(self, labels: np.ndarray) -> np.ndarray:
        """Which of the next rows stay.

        Args:
          labels: 0 or 1, [n].

        Returns:
          bool [n].
        """
        if self._rate == 0.0:
            return np.ones(len(labels), bool)
        uniform = self._draw.uniform(0.0, 1.0, len(labels))
        return (uniform >= self._rate) | (labels != 0)
