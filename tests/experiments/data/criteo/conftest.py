"""Random Criteo text, and a slow parser that reads it line by line."""

import pathlib
import random
import re

import numpy as np
import pytest

FIELDS = {True: 40, False: 39}


def _field(draw: random.Random, column: int) -> str:
    if draw.random() < 0.2:
        return ""
    if column < 13:
        return str(draw.choice([-3, -1, 0, 7, 1234, 23159456, 10**9, 2**40]))
    # Few values, so that they repeat; the largest ids are among them.
    return f"{0xFFFFFFFF - draw.randrange(40) * 0x05F5E101:08x}"


def make_lines(count: int, seed: int = 0, *, labelled: bool = True) -> list[bytes]:
    """Good lines without line ends."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        label = [str(int(draw.random() < 0.3))] if labelled else []
        fields = label + [_field(draw, column) for column in range(39)]
        lines.append("\t".join(fields).encode())
    return lines


def slow_parse(line: bytes, labelled: bool = True):
    """Label, integers and ids of a line without its line end; None for a bad one."""
    fields = line.split(b"\t")
    if len(fields) != FIELDS[labelled]:
        return None
    label = fields.pop(0) if labelled else b"0"
    if label not in (b"0", b"1"):
        return None
    for field in fields[:13]:
        if field and not re.fullmatch(rb"-?\d{1,20}", field):
            return None
        if len(field) > 20 or not -(2**63) <= int(field or 0) < 2**63:
            return None
    for field in fields[13:]:
        if not re.fullmatch(rb"[0-9a-fA-F]{0,8}", field):
            return None
    dense = [int(field or 0) for field in fields[:13]]
    return int(label), dense, [int(field or b"0", 16) for field in fields[13:]]


class Text:
    """Good rows as arrays, by the slow parser."""

    def __init__(self, lines: list[bytes], labelled: bool = True):
        rows = [slow_parse(line, labelled) for line in lines]
        self.labels = np.array([row[0] for row in rows], np.int32)
        self.dense = np.array([row[1] for row in rows], np.int64).reshape(-1, 13)
        self.ids = np.array([row[2] for row in rows], np.uint32).reshape(-1, 26)


@pytest.fixture
def lines():
    """Makes good lines."""
    return make_lines


@pytest.fixture
def slow():
    """Parses one line slowly."""
    return slow_parse


@pytest.fixture
def arrays():
    """Parses good lines slowly."""
    return Text


@pytest.fixture
def write(tmp_path):
    """Writes lines to a file and returns its path."""

    def write_lines(lines: list[bytes], name: str = "train.txt") -> str:
        path = pathlib.Path(tmp_path, name)
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return str(path)

    return write_lines
