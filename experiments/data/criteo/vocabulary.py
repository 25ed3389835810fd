"""Raw 32-bit ids to rows of embedding tables.

Four kinds. `all`: rows in first-seen order over every row of the data, test rows too,
as the original implementation numbers them. `train`: the same over the training rows
alone, and one more row at the end for what they do not hold; ids that occur in training
before any other part of the data get the same rows as under `all`. `frequency`: row 1
for ids that are rare or unseen in training, the others from row 2 upward in first-seen
order; row 0 stays unused. `hash`: the id modulo the number of rows, plain or mixed.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np

from experiments.data.criteo.atomic_files import atomic_file
from experiments.data.criteo.first_seen import FirstSeen, SortedKeys
from experiments.data.criteo.id_hashing import hash_ids, reduce_ids
from experiments.data.criteo.parsing import ID_COLUMNS, NUM_IDS

KINDS = ("train", "all", "frequency", "hash")
UNKNOWN_POLICIES = ("error", "oov", "hash")
_RARE_ROW, _FIRST_FREQUENT_ROW = 1, 2
_MOST_ROWS = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """Which rows ids get.

    Attributes:
      kind: one of `KINDS`.
      max_ind_range: ids are taken modulo it first if it is > 0.
      min_count: of `frequency`: how often an id must come in training to have a row of
        its own; 0 and 1 keep all.
      hash_rows: of `hash`: rows of each of the 26 tables, or of all of them.
      hash_seed: of `hash`: mixes the id's bits before the modulo; None does not.
      separate_missing: gives missing ids a row of their own. Otherwise a missing id
        counts as the id 0, as in the original implementation. The row is the last
        before that of unseen ids, the last one of `hash`, and row 0 of `frequency`.
    """

    kind: str = "train"
    max_ind_range: int = -1
    min_count: int = 0
    hash_rows: int | tuple[int, ...] | None = None
    hash_seed: int | None = None
    separate_missing: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"vocabulary must be one of {', '.join(KINDS)}, got {self.kind!r}"
            )
        if self.max_ind_range == 0 or self.max_ind_range > 1 << 32:
            raise ValueError(
                "max_ind_range must be negative (no limit) or lie in [1, 2**32], got "
                f"{self.max_ind_range}"
            )
        for name, kind, default in (
            ("min_count", "frequency", 0),
            ("hash_rows", "hash", None),
            ("hash_seed", "hash", None),
        ):
            value = getattr(self, name)
            if self.kind != kind and value != default:
                raise ValueError(
                    f"{name}={value} has no use with vocabulary={self.kind!r}, only "
                    f"with {kind!r}"
                )
        if self.min_count < 0:
            raise ValueError(f"min_count must be >= 0, got {self.min_count}")
        if self.kind == "hash":
            object.__setattr__(self, "hash_rows", _checked_rows(self.hash_rows))

    @property
    def from_training_rows(self) -> bool:
        """Whether only training rows decide."""
        return self.kind in ("train", "frequency")


def _checked_rows(rows: int | Sequence[int] | None) -> tuple[int, ...]:
    given = () if rows is None else np.atleast_1d(np.asarray(rows))
    if len(given) == 1:
        given = np.repeat(given, NUM_IDS)
    in_range = [1 <= n < _MOST_ROWS for n in given]
    if len(given) != NUM_IDS or given.dtype.kind not in "iu" or not all(in_range):
        raise ValueError(
            f"vocabulary='hash' needs hash_rows: an integer or {NUM_IDS} of them, each "
            f"in [1, {_MOST_ROWS}), got {rows!r}"
        )
    return tuple(int(n) for n in given)


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """Rows for the ids of 26 columns.

    Attributes:
      config: what it was made by.
      dictionaries: per column the raw ids with a row of their own, uint32; the one at
        position k has row `first_row` + k. Empty for `hash`.
    """

    config: VocabularyConfig
    dictionaries: tuple[np.ndarray, ...]

    @property
    def first_row(self) -> int:
        """Row of the first id of a dictionary."""
        return _FIRST_FREQUENT_ROW if self.config.kind == "frequency" else 0

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Rows of every table, int64 [26]."""
        config = self.config
        if config.kind == "hash":
            return np.array(config.hash_rows, np.int64) + config.separate_missing
        counts = np.array([len(d) for d in self.dictionaries], np.int64)
        counts += self.first_row + (config.kind == "train")
        # Row 0 of `frequency` is there in any case.
        return counts + (config.separate_missing and config.kind != "frequency")

    def oov_row(self, column: int) -> int | None:
        """Row of ids that are in no dictionary; None where there is none."""
        match self.config.kind:
            case "train":
                return int(self.counts[column]) - 1
            case "frequency":
                return _RARE_ROW
        return None

    def missing_row(self, column: int) -> int | None:
        """Row of missing ids; None where they count as the id 0."""
        if not self.config.separate_missing:
            return None
        match self.config.kind:
            case "train":
                return int(self.counts[column]) - 2
            case "frequency":
                return 0
        return int(self.counts[column]) - 1

    def check_unknown(self, unknown: str | None) -> str:
        """The policy for ids that are in no dictionary, checked.

        Args:
          unknown: `error` refuses them; `oov` gives them the row for unseen ids;
            `hash` spreads them over the rows of known ids; None is `oov` where there
            is such a row, else `error`.

        Returns:
          One of the three.

        Raises:
          ValueError: for another one, and for `oov` where there is no such row.
        """
        if unknown is None:
            return "oov" if self.config.from_training_rows else "error"
        if unknown not in UNKNOWN_POLICIES:
            raise ValueError(
                f"unknown must be one of {', '.join(UNKNOWN_POLICIES)}, got {unknown!r}"
            )
        if unknown == "oov" and not self.config.from_training_rows:
            raise ValueError(
                f"unknown='oov' needs a row for unseen ids, which a vocabulary of kind "
                f"{self.config.kind!r} does not have; choose 'error' or 'hash'"
            )
        return unknown

    def encode(
        self,
        ids: np.ndarray,
        missing: np.ndarray | None = None,
        *,
        unknown: str | None = None,
        out: np.ndarray | None = None,
        describe_row: Callable[[int], str] = "row {}".format,
    ) -> np.ndarray:
        """Rows of raw ids.

        Args:
          ids: uint32 [n, 26].
          missing: bool [n, 26]; needed with `separate_missing`.
          unknown: see `check_unknown`.
          out: int32 [n, 26] to write to; may be the memory of `ids`.
          describe_row: where a row stands, for the message.

        Returns:
          int32 [n, 26], each in [0, counts[column]).

        Raises:
          ValueError: naming column, row and id for an id that is in no dictionary,
            under the policy `error`.
        """
        _check_raw(ids)
        unknown = self.check_unknown(unknown)
        if self.config.separate_missing and missing is None:
            raise ValueError("a vocabulary with separate_missing needs `missing`")
        rows = np.empty(ids.shape, np.int32) if out is None else out
        for column in range(NUM_IDS):
            absent = None if missing is None else missing[:, column]
            try:
                encoded = self._encode(ids[:, column], absent, column, unknown)
            except _UnknownId as error:
                raise ValueError(
                    f"{describe_row(error.row)}: column {ID_COLUMNS[column]} holds "
                    f"{error.raw:08x}, which is not among the "
                    f"{len(self.dictionaries[column])} ids of the vocabulary"
                ) from None
            rows[:, column] = encoded
        return rows

    def _encode(
        self, raw: np.ndarray, missing: np.ndarray | None, column: int, unknown: str
    ) -> np.ndarray:
        config = self.config
        missing_row = self.missing_row(column)
        raw = reduce_ids(raw, config.max_ind_range)
        if config.kind == "hash":
            rows = hash_ids(raw, config.hash_rows[column], config.hash_seed, column)
        else:
            rows = self._keys[column].find(raw)
            strange = rows < 0
            rows += np.int32(self.first_row)
            if missing_row is not None:
                strange &= ~missing
            if strange.any():
                rows[strange] = self._unknown_rows(raw, strange, column, unknown)
        if missing_row is not None:
            rows[missing] = missing_row
        return rows

    def _unknown_rows(
        self, raw: np.ndarray, strange: np.ndarray, column: int, unknown: str
    ) -> np.ndarray | int:
        known = len(self.dictionaries[column])
        if unknown == "oov":
            return self.oov_row(column)
        if unknown == "error" or not known:
            row = int(np.argmax(strange))
            raise _UnknownId(row, int(raw[row]))
        return self.first_row + hash_ids(raw[strange], known, 0, column)

    @functools.cached_property
    def _keys(self) -> tuple[SortedKeys, ...]:
        return tuple(SortedKeys(values) for values in self.dictionaries)

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of kind, settings and dictionaries."""
        total = hashlib.sha256(_settings(self.config).encode())
        for values in self.dictionaries:
            total.update(len(values).to_bytes(8, "little"))
            total.update(values.astype("<u4", copy=False))
        return total.hexdigest()

    def save(self, path: str) -> None:
        """Writes an uncompressed `.npz`: `settings` and `dict_0` to `dict_25`."""
        arrays = {f"dict_{i}": values for i, values in enumerate(self.dictionaries)}
        with atomic_file(path) as file:
            np.savez(file, settings=np.array(_settings(self.config)), **arrays)


def load_vocabulary(path: str) -> Vocabulary:
    """Reads what `Vocabulary.save` wrote.

    Args:
      path: the file.

    Returns:
      The vocabulary.

    Raises:
      ValueError: naming the file, if it holds no vocabulary.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            settings = json.loads(str(arrays["settings"]))
            config = VocabularyConfig(**settings)
            names = [] if config.kind == "hash" else range(NUM_IDS)
            dictionaries = tuple(arrays[f"dict_{i}"] for i in names)
    except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no vocabulary: {error}") from error
    if any(d.dtype != np.uint32 or d.ndim != 1 for d in dictionaries):
        raise ValueError(f"{path} holds no vocabulary: ids must be uint32 vectors")
    return Vocabulary(config, dictionaries)


