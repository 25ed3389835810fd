"""Small result tables: printed, and written as CSV and Markdown."""

import csv
import pathlib
from collections.abc import Sequence


def _shown(value: object) -> str:
    if value is None:
        return "not reached"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    cells = [list(header), *([_shown(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]

    def line(values: Sequence[str]) -> str:
        padded = [v.ljust(w) for v, w in zip(values, widths, strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(cells[0]), rule, *map(line, cells[1:])])


def write_table(
    path: pathlib.Path, header: Sequence[str], rows: Sequence[Sequence[object]]
) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes `path` with the suffixes `.csv` and `.md`; returns both paths."""
    csv_path, markdown_path = path.with_suffix(".csv"), path.with_suffix(".md")
    with csv_path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    markdown_path.write_text(markdown_table(header, rows) + "\n")
    return csv_path, markdown_path
