import gzip
import json

import pytest

from experiments.data.json_lines import open_json_lines, read_json_lines

RECORDS = [
    {"text": f"page {i} ü", "timestamp": "2019-04-25T12:57:54Z", "url": "https://x.org"}
    for i in range(7)
]


@pytest.mark.parametrize("name", ["a.jsonl", "c4-train.00000-of-01024.json.gz"])
def test_reads_from_any_line_at_any_stride(tmp_path, name):
    path = tmp_path / name
    data = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    for first in range(9):
        for stride in (1, 2, 5):
            read = list(read_json_lines(str(path), "text", first, stride))
            assert read == [
                (i, RECORDS[i]["text"]) for i in range(first, len(RECORDS), stride)
            ]
    assert [t for _, t in read_json_lines(str(path), "url")] == ["https://x.org"] * 7


def test_blank_lines_and_null_texts_are_no_documents(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": null}\n{"text": "b"}')
    expected = [(0, "a"), (1, None), (2, None), (3, "b")]
    assert list(read_json_lines(str(path), "text")) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "line 2: malformed JSON"),
        (b'{"text": "\xff"}', "line 2: malformed JSON"),
        (b'["a"]', "line 2: expected one JSON object per line, got a list"),
        (
            b'{"content": "a", "url": ""}',
            r"line 2: no field 'text' \(data.text_field\); there are content, url",
        ),
        (b'{"text": 3}', "line 2: field 'text' is a int, not text"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(ValueError, match="a.jsonl, " + message):
        list(read_json_lines(str(path), "text"))


def test_unreadable_files_are_named(tmp_path):
    def read(name):
        source = open_json_lines(str(tmp_path / name), "text", "data.path")
        return [list(read_json_lines(file, "text")) for file in source.files]

    lines = b'{"text": "good"}\n' * 99
    (tmp_path / "torn.json.gz").write_bytes(gzip.compress(lines)[:-9])
    with pytest.raises(ValueError, match="cannot read .*torn.json.gz"):
        read("torn.json.gz")
    (tmp_path / "fake.json.gz").write_bytes(lines)
    with pytest.raises(ValueError, match="cannot read .*fake.json.gz"):
        read("fake.json.gz")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="data.path=.*the file .*empty.jsonl is empty"):
        read("empty.jsonl")
    with pytest.raises(ValueError, match="gone.jsonl': there is no such file"):
        read("gone.jsonl")
