"""array_record files: random access, so documents are shuffled over the whole epoch.

A record is UTF-8 text, a JSON object, or a serialized `tf.train.Example` as TFDS
writes it; the last two keep the text in `data.text_field`.
"""

import bisect
import json
from collections.abc import Iterator, Sequence

from experiments.data.documents import IndexedDocuments
from experiments.data.extras import import_extra
from experiments.data.files import find_files, names_and_sizes_sha256
from experiments.data.json_lines import text_field

PATTERNS = ("*.array_record", "*.array_record-*", "*.arrayrecord")


def open_array_records(
    path: str, field: str, num_threads: int, flag: str
) -> IndexedDocuments:
    """Opens array_record files.

    Args:
      path: file, folder or glob.
      field: field that holds the text, where records have fields.
      num_threads: that read ahead.
      flag: the flag that holds the path, for messages.

    Returns:
      The source.

    Raises:
      ImportError: without array_record.
      ValueError: if a file is missing, empty or not an array_record.
    """
    files = find_files(path, PATTERNS, flag)
    return IndexedDocuments(
        files,
        names_and_sizes_sha256(files),
        ArrayRecordTexts(files, field),
        num_threads,
    )


class ArrayRecordTexts:
    """The texts of array_record files, numbered through."""

    def __init__(self, files: Sequence[str], field: str):
        """Opens every file.

        Args:
          files: paths.
          field: field that holds the text, where records have fields.
        """
        import_extra(
            "array_record.python.array_record_module", "data.source='array_record'"
        )
        import grain

        self._files, self._field = list(files), field
        self._readers, self._firsts, total = [], [], 0
        for file in self._files:
            try:
                reader = grain.sources.ArrayRecordDataSource([file])
                length = len(reader)
            except Exception as error:  # the reader raises what its C++ side says
                raise ValueError(f"cannot read {file}: {error}") from error
            self._readers.append(reader)
            self._firsts.append(total)
            total += length
        self._length = total

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> str | None:
        file = bisect.bisect_right(self._firsts, index) - 1
        record = index - self._firsts[file]
        place = f"{self._files[file]}, record {record}"
        try:
            data = self._readers[file][record]
        except Exception as error:  # the reader raises what its C++ side says
            raise ValueError(f"cannot read {place}: {error}") from error
        return record_text(bytes(data), self._field, place)


def record_text(data: bytes, field: str, place: str) -> str | None:
    """The text of one record.

    Args:
      data: the record.
      field: field that holds the text, where the record has fields.
      place: where the record stands, for messages.

    Returns:
      The text.

    Raises:
      ValueError: if the record has fields but not this one, or is not text.
    """
    fields = _json_fields(data) if data.startswith(b"{") else _example_fields(data)
    try:
        if fields is not None:
            raw = text_field_bytes(fields, field, place)
            return raw if isinstance(raw, str | None) else raw.decode("utf-8")
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{place}: expected UTF-8 text, a JSON object or a "
            f"tf.train.Example: {error}"
        ) from error


def text_field_bytes(fields: dict, field: str, place: str) -> str | bytes | None:
    """`text_field` where text may also be encoded."""
    if isinstance(fields.get(field), bytes):
        return fields[field]
    return text_field(fields, field, place)


def _json_fields(data: bytes) -> dict | None:
    try:
        record = json.loads(data)
    except ValueError:
        return None  # text that begins with a brace
    return record if isinstance(record, dict) else None


# tf.train.Example in protocol-buffer wire format: field 1 holds Features, whose field
# 1 repeats map entries {1: name, 2: Feature}; field 1 of a Feature is a BytesList,
# whose field 1 repeats the values.


def _example_fields(data: bytes) -> dict[str, object] | None:
    """First value of every feature; None if the bytes are no Example."""
    if not data.startswith(b"\n"):
        return None
    fields: dict[str, object] = {}
    try:
        for features in _lengths_delimited(data, 1):
            for entry in _lengths_delimited(features, 1):
                name = next(_lengths_delimited(entry, 1)).decode("utf-8")
                feature = next(_lengths_delimited(entry, 2))
                # A feature of numbers stays a placeholder: its name is known.
                values = list(_lengths_delimited(feature, 1)) or [b""]
                value = list(_lengths_delimited(values[0], 1))
                fields[name] = value[0] if value else 0
    except (ValueError, IndexError, StopIteration):
        return None
    return fields or None


def _lengths_delimited(data: bytes, wanted: int) -> Iterator[bytes]:
    """Values of one length-delimited field; ValueError if the bytes do not parse."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        if key & 7 != 2:
            raise ValueError("not length-delimited")
        length, place = _varint(data, place)
        if place + length > len(data):
            raise ValueError("runs past the end")
        if key >> 3 == wanted:
            yield data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
