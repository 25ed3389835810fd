"""Tables of numbers with one column of labels, as comma-separated values.

The first row is a header if none of its features is a number, or if the label column
is given by a name in it. The label column is the last one by default; its entries may
be numbers or texts.
"""

import csv
import itertools
import math
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from experiments.data.text_lines import open_lines


class LabelledTable(NamedTuple):
    """Samples with all their features.

    Attributes:
      features: float64 (N, d), the label column left out.
      labels: (N,), float64 if all of them are numbers, else text.
      names: of the d features; without a header their column numbers, from 1.
    """

    features: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]


def read_labelled_csv(path: str, label_column: str | None = None) -> LabelledTable:
    """Reads a file.

    Args:
      path: the file, gzipped if it ends in `.gz`; UTF-8, commas between cells. Blank
        lines are passed over.
      label_column: a name of the header or a column number from 0, negative ones from
        the end; the last column if None or empty.

    Returns:
      Its samples, in their order.

    Raises:
      ValueError: naming file, line and column (both from 1, the column by name too if
        it has one) for a cell that is no finite number or an empty label; naming file
        and line for a row of another width; naming the file if it cannot be read, has
        no samples, or has no such label column.
    """
    with open_lines(path) as binary:
        rows = _rows(path, binary)
        first = next(rows, None)
        if first is None:
            raise ValueError(f"{path} holds no samples")
        width = len(first[1])
        if width < 2:
            raise ValueError(
                f"{path}, line {first[0]}: expected a label and at least one feature "
                f"with commas between them, got {width} column"
            )
        place, names = _layout(path, first[1], label_column)
        features, labels = [], []
        for number, cells in rows if names else itertools.chain([first], rows):
            if len(cells) != width:
                raise ValueError(
                    f"{path}, line {number}: expected {width} columns as in line "
                    f"{first[0]}, got {len(cells)}"
                )
            labels.append(_label(cells.pop(place), path, number, place, names))
            features.append(_numbers(cells, path, number, place, names))
    if not labels:
        raise ValueError(f"{path} holds no samples")
    titles = names or [str(1 + column) for column in range(width)]
    return LabelledTable(
        features=np.stack(features),
        labels=_as_numbers(labels),
        names=tuple(t for column, t in enumerate(titles) if column != place),
    )


def _rows(path: str, binary: BinaryIO) -> Iterator[tuple[int, list[str]]]:
    """Line numbers, from 1, and cells without surrounding blanks."""
    reader = csv.reader(_text_lines(path, binary), strict=True)
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                yield reader.line_num, stripped
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def _text_lines(path: str, binary: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(binary, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error


def _layout(
    path: str, first: list[str], label_column: str | None
) -> tuple[int, list[str]]:
    """Where the labels stand, and the header's names (none without a header)."""
    width, wanted = len(first), (label_column or "").strip()
    if wanted and wanted in first and not _is_number(wanted):
        return first.index(wanted), first
    try:
        column = int(wanted) if wanted else width - 1
    except ValueError:
        raise ValueError(
            f"{path}: label_column={wanted!r} is neither a name in its first row "
            f"({', '.join(first)}) nor a column number from 0"
        ) from None
    if not -width <= column < width:
        raise ValueError(
            f"{path}: label_column must lie in [{-width}, {width}), got {column}"
        )
    place = column % width
    features = first[:place] + first[place + 1 :]
    return place, [] if any(map(_is_number, features)) else first


def _numbers(
    cells: list[str], path: str, number: int, place: int, names: list[str]
) -> np.ndarray:
    try:
        values = np.array([float(cell) for cell in cells])
        if np.isfinite(values).all():
            return values
    except ValueError:
        pass
    at = next(i for i, cell in enumerate(cells) if not _is_finite(cell))
    column = at + (at >= place)
    raise ValueError(
        f"{path}, line {number}, {_column(column, names)}: {cells[at]!r} is not a "
        "finite number"
    )


def _label(text: str, path: str, number: int, place: int, names: list[str]) -> str:
    if text and text.lower().lstrip("+-") not in ("nan", "inf", "infinity"):
        return text
    raise ValueError(
        f"{path}, line {number}, {_column(place, names)}: {text!r} is no label"
    )


def _column(column: int, names: list[str]) -> str:
    return f"column {1 + column}" + (f" ({names[column]})" if names else "")


def _as_numbers(labels: list[str]) -> np.ndarray:
    """Numbers where all of them are, so that 1 and 1.0 are one class."""
    try:
        return np.array([float(label) for label in labels])
    except ValueError:
        return np.array(labels)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_finite(text: str) -> bool:
    return _is_number(text) and math.isfinite(float(text))
