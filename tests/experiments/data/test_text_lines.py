import gzip

import pytest

from experiments.data.text_lines import open_lines

LINES = b"first\nsecond\n"


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_lines_of_plain_and_gzipped_files(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(LINES) if "gz" in name else LINES)
    with open_lines(str(tmp_path / name)) as file:
        assert list(file) == [b"first\n", b"second\n"]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_bytes(LINES)
    with open_lines("~/a.txt") as file:
        assert file.read() == LINES


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "torn.gz").write_bytes(gzip.compress(LINES * 99)[:-9])
    (tmp_path / "fake.gz").write_bytes(LINES)
    for name in ("torn.gz", "fake.gz", "gone", "."):
        path = str(tmp_path / name)
        with pytest.raises(ValueError, match=f"cannot read {path}: "):
            with open_lines(path) as file:
                list(file)
