"""Criteo's text files, plain or gzipped, block by block in constant memory."""

import dataclasses
import gzip
import os
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from absl import logging

from experiments.data.criteo.parsing import (
    LONGEST_LINE,
    describe_bad_line,
    parse_lines,
)

_GZIP_MAGIC = b"\x1f\x8b"
# The temporaries of a larger block are above the size from which the C library maps
# fresh pages for each of them: parsing is then half as fast.
BLOCK_BYTES = 1 << 17
_EXAMPLES = 10


class TextBlock(NamedTuple):
    """Consecutive rows of one file.

    Attributes:
      labels: 0 or 1, int32 [n]; None for files without labels.
      dense: int64 [n, 13]; a missing integer is 0.
      ids: uint32 [n, 26]; a missing id is 0.
      missing: which ids are missing, bool [n, 26].
      lines: line number of each row, from 1, int64 [n].
      offsets: byte of the uncompressed text at which each row begins, int64 [n].
    """

    labels: np.ndarray | None
    dense: np.ndarray
    ids: np.ndarray
    missing: np.ndarray
    lines: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: slice | np.ndarray) -> "TextBlock":
        """Some of the rows."""
        return TextBlock(*(None if part is None else part[rows] for part in self))


@dataclasses.dataclass
class SkippedLines:
    """What `on_bad_line="skip"` left out.

    Attributes:
      count: number of lines.
      messages: what was wrong with the first ten of them.
    """

    count: int = 0
    messages: list[str] = dataclasses.field(default_factory=list)

    def add(self, message: str) -> None:
        """Counts one more."""
        self.count += 1
        if len(self.messages) < _EXAMPLES:
            self.messages.append(message)

    def report(self) -> None:
        """Warns of them, if there are any."""
        if self.count:
            logging.warning(
                "left out %d bad lines, the first one: %s", self.count, self.messages[0]
            )


def check_on_bad_line(on_bad_line: str) -> None:
    """Refuses a policy there is not.

    Raises:
      ValueError: unless it is `error` or `skip`.
    """
    if on_bad_line not in ("error", "skip"):
        raise ValueError(f"on_bad_line must be 'error' or 'skip', got {on_bad_line!r}")


def read_blocks(
    path: str,
    *,
    labelled: bool = True,
    on_bad_line: str = "error",
    skipped: SkippedLines | None = None,
    offset: int = 0,
    line: int = 1,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[TextBlock]:
    r"""Reads a file from some line on.

    Gzip is recognized by its first bytes, whatever the file is called. Lines may end in
    `\n` or `\r\n`; the last one may lack its line end or be blank.

    Args:
      path: the file.
      labelled: whether lines begin with a label.
      on_bad_line: `error` raises at the first bad line, `skip` leaves bad lines out and
        counts them.
      skipped: where they are counted.
      offset: byte of the uncompressed text at which to begin, the start of a line. A
        gzipped file is decompressed up to there.
      line: number of that line, from 1.
      block_bytes: text that is parsed at a time; it changes where blocks end, not the
        rows.

    Yields:
      Blocks of at least one row.

    Raises:
      ValueError: naming file and line for a bad line; naming the file if it cannot be
        read or no line begins at `offset`; for `block_bytes` below 1.
    """
    check_on_bad_line(on_bad_line)
    if block_bytes < 1:
        raise ValueError(f"block_bytes must be >= 1, got {block_bytes}")
    skipped = SkippedLines() if skipped is None else skipped
    for data, size in _complete_lines(path, offset, block_bytes):
        parsed = parse_lines(data, labelled=labelled)
        for number, start in zip(parsed.bad_lines, parsed.bad_starts, strict=True):
            bad = data[start : data.index(b"\n", start)]
            message = (
                f"{path}, line {line + number}: "
                f"{describe_bad_line(bad, labelled=labelled)}"
            )
            if on_bad_line == "error":
                raise ValueError(message)
            skipped.add(message)
        if len(parsed.ids):
            yield TextBlock(
                parsed.labels,
                parsed.dense,
                parsed.ids,
                parsed.missing,
                parsed.lines + line,
                parsed.starts + offset,
            )
        line += parsed.num_lines
        offset += size


def join_blocks(blocks: Iterator[TextBlock], rows: int) -> Iterator[TextBlock]:
    """Joins blocks until they have at least `rows` rows; the last may have fewer."""
    parts: list[TextBlock] = []
    for block in blocks:
        parts.append(block)
        if sum(map(len, parts)) >= rows:
            yield _concatenate(parts)
            parts = []
    if parts:
        yield _concatenate(parts)


def _concatenate(blocks: list[TextBlock]) -> TextBlock:
    if len(blocks) == 1:
        return blocks[0]
    return TextBlock(
        *(
            None if parts[0] is None else np.concatenate(parts)
            for parts in zip(*blocks, strict=True)
        )
    )


def _complete_lines(
    path: str, offset: int, block_bytes: int
) -> Iterator[tuple[bytes, int]]:
    """Complete lines with the number of bytes they take; a blank last line is left out.

    A line of `LONGEST_LINE` bytes or more, which no parser accepts, is cut to that
    length and given alone, so that a file without line ends is refused in constant
    memory.
    """
    try:
        with open(path, "rb") as raw:
            file = _uncompressed(raw)
            if offset:
                file.seek(offset - 1)
                if file.read(1) != b"\n":
                    raise ValueError(f"{path}: no line begins at byte {offset:,}")
            rest, cut = b"", 0
            while data := file.read(block_bytes):
                if len(rest) >= LONGEST_LINE:
                    end = data.find(b"\n") + 1
                    if not end:
                        cut += len(data)
                        continue
                    yield rest + b"\n", len(rest) + cut + end
                    rest, cut, data = b"", 0, data[end:]
                data = rest + data
                end = data.rfind(b"\n") + 1
                if end == len(data):
                    # Whether a blank line is the last one shows with the next bytes.
                    end -= _blank_end(data)
                rest = data[end:]
                if end:
                    yield data[:end], end
            if rest not in (b"", b"\n", b"\r\n", b"\r"):
                complete = rest if rest.endswith(b"\n") else rest + b"\n"
                yield complete, len(rest) + cut
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _uncompressed(raw: BinaryIO) -> BinaryIO:
    zipped = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if zipped else raw


def _blank_end(data: bytes) -> int:
    """Bytes of a blank line at the end of complete lines."""
    for blank in (b"\n", b"\r\n"):
        if data == blank or data.endswith(b"\n" + blank):
            return len(blank)
    return 0


def day_files(folder: str) -> list[str]:
    """The files `day_0`, `day_1`, … of a folder, plain or `.gz`, in their order.

    Args:
      folder: where they are.

    Returns:
      The paths.

    Raises:
      ValueError: if there is none, one is there twice, or one in between is missing.
    """
    found: dict[int, str] = {}
    for name in sorted(os.listdir(folder)):
        if match := re.fullmatch(r"day_(\d+)(\.gz)?", name):
            if int(match[1]) in found:
                raise ValueError(f"{folder} holds day {int(match[1])} twice")
            found[int(match[1])] = os.path.join(folder, name)
    absent = sorted(set(range(max(found, default=0) + 1)) - set(found))
    if absent:
        raise ValueError(f"{folder} lacks day_{absent[0]}")
    return [found[day] for day in sorted(found)]
