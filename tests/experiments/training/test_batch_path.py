"""Batch paths: what a file may hold, what it means, and the round trip."""

import pytest

from experiments.training.batch_path import (
    BatchPathRecorder,
    Change,
    read_batch_path,
    size_along,
    write_batch_path,
)

PATH = (Change(0, 8), Change(80, 16), Change(400, 64))


def test_a_path_is_read_as_it_was_written(tmp_path):
    write_batch_path(tmp_path / "path.csv", PATH)
    assert (tmp_path / "path.csv").read_text().splitlines()[:2] == [
        "samples_seen,batch_size",
        "0,8",
    ]
    assert read_batch_path(tmp_path / "path.csv", quantum=8) == PATH


def test_a_size_holds_from_its_sample_on():
    size_at = size_along(PATH)
    sizes = [size_at(samples) for samples in (0, 79, 80, 81, 399, 400, 10**9)]
    assert sizes == [8, 8, 16, 16, 16, 64, 64]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header must be samples_seen,batch_size"),
        ("samples,batch\n0,8\n", "line 1: the header"),
        ("samples_seen,batch_size\n", "no line after the header"),
        ("samples_seen,batch_size\n0,eight\n", "line 2: must be two integers"),
        ("samples_seen,batch_size\n0,8,1\n", "line 2: must be two integers"),
        ("samples_seen,batch_size\n8,8\n", "line 2: the first samples_seen must be 0"),
        (
            "samples_seen,batch_size\n0,8\n\n16,8\n16,24\n",
            "line 5: samples_seen must increase, got 16 after 16",
        ),
        (
            "samples_seen,batch_size\n0,8\n16,12\n",
            "line 3: batch_size must be a positive multiple of the micro-batch of 8",
        ),
        ("samples_seen,batch_size\n0,0\n", "line 2: batch_size must be a positive"),
    ],
)
def test_a_line_that_cannot_be_followed_is_named(tmp_path, text, message):
    (tmp_path / "path.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_batch_path(tmp_path / "path.csv", quantum=8)
    assert "path.csv" in str(caught.value)


def test_the_recorder_writes_changes_only(tmp_path):
    recorder = BatchPathRecorder(tmp_path, enabled=True)
    recorder.start(0)
    for samples, size in ((0, 8), (8, 8), (16, 24), (40, 24)):
        recorder.note(samples, size)
    path = read_batch_path(tmp_path / "batch_path.csv", quantum=8)
    assert path == (Change(0, 8), Change(16, 24))


def test_a_continued_path_drops_what_lies_ahead(tmp_path):
    write_batch_path(tmp_path / "batch_path.csv", PATH)
    recorder = BatchPathRecorder(tmp_path, enabled=True)
    recorder.start(400)  # the step from 400 on is still to come
    recorder.note(400, 32)
    path = read_batch_path(tmp_path / "batch_path.csv", quantum=8)
    assert path == (*PATH[:2], Change(400, 32))


def test_only_one_process_writes(tmp_path):
    recorder = BatchPathRecorder(tmp_path, enabled=False)
    recorder.start(0)
    recorder.note(0, 8)
    assert not list(tmp_path.iterdir())