class VocabularyBuilder:
    """Collects the ids that decide, chunk by chunk."""

    def __init__(self, config: VocabularyConfig):
        """Starts empty.

        Args:
          config: what is wanted.
        """
        self._config = config
        count = config.kind == "frequency" and config.min_count > 1
        columns = 0 if config.kind == "hash" else NUM_IDS
        self._columns = [FirstSeen(count=count) for _ in range(columns)]

    def add(self, ids: np.ndarray, missing: np.ndarray | None = None) -> None:
        """Takes the next rows; only those that are to decide may be given.

        Args:
          ids: raw ids, uint32 [n, 26].
          missing: bool [n, 26]; needed with `separate_missing`.
        """
        _check_raw(ids)
        for column, seen in enumerate(self._columns):
            raw = ids[:, column]
            if self._config.separate_missing:
                raw = raw[~missing[:, column]]
            seen.add(reduce_ids(raw, self._config.max_ind_range))

    def build(self) -> Vocabulary:
        """The vocabulary of the rows so far."""
        dictionaries = []
        for seen in self._columns:
            values = seen.values()
            if self._config.min_count > 1:
                values = values[seen.counts() >= self._config.min_count]
            dictionaries.append(values)
        return Vocabulary(self._config, tuple(dictionaries))


class _UnknownId(Exception):
    """An id in no dictionary."""

    def __init__(self, row: int, raw: int):
        super().__init__(row, raw)
        self.row, self.raw = row, raw


def _check_raw(ids: np.ndarray) -> None:
    if ids.dtype != np.uint32 or ids.ndim != 2 or ids.shape[1] != NUM_IDS:
        raise ValueError(
            f"raw ids must be uint32 [n, {NUM_IDS}], got {ids.dtype} {list(ids.shape)}"
        )


def _settings(config: VocabularyConfig) -> str:
    return json.dumps(dataclasses.asdict(config), sort_keys=True)
