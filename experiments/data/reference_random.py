"""The generated batches of the original DLRM code, draw by draw.

They carry no signal: they exist to repeat the original's runs exactly and to measure
speed. All draws come from one legacy generator that is seeded anew for each pass, so
that every epoch sees the same data. Uniform ids are rounded, not floored, which gives
the first and the last id of a table half the mass of the others.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.data.stack_distances import StackDistances, draw_trace

DISTRIBUTIONS = ("uniform", "gaussian")

# The mean that the original takes to be "the middle of the range".
_MIDDLE = -1

# (generator, table, how many) -> sorted int64 ids of one bag.
_BagDraw = Callable[[np.random.RandomState, int, int], np.ndarray]


class RandomBatch(NamedTuple):
    """One batch of n samples; bags as flat ids and the position where each starts."""

    dense: np.ndarray  # float32 [n, num_dense] in [0, 1)
    labels: np.ndarray  # float32 [n, 1] in [0, 1], or rounded to 0 and 1
    ids: tuple[np.ndarray, ...]  # for each table, int64 [L_t]
    offsets: tuple[np.ndarray, ...]  # for each table, int64 [n]


@dataclasses.dataclass(frozen=True, eq=False)
class RandomBatches:
    """Batches that are drawn while they are read; each pass begins with the seed.

    Attributes:
      seed: of the legacy generator.
      rows: of each table.
      num_dense: dense features.
      sizes: samples of each batch.
      indices_per_lookup: ids drawn for a bag, or the upper bound of their number.
      fixed: whether it is the number itself.
      round_targets: whether labels are rounded to 0 and 1.
      draw_bag: draws the ids of a bag.
    """

    seed: int
    rows: tuple[int, ...]
    num_dense: int
    sizes: tuple[int, ...]
    indices_per_lookup: int
    fixed: bool
    round_targets: bool
    draw_bag: _BagDraw

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[RandomBatch]:
        generator = np.random.RandomState(self.seed)
        for size in self.sizes:
            dense = generator.random_sample((size, self.num_dense)).astype(np.float32)
            bags = [
                [self._bag(generator, table) for _ in range(size)]
                for table in range(len(self.rows))
            ]
            labels = generator.random_sample((size, 1)).astype(np.float32)
            if self.round_targets:
                labels = np.round(labels)
            lengths = [np.array([len(bag) for bag in row], np.int64) for row in bags]
            yield RandomBatch(
                dense,
                labels,
                tuple(np.concatenate(row) for row in bags),
                tuple(np.cumsum(length) - length for length in lengths),
            )

    def _bag(self, generator: np.random.RandomState, table: int) -> np.ndarray:
        count = self.indices_per_lookup
        if not self.fixed:
            share = generator.random_sample() * min(self.rows[table], count)
            count = round(max(1.0, share))  # half to even, as NumPy rounds
        return self.draw_bag(generator, table, count)


def random_batches(
    *,
    seed: int,
    rows: Sequence[int],
    num_dense: int,
    batch_size: int,
    num_batches: int,
    indices_per_lookup: int,
    fixed: bool,
    round_targets: bool,
    distribution: str,
    minimum: float = 0,
    maximum: float = 1,
    mu: float = -1,
    sigma: float = 1,
    data_size: int = 0,
) -> RandomBatches:
    """Uniform or Gaussian ids.

    `uniform` rounds a uniform number times n - 1 and drops repetitions, so that a bag
    may come out shorter than drawn. `gaussian` clips to the range and drops repetitions
    before it cuts off the fraction, so an id can repeat; it knows nothing of the table
    and may exceed it.

    Args:
      seed: of the legacy generator, in [0, 2**32).
      rows: of each table, >= 1.
      num_dense: dense features, >= 0.
      batch_size: samples of a batch, >= 1.
      num_batches: batches, or 0 for as many as `data_size` fills.
      indices_per_lookup: k >= 1; a bag takes k draws if `fixed`, else between 1 and
        min(n, k), by rounding a uniform number.
      fixed: see there.
      round_targets: rounds labels to 0 and 1.
      distribution: `uniform` or `gaussian`.
      minimum: least id, `gaussian` only.
      maximum: largest id, `gaussian` only.
      mu: mean, `gaussian` only; -1 means the middle of the range.
      sigma: standard deviation >= 0, `gaussian` only.
      data_size: samples if `num_batches` is 0; the last batch may be short.

    Returns:
      The batches: an iterable with a length.

    Raises:
      ValueError: an argument is out of range.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"distribution must be one of {', '.join(DISTRIBUTIONS)}, "
            f"got {distribution!r}"
        )
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be >= 0 and finite, got {sigma}")
    if not minimum <= maximum:
        raise ValueError(f"minimum={minimum} must not exceed maximum={maximum}")
    mean = (minimum + maximum) / 2.0 if mu == _MIDDLE else mu

    def uniform(generator: np.random.RandomState, table: int, count: int) -> np.ndarray:
        draws = generator.random_sample(count) * (rows[table] - 1)
        return np.unique(np.round(draws).astype(np.int64))

    def gaussian(
        generator: np.random.RandomState, table: int, count: int
    ) -> np.ndarray:
        draws = np.clip(generator.normal(mean, sigma, count), minimum, maximum)
        return np.unique(draws).astype(np.int64)

    return _batches(
        uniform if distribution == "uniform" else gaussian,
        seed=seed,
        rows=rows,
        num_dense=num_dense,
        batch_size=batch_size,
        num_batches=num_batches,
        indices_per_lookup=indices_per_lookup,
        fixed=fixed,
        round_targets=round_targets,
        data_size=data_size,
    )


