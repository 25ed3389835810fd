"""LIBSVM files: what is read, and what a bad line is told."""

import gzip

import numpy as np
import pytest

from experiments.data.libsvm import _fault_of, read_libsvm

TEXT = b"""# two classes, five features
+1 1:0.5 3:-2e-1 # the first sample

-1 2:1
   
-1 # a sample of zeros
1 1:1 2:2 3:3 5:5
"""  # noqa: W291, W293
DENSE = [[0.5, 0, -0.2, 0, 0], [0, 1, 0, 0, 0], [0] * 5, [1, 2, 3, 0, 5]]


@pytest.fixture
def write(tmp_path):
    def _write(content, name="a.svm"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return str(path)

    return _write


@pytest.mark.parametrize("name", ["a.svm", "a.svm.gz"])
def test_reads_sparse_rows(write, name):
    rows = read_libsvm(write(TEXT, name))
    np.testing.assert_array_equal(rows.labels, [1, -1, -1, 1])
    np.testing.assert_array_equal(rows.row_starts, [0, 2, 3, 3, 7])
    np.testing.assert_array_equal(rows.columns, [0, 2, 1, 0, 1, 2, 4])
    np.testing.assert_array_equal(rows.values, [0.5, -0.2, 1, 1, 2, 3, 5])
    assert rows.num_features == 5
    assert rows.columns.dtype == np.int32 and rows.row_starts.dtype == np.int64
    assert rows.density == 7 / 20
    np.testing.assert_array_equal(rows.dense(), DENSE)


def test_padded_rows_have_the_sums_of_the_dense_ones(write):
    rows = read_libsvm(write(TEXT))
    columns, values = rows.padded()
    assert columns.shape == values.shape == (4, 4)
    np.testing.assert_array_equal(values[2], 0)
    w = np.array([1.0, -2.0, 3.0, 4.0, 0.25])
    np.testing.assert_allclose((values * w[columns]).sum(1), rows.dense() @ w)


def test_rows_of_zeros_alone(write):
    rows = read_libsvm(write(b"1\n-1\n"), num_features=3)
    np.testing.assert_array_equal(rows.dense(), np.zeros((2, 3)))
    np.testing.assert_array_equal(rows.padded()[1], np.zeros((2, 1)))
    assert read_libsvm(write(b"1\n-1\n")).num_features == 0


def test_width_can_be_given(write):
    assert read_libsvm(write(TEXT), num_features=9).dense().shape == (4, 9)
    with pytest.raises(ValueError, match="a.svm has the index 5, above num_features=4"):
        read_libsvm(write(TEXT), num_features=4)


BAD = {
    b"spam 1:1": "the label 'spam' is not a finite number",
    b"nan 1:1": "the label 'nan' is not a finite number",
    b"1,2 1:1": "the label '1,2' is not a finite number",
    b"1 1:1 7": "'7' lacks a colon between index and value",
    b"1 0:1": r"the index 0 is outside \[1, 2147483647\]",
    b"1 -3:1": r"the index -3 is outside \[1, 2147483647\]",
    b"1 4294967296:1": r"the index 4294967296 is outside \[1, 2147483647\]",
    b"1 1.5:1": "the index '1.5' of '1.5:1' is not an integer",
    b"1 a:1": "the index 'a' of 'a:1' is not an integer",
    b"1 2:1 1:1": "the index 1 follows 2; indices must ascend",
    b"1 2:1 2:1": "the index 2 comes twice",
    b"1 2:": "the value '' of index 2 is not a finite number",
    b"1 2: 3": "the value '' of index 2 is not a finite number",
    b"1 2:x": "the value 'x' of index 2 is not a finite number",
    b"1 2:1:1": "the value '1:1' of index 2 is not a finite number",
    b"1 2:nan": "the value 'nan' of index 2 is not a finite number",
    b"1 2:-inf": "the value '-inf' of index 2 is not a finite number",
    b"1 2:1e999": "the value '1e999' of index 2 is not a finite number",
    b"1 2:\xff": "the value '\ufffd' of index 2 is not a finite number",
}


@pytest.mark.parametrize("line", BAD)
@pytest.mark.parametrize("name", ["a.svm", "a.svm.gz"])
def test_bad_lines_are_named(write, line, name):
    path = write(TEXT + line + b"\n1 1:1\n", name)
    with pytest.raises(ValueError, match=f"{name}, line 8: {BAD[line]}"):
        read_libsvm(path)


def test_query_ids_are_passed_over(write):
    rows = read_libsvm(write(b"1 qid:3 1:2\n-1 qid:4 2:1\n"))
    np.testing.assert_array_equal(rows.dense(), [[2, 0], [0, 1]])
    with pytest.raises(ValueError, match="line 2: the index 'qid'"):
        read_libsvm(write(b"1 qid:3 1:2\n-1 2:1 qid:4\n"))


@pytest.mark.parametrize("content", [b"", b"\n  \n", b"# nothing\n"])
def test_file_without_samples_is_refused(write, content):
    with pytest.raises(ValueError, match="a.svm holds no samples"):
        read_libsvm(write(content))


def test_unreadable_files_are_named(write, tmp_path):
    with pytest.raises(ValueError, match="cannot read .*gone.svm: "):
        read_libsvm(str(tmp_path / "gone.svm"))
    (tmp_path / "torn.svm.gz").write_bytes(gzip.compress(TEXT * 99)[:-9])
    with pytest.raises(ValueError, match="cannot read .*torn.svm.gz: "):
        read_libsvm(str(tmp_path / "torn.svm.gz"))


def test_library_and_line_walk_agree_on_damaged_lines(write):
    """A byte of a good line replaced at random: both accept it, or both do not."""
    generator = np.random.default_rng(0)
    good = b"-1 1:0.5 12:-2e-1 13:7 # end"
    alphabet = b"0123456789:.+-e# \tqx_,\x00\xff"
    accepted = 0
    for _ in range(400):
        line = bytearray(good)
        line[generator.integers(len(line))] = alphabet[
            generator.integers(len(alphabet))
        ]
        path = write(b"1 1:1\n" + bytes(line) + b"\n")
        try:
            assert len(read_libsvm(path).labels) == 2 - (
                not line.split(b"#")[0].split()
            )
            accepted += 1
            assert _fault_of(bytes(line)) is None, line
        except ValueError as error:
            assert "line 2: " in str(error), line
    assert 100 < accepted < 350
