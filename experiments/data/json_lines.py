"""JSON lines, plain or gzipped, as C4 comes: `text`, `url`, `timestamp` per line."""

import gzip
import itertools
import json
import zlib
from collections.abc import Iterator

from experiments.data.documents import FileDocuments
from experiments.data.files import find_files, names_and_sizes_sha256

PATTERNS = ("*.json", "*.jsonl", "*.json.gz", "*.jsonl.gz")


def open_json_lines(path: str, field: str, flag: str) -> FileDocuments:
    """Opens files of one JSON object per line.

    Args:
      path: file, folder or glob.
      field: key that holds the text.
      flag: the flag that holds the path, for messages.

    Returns:
      The source.
    """
    files = find_files(path, PATTERNS, flag)
    return FileDocuments(files, names_and_sizes_sha256(files), read_json_lines, field)


def read_json_lines(
    path: str, field: str, first: int = 0, stride: int = 1
) -> Iterator[tuple[int, str | None]]:
    """Texts of one file; a blank line is a record without text.

    Args:
      path: the file, gzipped if it ends in `.gz`.
      field: key that holds the text.
      first: first line, from 0.
      stride: takes every `stride`-th line.

    Yields:
      Pairs of the line's number, from 0, and its text.

    Raises:
      ValueError: naming file and line (from 1) for a line that is not a JSON object
        with this field; naming the file if it cannot be read.
    """
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as lines:
            for turn, line in enumerate(itertools.islice(lines, first, None, stride)):
                number = first + turn * stride
                text = None
                if not line.isspace():
                    text = _text_of(line, field, f"{path}, line {number + 1}")
                yield number, text
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _text_of(line: bytes, field: str, place: str) -> str | None:
    try:
        record = json.loads(line)
    except ValueError as error:  # malformed JSON or not UTF-8
        raise ValueError(f"{place}: malformed JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(
            f"{place}: expected one JSON object per line, got a {type(record).__name__}"
        )
    return text_field(record, field, place)


def text_field(record: dict, field: str, place: str) -> str | None:
    """The text of a record, None if it is null.

    Args:
      record: what was read.
      field: key that holds the text.
      place: where the record stands, for the message.

    Returns:
      The text.

    Raises:
      ValueError: if the field is absent or no text.
    """
    if field not in record:
        raise ValueError(
            f"{place}: no field {field!r} (data.text_field); "
            f"there are {', '.join(map(str, record)) or 'none'}"
        )
    text = record[field]
    if text is not None and not isinstance(text, str):
        raise ValueError(
            f"{place}: field {field!r} is a {type(text).__name__}, not text"
        )
    return text
