import sys

import pytest

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from experiments.data.parquet import open_parquet, read_parquet  # noqa: E402


def write(path, column, **others):
    table = pyarrow.table({"text": column, **others})
    parquet.write_table(table, path, row_group_size=300)
    return str(path)


def test_reads_from_any_row_at_any_stride(tmp_path):
    texts = [f"row {i}" for i in range(1000)]
    texts[500] = None
    # Row groups of 300 and reads of 256 rows: neither may show.
    path = write(tmp_path / "a.parquet", texts, id=list(range(1000)))
    for first in (0, 1, 255, 256, 299, 300, 301, 650, 999, 1000, 1500):
        for stride in (1, 3, 257, 700):
            read = list(read_parquet(path, "text", first, stride))
            assert read == [(i, texts[i]) for i in range(first, 1000, stride)]


def test_large_strings_are_text(tmp_path):
    column = pyarrow.array(["a", "b"], pyarrow.large_string())
    path = write(tmp_path / "a.parquet", column)
    assert list(read_parquet(path, "text")) == [(0, "a"), (1, "b")]


def test_errors_name_file_and_column(tmp_path):
    path = write(tmp_path / "a.parquet", ["a"], id=[1])
    with pytest.raises(ValueError, match=r"no column 'content' .*there are text, id"):
        list(read_parquet(path, "content"))
    with pytest.raises(ValueError, match="column 'id' holds int64, not text"):
        list(read_parquet(path, "id"))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match="cannot read .*b.parquet"):
        list(read_parquet(str(tmp_path / "b.parquet"), "text"))
    (tmp_path / "c.parquet").touch()
    with pytest.raises(ValueError, match="the file .*c.parquet is empty"):
        open_parquet(str(tmp_path), "text", "data.path")


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    message = "data.source='parquet' needs the package 'pyarrow.parquet' of the `data`"
    with pytest.raises(ImportError, match=message):
        open_parquet(str(tmp_path), "text", "data.path")
