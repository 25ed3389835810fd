"""How soon ids come back: traces of lookups, profiled and imitated.

The stack distance of a lookup is the number of different ids looked up since the last
lookup of the same id, that one included: 1 for an immediate repetition, and 0 by
convention for an id that was never seen. Distances drawn from the profile of a real
trace give a trace of the same locality, with the same hit rate in every LRU cache.

File formats are those of the original DLRM code. A trace is ids separated by `, `, or
binary uint64. A profile is three such lines: the ids in the order of their first
lookup, the distances that occur, and the cumulative share of each.
"""

import bisect
import collections
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class StackDistances:
    """The profile of a trace; checked when made.

    Attributes:
      lines: int64 `[l]`, the different ids, >= 0, in the order of their first lookup.
      distances: int64 `[k]`, increasing, from 0 to at most l.
      cumulative: float64 `[k]`, the share of lookups with at most each distance;
        increasing to 1.
    """

    lines: np.ndarray
    distances: np.ndarray
    cumulative: np.ndarray

    def __post_init__(self):
        lines, distances, cumulative = self.lines, self.distances, self.cumulative
        if not len(lines) or lines.min() < 0 or len(np.unique(lines)) < len(lines):
            raise ValueError("lines must be one or more different ids >= 0")
        if not len(distances) or distances[0] != 0 or (np.diff(distances) <= 0).any():
            raise ValueError("distances must increase from 0, which a first lookup has")
        if distances[-1] > len(lines):
            raise ValueError(
                f"distances must not exceed the {len(lines)} different ids, "
                f"got {distances[-1]}"
            )
        if len(cumulative) != len(distances):
            raise ValueError(
                f"cumulative must have one share for each of {len(distances)} "
                f"distances, got {len(cumulative)}"
            )
        growth = np.diff(cumulative, prepend=0.0)
        # Written so that NaN fails; files hold rounded shares.
        if not ((growth >= 0).all() and abs(cumulative[-1] - 1) < 1e-3):
            raise ValueError("cumulative must increase to 1")
        if cumulative[0] == 0:
            raise ValueError(
                "cumulative must give distance 0 a share: the first lookup has it"
            )


def profile_trace(trace: Iterable[int]) -> StackDistances:
    """Measures the stack distances of a trace.

    Args:
      trace: ids in the order in which they were looked up, at least one, >= 0.

    Returns:
      The profile. Time grows as n log n.

    Raises:
      ValueError: the trace is empty or holds a negative id.
    """
    ids = [int(line) for line in trace]
    if not ids:
        raise ValueError("the trace is empty")
    counts: collections.Counter[int] = collections.Counter()
    last: dict[int, int] = {}
    latest = _PrefixSums(len(ids))  # marks the last lookup of each id
    for time, line in enumerate(ids):
        before = last.get(line)
        if before is None:
            counts[0] += 1
        else:
            # One mark for each id looked up after `before`, and one for itself.
            counts[len(last) - latest.up_to(before - 1)] += 1
            latest.add(before, -1)
        latest.add(time, 1)
        last[line] = time
    distances = np.array(sorted(counts), np.int64)
    occurrences = np.array([counts[int(d)] for d in distances])
    lines = np.array(list(last), np.int64)
    return StackDistances(lines, distances, np.cumsum(occurrences) / len(ids))


def draw_trace(
    profile: StackDistances,
    length: int,
    generator: np.random.RandomState,
    *,
    padding: bool = False,
) -> np.ndarray:
    """Draws lookups with the stack distances of a profile, beginning with none seen.

    One uniform number for each lookup, as the original draws them. Until as many ids
    are seen as the largest distance, only distances that are possible are drawn. A new
    id is the next of `lines`; after the last one it is the id looked up longest ago.

    Args:
      profile: what to imitate.
      length: number of lookups, >= 0.
      generator: drawn from.
      padding: draws no new ids once as many are seen as the largest distance (the
        original's "enable padding").

    Returns:
      int64 `[length]` ids.
    """
    cumulative, distances = profile.cumulative, profile.distances
    first, last = float(cumulative[0]), len(distances) - 1
    furthest = int(distances[-1])
    trace = np.empty(length, np.int64)
    recent: list[int] = []  # ids seen, the latest at the end
    seen = 0
    for position in range(length):
        uniform = float(generator.random_sample())
        if seen < furthest:
            possible = bisect.bisect_right(distances, seen) - 1
            uniform *= float(cumulative[possible])
        elif padding:
            uniform = (1.0 - first) * uniform + first
        # The last share may have been rounded below 1.
        distance = int(distances[min(bisect.bisect_left(cumulative, uniform), last)])
        if distance:
            line = recent.pop(-distance)
        else:
            fresh = seen < len(profile.lines)
            line = int(profile.lines[seen]) if fresh else recent.pop(0)
            seen += 1
        recent.append(line)
        trace[position] = line
    return trace


