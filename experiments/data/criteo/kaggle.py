"""The Kaggle file in memory, split and numbered as the original implementation does."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.data.criteo.parsing import NUM_DENSE, NUM_IDS
from experiments.data.criteo.splits import (
    KAGGLE_PARTS,
    Split,
    SubSampling,
    part_sizes,
    split_parts,
)
from experiments.data.criteo.text_files import (
    SkippedLines,
    check_on_bad_line,
    read_blocks,
)
from experiments.data.criteo.vocabulary import (
    Vocabulary,
    VocabularyBuilder,
    VocabularyConfig,
)

# Rows that are looked up at a time: temporaries of a few megabytes.
_ROWS_AT_A_TIME = 1 << 18


@dataclasses.dataclass(frozen=True, eq=False)
class KaggleData:
    """A file of one table, seven days long.

    Attributes:
      dense: int64 [N, 13], before the logarithm; missing and negative ones are 0.
      ids: rows of the embedding tables, int32 [N, 26].
      labels: 0 or 1, int32 [N].
      counts: rows of every table, int64 [26].
      day_count: rows of each of the seven parts, int64 [7].
      dictionaries: per column the raw ids with a row of their own, uint32, in the order
        of their rows; from row 2 on for `frequency`, empty for `hash`.
      vocabulary: the same as an object that numbers other data.
      skipped: bad lines that were left out.
    """

    dense: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    counts: np.ndarray
    day_count: np.ndarray
    dictionaries: tuple[np.ndarray, ...]
    vocabulary: Vocabulary
    skipped: SkippedLines

    def split(self, halves: str = "test_first") -> Split:
        """Rows for training, test and validation; see `split_parts`."""
        return split_parts(self.day_count, halves)


def read_kaggle(
    path: str,
    *,
    max_ind_range: int = -1,
    sub_sample_rate: float = 0.0,
    seed: int = 123,
    vocabulary: str = "train",
    on_bad_line: str = "error",
    min_count: int = 0,
    hash_rows: int | Sequence[int] | None = None,
    hash_seed: int | None = None,
    separate_missing: bool = False,
) -> KaggleData:
    """Reads a labelled text file whole, such as the contest's `train.txt`.

    The whole of that file takes 12 GB; `preprocess` needs a constant amount. Lines that
    are skipped count as absent: they belong to no part and draw no random number.

    Args:
      path: the file, plain or gzipped.
      max_ind_range: ids are taken modulo it before all else if it is > 0.
      sub_sample_rate: probability with which a row of label 0 is left out, in every
        part; 0 leaves out none.
      seed: of these draws.
      vocabulary: `train`, `all`, `frequency` or `hash`; see
        `experiments.data.criteo.vocabulary`. `all` reproduces the original numbers.
      on_bad_line: `error`, or `skip` to leave bad lines out and count them.
      min_count: of `frequency`: occurrences in training below which ids share row 1.
      hash_rows: of `hash`: rows of every table, or of each of the 26.
      hash_seed: of `hash`: mixes an id's bits before the modulo; None does not.
      separate_missing: missing ids get a row of their own, not that of the id 0.

    Returns:
      The data.

    Raises:
      ValueError: naming file and line for a bad line; for a file that cannot be read
        or has no row left; naming the argument for one that is out of range.
    """
    if isinstance(hash_rows, Sequence):
        hash_rows = tuple(hash_rows)
    config = VocabularyConfig(
        kind=vocabulary,
        max_ind_range=max_ind_range,
        min_count=min_count,
        hash_rows=hash_rows,
        hash_seed=hash_seed,
        separate_missing=separate_missing,
    )
    sampling = SubSampling(sub_sample_rate, seed)
    check_on_bad_line(on_bad_line)
    skipped = SkippedLines()
    labels, dense, raw, missing = _read_columns(
        path, on_bad_line, skipped, separate_missing
    )
    skipped.report()
    if not len(labels):
        raise ValueError(f"{path} holds no row")
    keep = sampling.keep(labels)
    day_count = _kept(part_sizes(len(labels), KAGGLE_PARTS), keep)
    if not keep.all():
        labels, dense, raw = labels[keep], dense[keep], raw[keep]
        missing = None if missing is None else missing[keep]
        if not len(labels):
            raise ValueError(
                f"{path}: sub_sample_rate={sub_sample_rate} leaves no row of it"
            )
    numbers = _build(config, raw, missing, int(day_count[:-1].sum()))
    ids = raw.view(np.int32)
    for start in range(0, len(raw), _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        absent = None if missing is None else missing[rows]
        numbers.encode(raw[rows], absent, out=ids[rows])
    return KaggleData(
        dense=np.maximum(dense, 0, out=dense),
        ids=ids,
        labels=labels,
        counts=numbers.counts,
        day_count=day_count,
        dictionaries=numbers.dictionaries,
        vocabulary=numbers,
        skipped=skipped,
    )


def _read_columns(
    path: str, on_bad_line: str, skipped: SkippedLines, separate_missing: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    labels = [np.zeros(0, np.int32)]
    dense = [np.zeros((0, NUM_DENSE), np.int64)]
    raw = [np.zeros((0, NUM_IDS), np.uint32)]
    missing = [np.zeros((0, NUM_IDS), bool)]
    for block in read_blocks(path, on_bad_line=on_bad_line, skipped=skipped):
        labels.append(block.labels)
        dense.append(block.dense)
        raw.append(block.ids)
        if separate_missing:
            missing.append(block.missing)
    return (
        _joined(labels),
        _joined(dense),
        _joined(raw),
        _joined(missing) if separate_missing else None,
    )


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """All parts as one array; they are given up, so that one column is there twice."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole


def _kept(sizes: np.ndarray, keep: np.ndarray) -> np.ndarray:
    ends = np.concatenate([[0], np.cumsum(keep)])[np.cumsum(sizes)]
    return np.diff(ends, prepend=0)


def _build(
    config: VocabularyConfig,
    raw: np.ndarray,
    missing: np.ndarray | None,
    training_rows: int,
) -> Vocabulary:
    builder = VocabularyBuilder(config)
    stop = training_rows if config.from_training_rows else len(raw)
    for start in range(0, stop, _ROWS_AT_A_TIME):
        rows = slice(start, min(start + _ROWS_AT_A_TIME, stop))
        builder.add(raw[rows], None if missing is None else missing[rows])
    return builder.build()
