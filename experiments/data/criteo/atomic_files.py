"""Files and folders that appear whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A name beside `path` that takes its place when the block ends well.

    Args:
      path: the file to write; an older one of that name is replaced.

    Yields:
      The name to write to.
    """
    final = pathlib.Path(path)
    # In the same folder, because a rename is atomic within one file system only.
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block ends well.

    Args:
      path: the file to write; an older one of that name is replaced.

    Yields:
      The file, open for writing bytes.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        yield file


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A new folder that appears under its name when the block ends well.

    Args:
      path: the folder to make; there must be none, or an empty one.

    Yields:
      The folder to fill.
    """
    final = pathlib.Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    # What a killed process of the same number left.
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
