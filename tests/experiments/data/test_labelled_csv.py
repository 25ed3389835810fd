"""CSV files with a label column: headers, label columns, and what errors say."""

import gzip

import numpy as np
import pytest

from experiments.data.labelled_csv import read_labelled_csv


@pytest.fixture
def write(tmp_path):
    def _write(content, name="a.csv"):
        path = tmp_path / name
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return _write


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_last_column_is_the_label_and_a_header_is_found(write, name):
    table = read_labelled_csv(write("age, height ,sick\n1,2.5,0\n\n3,-4e1,1\n", name))
    np.testing.assert_array_equal(table.features, [[1, 2.5], [3, -40]])
    np.testing.assert_array_equal(table.labels, [0, 1])
    assert table.names == ("age", "height")


def test_without_header_columns_are_numbered(write):
    table = read_labelled_csv(write("1,2,yes\r\n3,4,no\r\n"))
    np.testing.assert_array_equal(table.features, [[1, 2], [3, 4]])
    assert table.labels.tolist() == ["yes", "no"]
    assert table.names == ("1", "2")


@pytest.mark.parametrize("label_column", ["sick", "0", "-3"])
def test_label_column_by_name_or_number(write, label_column):
    path = write("\ufeffsick,age,height\nyes,1,2\nno,3,4\n")
    table = read_labelled_csv(path, label_column)
    np.testing.assert_array_equal(table.features, [[1, 2], [3, 4]])
    assert table.labels.tolist() == ["yes", "no"]
    assert table.names == ("age", "height")


def test_named_label_allows_numbers_in_the_header(write):
    table = read_labelled_csv(write("sick,2020,2021\n0,1,2\n1,3,4\n"), "sick")
    assert table.names == ("2020", "2021") and table.features.shape == (2, 2)


def test_numeric_labels_are_compared_as_numbers(write):
    table = read_labelled_csv(write("5,1\n6,1.0\n7,0\n"))
    assert table.labels.dtype == np.float64
    assert np.unique(table.labels).tolist() == [0, 1]


def test_quoted_cells(write):
    table = read_labelled_csv(write('"a, b",label\n"1.5","x, y"\n2,z\n'))
    assert table.names == ("a, b",) and table.labels.tolist() == ["x, y", "z"]


BAD = {
    "a,b,c\n1,2,0\n1,x,1\n": r"line 3, column 2 \(b\): 'x' is not a finite number",
    "a,b,c\n1,,0\n": r"line 2, column 2 \(b\): '' is not a finite number",
    "1,2,0\n1,nan,1\n": "line 2, column 2: 'nan' is not a finite number",
    "1,nan,0\n1,2,1\n": "line 1, column 2: 'nan' is not a finite number",
    "1,2x,0\n1,2,1\n": "line 1, column 2: '2x' is not a finite number",
    "1,2,0\n-inf,2,1\n": "line 2, column 1: '-inf' is not a finite number",
    "1,2,0\n1,2\n": "line 2: expected 3 columns as in line 1, got 2",
    "\n1,2,0\n\n1,2,3,4\n": "line 4: expected 3 columns as in line 2, got 4",
    "1,2,\n": "line 1, column 3: '' is no label",
    "a,b\n1,NaN\n": r"line 2, column 2 \(b\): 'NaN' is no label",
    "1\n2\n": "line 1: expected a label and at least one feature .* got 1 column",
    "": "holds no samples",
    " \n,\n": "holds no samples",
    "a,b\n": "holds no samples",
    '1,0\n"1"2,0\n': "line 2: ",
    b"1,0\n1,\xff\n": "line 2: .*can't decode byte 0xff",
}


@pytest.mark.parametrize("content", BAD)
def test_bad_files_are_told_where(write, content):
    with pytest.raises(ValueError, match=f"a.csv,? {BAD[content]}"):
        read_labelled_csv(write(content))


def test_label_column_in_the_middle_keeps_column_numbers(write):
    path = write("1,yes,2\n1,no,x\n")
    with pytest.raises(ValueError, match="line 2, column 3: 'x'"):
        read_labelled_csv(path, "1")


def test_unknown_label_columns(write):
    path = write("a,b,c\n1,2,0\n")
    with pytest.raises(
        ValueError, match=r"label_column='d' is neither a name .*\(a, b, c\) nor a col"
    ):
        read_labelled_csv(path, "d")
    with pytest.raises(ValueError, match=r"label_column must lie in \[-3, 3\), got 3"):
        read_labelled_csv(path, "3")


def test_unreadable_file_is_named(write, tmp_path):
    with pytest.raises(ValueError, match="cannot read .*gone.csv: "):
        read_labelled_csv(str(tmp_path / "gone.csv"))
    (tmp_path / "torn.csv.gz").write_bytes(gzip.compress(b"1,0\n" * 999)[:-9])
    with pytest.raises(ValueError, match="cannot read .*torn.csv.gz: "):
        read_labelled_csv(str(tmp_path / "torn.csv.gz"))
