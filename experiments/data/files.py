"""Which files a path of the configuration means."""

import glob
import os
import pathlib
from collections.abc import Sequence

from experiments.data.documents import digest


def find_files(path: str, patterns: Sequence[str], flag: str) -> list[str]:
    """The files of a path, in the order of their names.

    Args:
      path: a file, a folder (searched below for `patterns`) or a glob, in which `**`
        crosses folders.
      patterns: names of the format's files, e.g. `*.txt`.
      flag: the flag that holds the path, for the message.

    Returns:
      Paths of files, none of them empty.

    Raises:
      ValueError: if there is none, or one is empty.
    """
    expanded = os.path.expanduser(path)
    if os.path.isdir(expanded):
        found = {
            p for pattern in patterns for p in pathlib.Path(expanded).rglob(pattern)
        }
        if not any(p.is_file() for p in found):
            raise ValueError(
                f"{flag}={path!r}: the folder holds no file named "
                f"{' or '.join(patterns)}"
            )
    elif os.path.isfile(expanded):
        found = {pathlib.Path(expanded)}
    else:
        found = {pathlib.Path(p) for p in glob.glob(expanded, recursive=True)}
        if not found:
            raise ValueError(f"{flag}={path!r}: there is no such file, folder or match")
    files = sorted(p for p in found if p.is_file())
    for file in files:
        if file.stat().st_size == 0:
            raise ValueError(f"{flag}={path!r}: the file {file} is empty")
    return [str(file) for file in files]


def relative_names(files: Sequence[str]) -> list[str]:
    """Names below the files' common folder, so that moving it changes nothing."""
    root = os.path.commonpath([os.path.dirname(os.path.abspath(f)) for f in files])
    return [
        pathlib.Path(os.path.relpath(os.path.abspath(f), root)).as_posix()
        for f in files
    ]


def names_and_sizes_sha256(files: Sequence[str]) -> str:
    """Digest of a corpus that is not read whole."""
    sizes = [str(os.path.getsize(file)).encode() for file in files]
    return digest(relative_names(files), sizes)
