"""Lines of a text file of samples, plain or gzipped."""

import contextlib
import gzip
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def open_lines(path: str) -> Iterator[BinaryIO]:
    """Opens a file of lines for reading.

    Args:
      path: of the file, gzipped if it ends in `.gz`; `~` is expanded.

    Yields:
      The file, in binary mode and expanded.

    Raises:
      ValueError: naming the file, if it cannot be opened or expanded.
    """
    expanded = os.path.expanduser(path)
    try:
        with (
            gzip.open(expanded) if expanded.endswith(".gz") else open(expanded, "rb")
        ) as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
