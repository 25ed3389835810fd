import gzip
import pathlib
import random

import numpy as np
import pytest

from experiments.data.criteo.parsing import LONGEST_LINE
from experiments.data.criteo.text_files import (
    SkippedLines,
    TextBlock,
    day_files,
    join_blocks,
    read_blocks,
)


def read(path, **options) -> TextBlock:
    (whole,) = join_blocks(read_blocks(str(path), **options), 10**9)
    return whole


@pytest.mark.parametrize("block_bytes", [1, 50, 700, 1 << 17])
@pytest.mark.parametrize("ending", ["none", "one", "blank"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_line_ends_and_block_sizes_change_nothing(
    tmp_path, lines, arrays, newline, ending, block_bytes
):
    text = lines(30, seed=4)
    path = tmp_path / "train.txt"
    tail = {"none": b"", "one": newline, "blank": newline + newline}[ending]
    path.write_bytes(newline.join(text) + tail)
    whole, expected = read(path, block_bytes=block_bytes), arrays(text)
    np.testing.assert_array_equal(whole.labels, expected.labels)
    np.testing.assert_array_equal(whole.dense, expected.dense)
    np.testing.assert_array_equal(whole.ids, expected.ids)
    assert whole.lines.tolist() == list(range(1, 31))


@pytest.mark.parametrize(
    ("name", "zipped"),
    [("train.txt", True), ("train.txt", False), ("day_0.gz", True), ("d.gz", False)],
)
def test_gzip_is_recognized_by_content(tmp_path, lines, arrays, name, zipped):
    text = lines(200, seed=5)
    data = b"\n".join(text)
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if zipped else data)
    np.testing.assert_array_equal(read(path, block_bytes=999).ids, arrays(text).ids)


@pytest.mark.parametrize("zipped", [False, True])
def test_reads_on_from_any_row(tmp_path, lines, zipped):
    text = lines(25, seed=6)
    text[7] = b"bad"
    data = b"\r\n".join(text)
    path = tmp_path / "train.txt"
    path.write_bytes(gzip.compress(data) if zipped else data)
    whole = read(path, on_bad_line="skip", block_bytes=300)
    for row in range(24):
        offset, line = int(whole.offsets[row]), int(whole.lines[row])
        assert data[offset:].startswith(text[line - 1] + b"\r\n"[: 2 * (line < 25)])
        rest = read(path, on_bad_line="skip", offset=offset, line=line)
        for part, expected in zip(rest, whole.select(slice(row, None)), strict=True):
            np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("block_bytes", [64, 4000, 1 << 17])
def test_bad_line_is_named_by_file_and_line(write, lines, block_bytes):
    text = lines(60, seed=7)
    fields = text[41].split(b"\t")
    text[41] = b"\t".join([*fields[:3], b"1e5", *fields[4:]])
    text[50] = b"too\tfew"
    path = write(text)
    message = (
        r"train.txt, line 42: column I3 holds '1e5', expected an integer or nothing; "
        r"the line begins '[01]\\t"
    )
    with pytest.raises(ValueError, match=message):
        list(read_blocks(path, block_bytes=block_bytes))


def test_skipped_lines_are_counted(write, lines, arrays):
    text = lines(100, seed=8)
    bad = sorted(random.Random(0).sample(range(100), 14))
    damaged = [b"" if i in bad else line for i, line in enumerate(text)]
    damaged[bad[0]] = text[bad[0]] + b"\tx"
    skipped = SkippedLines()
    whole = read(write(damaged), on_bad_line="skip", skipped=skipped, block_bytes=500)
    good = [line for i, line in enumerate(text) if i not in bad]
    np.testing.assert_array_equal(whole.ids, arrays(good).ids)
    assert whole.lines.tolist() == [i + 1 for i in range(100) if i not in bad]
    assert skipped.count == 14 and len(skipped.messages) == 10
    assert f"line {bad[0] + 1}: expected 40 fields" in skipped.messages[0]
    assert f"line {bad[9] + 1}: expected 40 fields" in skipped.messages[9]
    assert "found 1; the line begins ''" in skipped.messages[9]


def test_only_the_last_line_may_be_blank(write, lines):
    text = lines(3)
    with pytest.raises(ValueError, match="line 3: expected 40 .* found 1;"):
        read(write([*text[:2], b"", text[2]]))
    with pytest.raises(ValueError, match="line 4: expected 40 .* found 1;"):
        read(write([*text, b"", b""]))


def test_endless_line_is_refused_in_pieces(write, lines):
    text = lines(4)
    text[1] = b"1" * (3 * LONGEST_LINE)
    path = write(text)
    for block_bytes in (LONGEST_LINE // 3, 1 << 17, 1 << 20):
        with pytest.raises(ValueError, match="line 2: expected at most 65,536 bytes"):
            read(path, block_bytes=block_bytes)
        whole = read(path, on_bad_line="skip", block_bytes=block_bytes)
        assert whole.lines.tolist() == [1, 3, 4]
        rest = read(path, offset=int(whole.offsets[1]), line=3)
        np.testing.assert_array_equal(rest.ids, whole.ids[1:])
    # Nothing but such a line, without a line end.
    pathlib.Path(path).write_bytes(text[1])
    assert list(read_blocks(path, on_bad_line="skip", block_bytes=1000)) == []


def test_unlabelled_lines(write, lines, arrays):
    text = lines(20, seed=9, labelled=False)
    whole = read(write(text), labelled=False)
    assert whole.labels is None
    np.testing.assert_array_equal(whole.dense, arrays(text, False).dense)
    with pytest.raises(ValueError, match="line 1: expected 40 fields .* found 39"):
        read(write(text))


def test_empty_files_have_no_rows(tmp_path):
    for data in (b"", b"\n", b"\r\n", gzip.compress(b"")):
        (tmp_path / "empty").write_bytes(data)
        assert list(read_blocks(str(tmp_path / "empty"))) == []


def test_unreadable_files_are_named(tmp_path, write, lines):
    with pytest.raises(ValueError, match="cannot read .*absent"):
        list(read_blocks(str(tmp_path / "absent")))
    (tmp_path / "torn.gz").write_bytes(gzip.compress(b"\n".join(lines(90)))[:-20])
    with pytest.raises(ValueError, match="cannot read .*torn.gz"):
        list(read_blocks(str(tmp_path / "torn.gz")))
    short = tmp_path / "short"
    for data in (b"\n".join(lines(3)), gzip.compress(b"\n".join(lines(3)))):
        short.write_bytes(data)
        for offset in (5, 100_000):
            with pytest.raises(ValueError, match=f"no line begins at byte {offset:,}"):
                list(read_blocks(str(short), offset=offset))
    with pytest.raises(ValueError, match="block_bytes must be >= 1, got 0"):
        list(read_blocks(str(short), block_bytes=0))
    with pytest.raises(ValueError, match="on_bad_line must be 'error' or 'skip', got"):
        list(read_blocks(write(lines(3)), on_bad_line="ignore"))


def test_joined_blocks_have_at_least_the_rows_asked_for(write, lines):
    path = write(lines(100))
    blocks = list(join_blocks(read_blocks(path, block_bytes=800), 7))
    assert all(len(block) >= 7 for block in blocks[:-1]) and len(blocks) > 5
    assert np.concatenate([b.lines for b in blocks]).tolist() == list(range(1, 101))


def test_days_are_ordered_by_number(tmp_path):
    for day in range(12):
        (tmp_path / f"day_{day}{'.gz' if day % 2 else ''}").touch()
    (tmp_path / "day_0_dense.npy").touch()
    names = [pathlib.Path(path).name for path in day_files(str(tmp_path))]
    assert names[:3] == ["day_0", "day_1.gz", "day_2"] and names[10] == "day_10"
    (tmp_path / "day_5.gz").rename(tmp_path / "aside")
    with pytest.raises(ValueError, match="lacks day_5"):
        day_files(str(tmp_path))
    (tmp_path / "day_4.gz").touch()
    with pytest.raises(ValueError, match="holds day 4 twice"):
        day_files(str(tmp_path))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="lacks day_0"):
        day_files(str(tmp_path / "none"))
