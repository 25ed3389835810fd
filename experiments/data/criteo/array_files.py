"""NumPy's files, read through memory maps and written front to back.

A map is made for each access and dropped after it, so that the pages of a file larger
than memory do not add up. Nothing is ever unpickled.
"""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from experiments.data.criteo.atomic_files import atomic_file

_LOCAL_HEADER_BYTES = 30  # of a zip member, before its name and extra field
_COPY_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in a file.

    Attributes:
      name: what messages call it.
      file: path, or a file without a name.
      offset: byte at which the numbers begin.
      dtype: their type.
      shape: of the array.
      fortran_order: whether the first index varies fastest.
    """

    name: str
    file: str | BinaryIO
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran_order: bool = False

    def __post_init__(self) -> None:
        size = self.offset + self.dtype.itemsize * int(np.prod(self.shape, dtype=int))
        if self._file_size() < size:
            raise ValueError(
                f"{self.name} is torn: its {self.dtype} {list(self.shape)} needs "
                f"{size:,} bytes of the file, which has {self._file_size():,}"
            )

    def map(self) -> np.ndarray:
        """The array as a read-only map of the file."""
        order = "F" if self.fortran_order else "C"
        if not all(self.shape):  # an empty map there cannot be
            empty = np.zeros(self.shape, self.dtype, order=order)
            empty.flags.writeable = False
            return empty
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape, order)

    def _file_size(self) -> int:
        if isinstance(self.file, str):
            return os.path.getsize(self.file)
        return os.fstat(self.file.fileno()).st_size


def open_npy(path: str) -> StoredArray:
    """Opens a `.npy` file.

    Args:
      path: the file.

    Returns:
      The array.

    Raises:
      ValueError: naming the file, if it is no such file, torn, or holds objects.
    """
    try:
        with open(path, "rb") as file:
            return _stored(path, path, file, 0)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def open_npz(path: str, scratch: str | None = None) -> dict[str, StoredArray]:
    """Opens the arrays of a `.npz` file.

    Args:
      path: the file. Uncompressed members are mapped where they are; compressed ones,
        which cannot be, are first expanded into a file without a name.
      scratch: folder for that file, by default the system's.

    Returns:
      Name to array.

    Raises:
      ValueError: naming the file, if it is no such file, torn, or holds objects.
    """
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as raw:
            return {
                member.filename.removesuffix(".npy"): _stored_member(
                    path, archive, member, raw, scratch
                )
                for member in archive.infolist()
            }
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _stored_member(
    path: str,
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    raw: BinaryIO,
    scratch: str | None,
) -> StoredArray:
    name = f"{path}, array {member.filename.removesuffix('.npy')!r},"
    if member.compress_type != zipfile.ZIP_STORED:
        expanded = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115
        with archive.open(member) as source:
            shutil.copyfileobj(source, expanded, _COPY_BYTES)
        expanded.seek(0)
        return _stored(name, expanded, expanded, 0)
    raw.seek(member.header_offset)
    header = raw.read(_LOCAL_HEADER_BYTES)
    sizes = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    start = member.header_offset + _LOCAL_HEADER_BYTES + sum(sizes)
    raw.seek(start)
    return _stored(name, path, raw, start)


def _stored(name: str, path: str | BinaryIO, file: BinaryIO, start: int) -> StoredArray:
    """Reads the header at the file's position, `start`."""
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran_order, dtype = read_header(file)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{name} is no array file of NumPy: {error}") from error
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are not read")
    return StoredArray(name, path, file.tell(), dtype, shape, fortran_order)


@contextlib.contextmanager
def npy_writer(
    path: str, dtype: np.typing.DTypeLike, shape: tuple[int, ...]
) -> Iterator[Callable[[np.ndarray], None]]:
    """A `.npy` file of known length, written rows after rows.

    Args:
      path: the file; it appears, or replaces an older one, when the block ends well.
      dtype: type of the numbers.
      shape: of the whole array; the first axis is the rows.

    Yields:
      A function that appends rows of that type.

    Raises:
      ValueError: for rows of another type or shape, and at the end for too few or too
        many of them.
    """
    dtype, written = np.dtype(dtype), 0

    def write(rows: np.ndarray) -> None:
        nonlocal written
        if rows.dtype != dtype or rows.shape[1:] != shape[1:]:
            raise ValueError(
                f"{path} takes rows of {dtype} {list(shape[1:])}, "
                f"got {rows.dtype} {list(rows.shape[1:])}"
            )
        file.write(np.ascontiguousarray(rows).data)
        written += len(rows)

    with atomic_file(path) as file:
        write_npy_header(file, dtype, shape)
        yield write
        if written != shape[0]:
            raise ValueError(f"{path} was to have {shape[0]} rows, got {written}")


def write_npy_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Writes what stands before the numbers of a `.npy` file in C order."""
    np.lib.format.write_array_header_1_0(
        file,
        {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": shape,
        },
    )


def row_ranges(total: int, rows: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges `(start, stop)` of at most `rows` rows."""
    for start in range(0, total, rows):
        yield start, min(start + rows, total)
