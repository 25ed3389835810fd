"""Criteo's text lines to arrays: byte arithmetic on whole buffers, in NumPy alone.

A line is a label, 13 integers and 26 hexadecimal ids between tabs; any field but the
label may be empty, and the test file of the Kaggle contest has no label. Separators are
located in one sweep. A field of up to eight bytes is then loaded as one 64-bit word and
its digits are joined pairwise, for all fields of a buffer at once, so that no Python
runs per line or field. Only a line that is refused is looked at by itself, for the
message.
"""

import re
from typing import NamedTuple

import numpy as np

NUM_DENSE, NUM_IDS = 13, 26
DENSE_COLUMNS = tuple(f"I{i}" for i in range(1, NUM_DENSE + 1))
ID_COLUMNS = tuple(f"C{i}" for i in range(1, NUM_IDS + 1))
# No line that is accepted is longer; a reader may cut what exceeds it.
LONGEST_LINE = 1 << 16

# What a byte stands for: a digit's value, or a kind that has one of the upper bits.
_MINUS, _OTHER, _RETURN, _TAB, _NEWLINE = 0x40, 0x80, 0xA0, 0xC0, 0xE0
_KINDS = bytearray([_OTHER]) * 256
for _value, _digit in enumerate(b"0123456789abcdef"):
    _KINDS[_digit] = _KINDS[ord(chr(_digit).upper())] = _value
_KINDS[ord("-")], _KINDS[ord("\r")] = _MINUS, _RETURN
_KINDS[ord("\t")], _KINDS[ord("\n")] = _TAB, _NEWLINE
_KINDS = bytes(_KINDS)

_NOT_A_DIGIT = np.uint64(0xF0F0_F0F0_F0F0_F0F0)
_SIXES = np.uint64(0x0606_0606_0606_0606)
# (bits between neighbours, mask of those that are left) of the three joining steps.
_JOINS = (
    (8, 0x00FF_00FF_00FF_00FF),
    (16, 0x0000_FFFF_0000_FFFF),
    (32, 0x0000_0000_FFFF_FFFF),
)
_LONGEST_INTEGER = 20  # characters of -2**63
_INT64 = np.iinfo(np.int64)


class ParsedLines(NamedTuple):
    """The accepted lines of a buffer, in their order.

    Attributes:
      labels: 0 or 1, int32 [n]; None for lines without labels.
      dense: int64 [n, 13]; a missing integer is 0.
      ids: uint32 [n, 26]; a missing id is 0.
      missing: which ids are missing, bool [n, 26].
      lines: number of each line in the buffer, from 0, int64 [n].
      starts: byte at which each line begins, int64 [n].
      bad_lines: numbers of the lines refused, from 0, int64 [m].
      bad_starts: bytes at which those begin, int64 [m].
      num_lines: all lines of the buffer, n + m.
    """

    labels: np.ndarray | None
    dense: np.ndarray
    ids: np.ndarray
    missing: np.ndarray
    lines: np.ndarray
    starts: np.ndarray
    bad_lines: np.ndarray
    bad_starts: np.ndarray
    num_lines: int


def parse_lines(data: bytes, *, labelled: bool = True) -> ParsedLines:
    r"""Parses complete lines.

    Accepted are a label of exactly `0` or `1`; integers of an optional minus sign and
    decimal digits, in at most 20 characters and within int64; ids of one to eight
    hexadecimal digits of either case; and line ends `\n` or `\r\n`. Nothing is
    raised: `describe_bad_line` says what is wrong with a refused line.

    Args:
      data: lines, each with its line end.
      labelled: whether lines begin with a label (40 fields) or not (39).

    Returns:
      The accepted lines and the places of the others.
    """
    fields = NUM_DENSE + NUM_IDS + labelled
    # Words are loaded from two neighbours, hence room behind the last byte.
    kinds_of_bytes = (data + bytes(16 + -len(data) % 8)).translate(_KINDS)
    kinds = np.frombuffer(kinds_of_bytes, np.uint8)
    words = np.frombuffer(kinds_of_bytes, "<u8")
    ends = np.flatnonzero(kinds[: len(data)] >= _TAB)
    line_ends = np.flatnonzero(kinds[ends] == _NEWLINE)
    num_lines = len(line_ends)
    line_starts = np.zeros(num_lines, np.int64)
    line_starts[1:] = ends[line_ends[:-1]] + 1
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1

    found = np.diff(line_ends, prepend=-1)
    good = found == fields
    if not good.all():
        of_good = np.repeat(good, found)
        starts, ends = starts[of_good], ends[of_good]
    starts, ends = starts.reshape(-1, fields), ends.reshape(-1, fields)
    ends[:, -1] -= kinds[ends[:, -1] - 1] == _RETURN

    lengths = ends - starts
    dense, bad = _integers(data, kinds, words, starts[:, -39:-26], lengths[:, -39:-26])
    ids, bad_ids = _ids(words, starts[:, -26:], lengths[:, -26:])
    missing = lengths[:, -26:] == 0
    bad |= bad_ids
    labels = None
    if labelled:
        labels = kinds[starts[:, 0]].astype(np.int32)
        bad |= (labels > 1) | (lengths[:, 0] != 1)

    lines = np.flatnonzero(good)
    if bad.any():
        kept = ~bad
        good[lines[bad]] = False
        lines, dense, ids, missing = lines[kept], dense[kept], ids[kept], missing[kept]
        labels = None if labels is None else labels[kept]
    bad_lines = np.flatnonzero(~good)
    return ParsedLines(
        labels=labels,
        dense=dense,
        ids=ids,
        missing=missing,
        lines=lines,
        starts=line_starts[lines],
        bad_lines=bad_lines,
        bad_starts=line_starts[bad_lines],
        num_lines=num_lines,
    )


