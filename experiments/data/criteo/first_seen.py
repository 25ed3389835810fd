"""Distinct values in the order in which they first come, found chunk by chunk."""

import numpy as np

# New values wait in a short sorted list until there are this many, or an eighth of the
# known ones: each known value is moved a few times in all, not once per chunk.
_LEAST_WAITING = 1 << 14


class SortedKeys:
    """Finds the position of a value in an array of distinct values."""

    def __init__(self, values: np.ndarray):
        """Sorts.

        Args:
          values: distinct, uint32 [n].
        """
        self._positions = np.argsort(values, kind="stable").astype(np.int32)
        self._keys = values[self._positions]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, values: np.ndarray) -> np.ndarray:
        """Positions of values, int32, -1 for one that is not there."""
        if not len(self._keys):
            return np.full(values.shape, -1, np.int32)
        place = np.searchsorted(self._keys, values)
        # Beyond the last key there is none to compare with.
        place[place == len(self._keys)] = 0
        return np.where(
            self._keys[place] == values, self._positions[place], np.int32(-1)
        )


class FirstSeen:
    """The distinct values of a column, in constant memory but for themselves."""

    def __init__(self, *, count: bool = False):
        """Starts without values.

        Args:
          count: also counts how often each value comes.
        """
        self._known, self._waiting = SortedKeys(_NONE), SortedKeys(_NONE)
        self._old, self._recent, self._recent_size = [_NONE], [], 0
        self._counts = np.zeros(0, np.int64) if count else None

    def __len__(self) -> int:
        return len(self._known) + self._recent_size

    def add(self, values: np.ndarray) -> None:
        """Takes the next values of the column.

        Args:
          values: uint32 [n].
        """
        found = self._find(values)
        unknown = values[found < 0]
        if unknown.size:
            distinct, first = np.unique(unknown, return_index=True)
            self._recent.append(distinct[np.argsort(first)])
            self._recent_size += len(distinct)
            self._index()
        if self._counts is not None:
            self._count(self._find(values))

    def values(self) -> np.ndarray:
        """All values in the order of their first occurrence, uint32."""
        return np.concatenate(self._old + self._recent)

    def counts(self) -> np.ndarray:
        """Occurrences of each of `values()`, int64.

        Raises:
          ValueError: if they were not to be counted.
        """
        if self._counts is None:
            raise ValueError("FirstSeen was made without count=True")
        return self._counts[: len(self)].copy()

    def _find(self, values: np.ndarray) -> np.ndarray:
        found = self._known.find(values)
        if self._recent_size:
            (rest,) = np.nonzero(found < 0)
            among = self._waiting.find(values[rest])
            found[rest] = np.where(among < 0, among, among + len(self._known))
        return found

    def _index(self) -> None:
        if self._recent_size > max(_LEAST_WAITING, len(self._known) // 8):
            self._old = [self.values()]
            self._known, self._waiting = SortedKeys(self._old[0]), SortedKeys(_NONE)
            self._recent, self._recent_size = [], 0
        else:
            self._recent = [np.concatenate(self._recent)]
            self._waiting = SortedKeys(self._recent[0])

    def _count(self, found: np.ndarray) -> None:
        if len(self) > len(self._counts):
            grown = np.zeros(2 * len(self), np.int64)
            grown[: len(self._counts)] = self._counts
            self._counts = grown
        np.add.at(self._counts, found, 1)


_NONE = np.zeros(0, np.uint32)