def synthetic_batches(
    profiles: Sequence[StackDistances],
    *,
    seed: int,
    rows: Sequence[int],
    num_dense: int,
    batch_size: int,
    num_batches: int,
    indices_per_lookup: int,
    fixed: bool,
    round_targets: bool,
    padding: bool = False,
    data_size: int = 0,
) -> RandomBatches:
    """Ids with the locality of recorded lookups.

    Each bag is a trace of its own that begins with no id seen, sorted and without
    repetitions. Ids beyond the table are taken modulo its rows, with a warning here,
    and may then repeat.

    Args:
      profiles: the stack distances of each table's lookups.
      seed: see `random_batches`, like all that follow.
      rows: of each table.
      num_dense: dense features.
      batch_size: samples of a batch.
      num_batches: batches, or 0.
      indices_per_lookup: length of a bag's trace, or its bound.
      fixed: whether it is the length.
      round_targets: rounds labels to 0 and 1.
      padding: see `draw_trace`.
      data_size: samples if `num_batches` is 0.

    Returns:
      The batches: an iterable with a length.

    Raises:
      ValueError: an argument is out of range.
    """
    profiles = tuple(profiles)
    if len(profiles) != len(rows):
        raise ValueError(
            f"profiles must have one entry for each of {len(rows)} tables, "
            f"got {len(profiles)}"
        )
    for table, (profile, size) in enumerate(zip(profiles, rows, strict=True)):
        if profile.lines.max() >= size:
            warnings.warn(
                f"table {table}: the profile has id {profile.lines.max()}, the table "
                f"{size} rows; ids are taken modulo the rows",
                stacklevel=2,
            )

    def imitate(generator: np.random.RandomState, table: int, count: int) -> np.ndarray:
        trace = draw_trace(profiles[table], count, generator, padding=padding)
        return np.unique(trace) % rows[table]

    return _batches(
        imitate,
        seed=seed,
        rows=rows,
        num_dense=num_dense,
        batch_size=batch_size,
        num_batches=num_batches,
        indices_per_lookup=indices_per_lookup,
        fixed=fixed,
        round_targets=round_targets,
        data_size=data_size,
    )


def _batches(
    draw_bag: _BagDraw,
    *,
    rows: Sequence[int],
    batch_size: int,
    num_batches: int,
    data_size: int,
    **settings: int,
) -> RandomBatches:
    for name, value, low in (
        ("batch_size", batch_size, 1),
        ("num_batches", num_batches, 0),
        ("data_size", data_size, 0),
        ("num_dense", settings["num_dense"], 0),
        ("indices_per_lookup", settings["indices_per_lookup"], 1),
    ):
        if value < low:
            raise ValueError(f"{name} must be >= {low}, got {value}")
    if not 0 <= settings["seed"] < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), got {settings['seed']}")
    if not rows or min(rows) < 1:
        raise ValueError(f"rows must be one or more numbers >= 1, got {tuple(rows)}")
    if not num_batches and not data_size:
        raise ValueError("num_batches and data_size are both 0: there are no data")
    samples = num_batches * batch_size if num_batches else data_size
    count = -(-samples // batch_size)
    sizes = (min(batch_size, samples - i * batch_size) for i in range(count))
    return RandomBatches(
        draw_bag=draw_bag, rows=tuple(rows), sizes=tuple(sizes), **settings
    )
