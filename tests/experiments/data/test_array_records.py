import json
import struct
import sys

import pytest

module = pytest.importorskip("array_record.python.array_record_module")

from experiments.data.array_records import (  # noqa: E402
    ArrayRecordTexts,
    open_array_records,
    record_text,
)


def field(number, payload):
    """A length-delimited field of the protocol-buffer wire format."""
    size, length = len(payload), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + payload


def example(**features):
    """A tf.train.Example, as TFDS serializes it."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = field(1, field(1, value))  # BytesList
        elif isinstance(value, float):
            feature = field(2, field(1, struct.pack("<f", value)))  # FloatList
        else:
            feature = field(3, field(1, bytes([value])))  # Int64List
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def write(path, records):
    writer = module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return str(path)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ("plain ü".encode(), "plain ü"),
        (b"\nbegins with a line end", "\nbegins with a line end"),
        (b"{ begins with a brace", "{ begins with a brace"),
        (json.dumps({"text": "json", "url": ""}).encode(), "json"),
        (b'{"text": null}', None),
        (example(score=0.5, text=("long ü " * 99).encode(), label=3), "long ü " * 99),
        (example(text=b""), ""),
    ],
)
def test_records_are_text_json_or_examples(record, text):
    assert record_text(record, "text", "here") == text


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"\xff\xfe", "here: expected UTF-8 text, a JSON object or a"),
        (example(text=b"\xff"), "here: expected UTF-8 text"),
        (example(content=b"a", label=1), "no field 'text' .*there are content, label"),
        (example(text=1), "here: field 'text' is a int, not text"),
        (b'{"content": 1}', "here: no field 'text' .*there are content"),
    ],
)
def test_bad_records_are_named(record, message):
    with pytest.raises(ValueError, match=message):
        record_text(record, "text", "here")


def test_files_are_numbered_through(tmp_path):
    files = [
        write(tmp_path / "a.array_record", [b"0", b"1", b"2"]),
        write(tmp_path / "b.array_record", [b"3"]),
        write(tmp_path / "c.array_record-00000-of-00001", [b"4", b"\xff"]),
    ]
    source = open_array_records(str(tmp_path), "text", 0, "data.path")
    assert list(source.files) == files
    assert [source.records[i] for i in range(5)] == list("01234")
    assert len(source.records) == 6
    with pytest.raises(ValueError, match="c.array_record-00000-of-00001, record 1: ex"):
        source.records[5]


def test_errors_name_the_file(tmp_path):
    (tmp_path / "bad.array_record").write_bytes(b"no records" * 20)
    with pytest.raises(ValueError, match="cannot read .*bad.array_record"):
        ArrayRecordTexts([str(tmp_path / "bad.array_record")], "text")
    (tmp_path / "bad.array_record").write_bytes(b"")
    with pytest.raises(ValueError, match="the file .*bad.array_record is empty"):
        open_array_records(str(tmp_path), "text", 0, "data.path")


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    path = write(tmp_path / "a.array_record", [b"0"])
    name = "array_record.python.array_record_module"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="data.source='array_record' needs the pack"):
        open_array_records(path, "text", 0, "data.path")