def _load(words: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Fields of up to eight bytes as words: the last byte on top, zeros below.

    A longer field gives 0: NumPy's shifts by 64 bits or more do.
    """
    index = starts >> 3
    bits = ((starts & 7) << 3).astype(np.uint64)
    loaded = words.take(index)
    loaded >>= bits
    index += 1
    following = words.take(index)
    following <<= np.uint64(64) - bits
    loaded |= following
    loaded <<= ((8 - lengths) << 3).astype(np.uint64)
    return loaded


def _join_digits(loaded: np.ndarray, base: int) -> np.ndarray:
    """The number that eight digits make, the first one in the lowest byte."""
    for step, (bits, mask) in enumerate(_JOINS):
        lower = loaded >> np.uint64(bits)
        loaded *= np.uint64(base ** (1 << step))
        loaded += lower
        loaded &= np.uint64(mask)
    return loaded


def _ids(
    words: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hexadecimal fields, and which lines have a bad one."""
    shape = starts.shape
    starts, lengths = starts.ravel(), lengths.ravel()
    loaded = _load(words, starts, lengths)
    bad = np.zeros(shape[0], bool)
    if loaded.size and (
        np.bitwise_or.reduce(loaded) & _NOT_A_DIGIT or lengths.max() > 8
    ):
        wrong = (loaded & _NOT_A_DIGIT != 0) | (lengths > 8)
        bad = wrong.reshape(shape).any(axis=1)
    return _join_digits(loaded, 16).astype(np.uint32).reshape(shape), bad


def _integers(
    data: bytes,
    kinds: np.ndarray,
    words: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Decimal fields, and which lines have a bad one."""
    shape = starts.shape
    starts, lengths = starts.ravel(), lengths.ravel()
    negative = kinds.take(starts) == _MINUS
    starts += negative
    lengths -= negative
    loaded = _load(words, starts, lengths)
    wrong = _not_decimal(loaded) | (negative & (lengths == 0))
    values = _join_digits(loaded, 10).view(np.int64)
    (long,) = np.nonzero(lengths > 8)
    if long.size:
        values[long], wrong[long] = _long_integers(
            data, words, starts[long], lengths[long], negative[long]
        )
    np.negative(values, out=values, where=negative)
    return values.reshape(shape), wrong.reshape(shape).any(axis=1)


def _not_decimal(loaded: np.ndarray) -> np.ndarray:
    """Which words hold a byte above 9; sixteen or more need no carry to show."""
    return (((loaded + _SIXES) | loaded) & _NOT_A_DIGIT) != 0


def _long_integers(
    data: bytes,
    words: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    negative: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes of more than eight digits, and which are bad.

    The lowest int64 is given as itself; negating it changes nothing.
    """
    upper = _load(words, starts, lengths - 8)
    lower = _load(words, starts + lengths - 8, np.full_like(lengths, 8))
    wrong = _not_decimal(upper) | _not_decimal(lower)
    values = _join_digits(upper, 10) * np.uint64(10**8) + _join_digits(lower, 10)
    values = values.view(np.int64)
    for i in np.flatnonzero(lengths > 16):
        start = int(starts[i]) - bool(negative[i])
        field = data[start : int(starts[i] + lengths[i])]
        wrong[i] = _integer_error(field) != ""
        if not wrong[i]:
            value = int(field)
            values[i] = value if value == _INT64.min else abs(value)
    return values, wrong


def _integer_error(field: bytes) -> str:
    """What was expected of an integer field, empty if it is one."""
    if field and not re.fullmatch(rb"-?[0-9]+", field):
        return "an integer or nothing"
    fits = len(field) <= _LONGEST_INTEGER
    if field and not (fits and _INT64.min <= int(field) <= _INT64.max):
        return "an integer of 64 bits in at most 20 characters"
    return ""


def _id_error(field: bytes) -> str:
    """What was expected of an id, empty if it is one."""
    if re.fullmatch(rb"[0-9a-fA-F]{0,8}", field):
        return ""
    if re.fullmatch(rb"[0-9a-fA-F]+", field):
        return "at most 8 hexadecimal digits (32 bits)"
    return "hexadecimal digits or nothing"


def describe_bad_line(line: bytes, *, labelled: bool = True) -> str:
    """Says what is wrong with a line that `parse_lines` refuses.

    Args:
      line: the line, with or without its line end.
      labelled: whether it should begin with a label.

    Returns:
      What was found and expected, with the column's name for a bad field, and the
      first 80 characters of the line.
    """
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    shown = _text(line)[:80]
    return f"{_complaint(line, labelled)}; the line begins {shown!r}"


def _complaint(line: bytes, labelled: bool) -> str:
    if len(line) >= LONGEST_LINE:
        return f"expected at most {LONGEST_LINE:,} bytes, found more"
    fields = line.split(b"\t")
    expected = NUM_DENSE + NUM_IDS + labelled
    if len(fields) != expected:
        label = "a label, " if labelled else "no label, "
        return (
            f"expected {expected} fields ({label}{NUM_DENSE} integers, {NUM_IDS} "
            f"hexadecimal ids), found {len(fields)}"
        )
    if labelled and fields[0] not in (b"0", b"1"):
        return f"the label is {_shown(fields[0])}, expected 0 or 1"
    for names, error, part in (
        (DENSE_COLUMNS, _integer_error, fields[-39:-26]),
        (ID_COLUMNS, _id_error, fields[-26:]),
    ):
        for name, field in zip(names, part, strict=True):
            if complaint := error(field):
                return f"column {name} holds {_shown(field)}, expected {complaint}"
    raise ValueError("the line is a good one")


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


def _shown(field: bytes) -> str:
    text = _text(field)
    return repr(text if len(text) <= 40 else text[:40] + "…")