def read_trace(path: str | pathlib.Path, *, binary: bool = False) -> np.ndarray:
    """Reads a trace.

    Args:
      path: the file.
      binary: whether it holds uint64 numbers of this machine's byte order instead of
        text; text is separated by commas, spaces or line ends.

    Returns:
      int64 ids, in their order.

    Raises:
      ValueError: naming file and line, something is no integer >= 0.
    """
    path = pathlib.Path(path)
    if binary:
        data = path.read_bytes()
        if len(data) % 8:
            raise ValueError(f"{path}: {len(data)} bytes are not whole uint64 numbers")
        numbers = np.frombuffer(data, np.uint64)
        if numbers.size and int(numbers.max()) >= 2**63:
            raise ValueError(f"{path}: id {numbers.max()} is outside int64")
        return numbers.astype(np.int64)
    ids: list[int] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        ids += _numbers(line, int, f"{path}, line {number}")
    return np.array(ids, np.int64)


def write_trace(
    path: str | pathlib.Path, trace: Sequence[int], *, binary: bool = False
) -> None:
    """Writes a trace for `read_trace`.

    Args:
      path: of the file.
      trace: ids >= 0.
      binary: whether to write uint64 numbers instead of text.
    """
    ids = np.asarray(trace, np.int64)
    if binary:
        pathlib.Path(path).write_bytes(ids.astype(np.uint64).tobytes())
    else:
        pathlib.Path(path).write_text(_line(ids))


def read_profile(path: str | pathlib.Path) -> StackDistances:
    """Reads a profile.

    Args:
      path: the file.

    Returns:
      The profile.

    Raises:
      ValueError: naming the file, and where possible the line, for what is not a
        profile.
    """
    path = pathlib.Path(path)
    texts = path.read_text().splitlines()
    if len(texts) < 3:
        raise ValueError(
            f"{path}: a profile has 3 lines (ids, distances, cumulative shares), "
            f"found {len(texts)}"
        )
    kinds = (int, int, float)
    lines, distances, cumulative = (
        np.array(_numbers(text, kind, f"{path}, line {number}"))
        for number, (text, kind) in enumerate(zip(texts, kinds, strict=False), start=1)
    )
    try:
        return StackDistances(lines, distances, cumulative)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_profile(path: str | pathlib.Path, profile: StackDistances) -> None:
    """Writes a profile for `read_profile`, every number as it is."""
    rows = (profile.lines, profile.distances, profile.cumulative)
    pathlib.Path(path).write_text("".join(map(_line, rows)))


def profile_path(pattern: str, table: int) -> str:
    """The file of a table: a `j` standing alone in the file's name is its number.

    The original replaces every letter j of the whole path. Without such a `j` all
    tables share one file.

    Args:
      pattern: such as `input/dist_emb_j.log`.
      table: number from 0.

    Returns:
      The path, such as `input/dist_emb_0.log`.
    """
    folder, name = re.fullmatch(r"(.*[/\\])?(.*)", pattern, re.S).groups("")
    return folder + re.sub(r"(?<![A-Za-z0-9])j(?![A-Za-z0-9])", str(table), name)


class _PrefixSums:
    """A Fenwick tree: add to an entry and sum the first ones in log n."""

    def __init__(self, size: int):
        self._tree = [0] * (size + 1)

    def add(self, index: int, value: int) -> None:
        node = index + 1
        while node < len(self._tree):
            self._tree[node] += value
            node += node & -node

    def up_to(self, index: int) -> int:
        """The sum of entries 0 to `index`, both included."""
        node, total = index + 1, 0
        while node > 0:
            total += self._tree[node]
            node -= node & -node
        return total


def _line(numbers: np.ndarray) -> str:
    return ", ".join(map(repr, numbers.tolist())) + "\n"


def _numbers(line: str, kind: type, place: str) -> list[Any]:
    words = line.replace(",", " ").split()
    try:
        numbers = [kind(word) for word in words]
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if any(number < 0 for number in numbers):
        raise ValueError(f"{place}: {min(numbers)} is negative")
    return numbers
