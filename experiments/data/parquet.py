"""Parquet files with a column of text, as FineWeb comes."""

from collections.abc import Iterator

from experiments.data.documents import FileDocuments
from experiments.data.extras import import_extra
from experiments.data.files import find_files, names_and_sizes_sha256

PATTERNS = ("*.parquet",)
_ROWS_AT_A_TIME = 256


def open_parquet(path: str, field: str, flag: str) -> FileDocuments:
    """Opens parquet files.

    Args:
      path: file, folder or glob.
      field: column that holds the text.
      flag: the flag that holds the path, for messages.

    Returns:
      The source.

    Raises:
      ImportError: without pyarrow.
    """
    import_extra("pyarrow.parquet", "data.source='parquet'")
    files = find_files(path, PATTERNS, flag)
    return FileDocuments(files, names_and_sizes_sha256(files), read_parquet, field)


def read_parquet(
    path: str, field: str, first: int = 0, stride: int = 1
) -> Iterator[tuple[int, str | None]]:
    """Texts of one file; row groups before `first` are not read.

    Args:
      path: the file.
      field: column that holds the text.
      first: first row, from 0.
      stride: takes every `stride`-th row.

    Yields:
      Pairs of the row's number, from 0, and its text, None if it is null.

    Raises:
      ValueError: if the file cannot be read or has no such column of text.
    """
    arrow = import_extra("pyarrow", "data.source='parquet'")
    parquet = import_extra("pyarrow.parquet", "data.source='parquet'")
    try:
        with parquet.ParquetFile(path) as file:
            _check_column(file.schema_arrow, field, path, arrow)
            offset = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if first < offset + rows:
                    batches = file.iter_batches(
                        _ROWS_AT_A_TIME, row_groups=[group], columns=[field]
                    )
                    yield from _texts(batches, offset, first, stride)
                offset += rows
    except (OSError, arrow.ArrowException) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _texts(batches, offset: int, first: int, stride: int):
    for batch in batches:
        begin = max((first - offset), (first - offset) % stride)
        taken = batch.column(0)[begin::stride] if begin < len(batch) else ()
        for turn, text in enumerate(taken):
            yield offset + begin + turn * stride, text.as_py()
        offset += len(batch)


def _check_column(schema, field: str, path: str, arrow) -> None:
    if field not in schema.names:
        raise ValueError(
            f"{path}: no column {field!r} (data.text_field); "
            f"there are {', '.join(schema.names)}"
        )
    kind = schema.field(field).type
    if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
        raise ValueError(f"{path}: column {field!r} holds {kind}, not text")
