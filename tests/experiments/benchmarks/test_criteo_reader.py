"""The speed of reading Criteo's text: the text, the peers, and what is judged."""

import json

import numpy as np
import pytest

from experiments.benchmarks import criteo_reader
from experiments.benchmarks.criteo_reader import judge, make_lines, readers
from experiments.data.criteo.parsing import parse_lines


def test_text_is_like_the_published_files():
    parsed = parse_lines(make_lines(3000))
    assert len(parsed.labels) == 3000 and not len(parsed.bad_lines)
    assert parsed.labels.mean() == pytest.approx(0.25, abs=0.04)
    missing = parsed.missing.mean(axis=0)
    assert missing[18] == pytest.approx(0.45, abs=0.05)
    assert missing[0] == pytest.approx(1 / 30, abs=0.02)
    assert parsed.dense.min() == -1 and parsed.dense.max() > 10_000
    assert 200 < len(make_lines(3000)) / 3000 < 260
    assert make_lines(5) == make_lines(5) != make_lines(5, seed=1)


@pytest.mark.parametrize("name", readers())
def test_every_reader_sees_every_row(tmp_path, name):
    path = tmp_path / "train.txt"
    text = make_lines(5000)
    path.write_bytes(text)
    labels = sum(line.startswith(b"1") for line in text.splitlines())
    assert readers()[name](str(path)) == labels > 1000


def test_bars():
    growth = {"blocks": 1 << 20, "batches": 3 << 20}
    bars = judge({"blocks": 150_000.0}, growth, 100 << 20)
    assert [bar["met"] for bar in bars] == [False, True, False]
    assert [bar["figure"] for bar in bars] == [150_000.0, 0.01, 0.03]
    assert judge({"blocks": 2e5}, {}, 1)[0]["met"]


def test_whole_benchmark(capsys):
    report = criteo_reader.run(lines=300, long_megabytes=1, rounds=2)
    printed = capsys.readouterr().out
    assert "| line loop" in printed and "blocks, lines per second" in printed
    assert [row["name"] for row in report["rows"]] == list(readers())
    assert all(row["lines_per_second"] > 0 for row in report["rows"])
    assert np.isfinite(json.loads(json.dumps(report))["bars"][0]["figure"])
