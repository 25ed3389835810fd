import csv
import json
import math
import pathlib

import pandas
import pytest
from absl import logging

from experiments.training.metrics import MetricsWriter, read_metrics

tensorboardX = pytest.importorskip("tensorboardX")


def write_steps(writer: MetricsWriter, steps) -> None:
    for step in steps:
        writer.write(
            step,
            "train",
            {"train/loss": 1.0 / step, "train/lr": 0.1},
            wall_s=0.5 * step,
            tokens=10 * step,
        )


def read_events(folder: pathlib.Path) -> list:
    """Events of all files in the order of writing."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in sorted(folder.iterdir()):
        content, offset = path.read_bytes(), 0
        while offset < len(content):
            # Record: length, its checksum, the event, its checksum.
            size = int.from_bytes(content[offset : offset + 8], "little")
            events.append(Event.FromString(content[offset + 12 : offset + 12 + size]))
            offset += 12 + size + 4
    return events


def test_json_lines(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    write_steps(writer, [1, 2])
    writer.write(2, "eval", {"eval/loss": 3.5}, wall_s=1.5, tokens=20)
    # Without close or flush: a killed run loses nothing.
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines][::2] == [
        {
            "step": 1,
            "wall_s": 0.5,
            "tokens": 10,
            "split": "train",
            "train/loss": 1.0,
            "train/lr": 0.1,
        },
        {"step": 2, "wall_s": 1.5, "tokens": 20, "split": "eval", "eval/loss": 3.5},
    ]
    writer.close()
    assert read_metrics(tmp_path) == read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 2]


def test_csv_is_read_by_pandas(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    write_steps(writer, [1, 2])
    writer.write(2, "eval", {"eval/loss": math.nan}, wall_s=1.5, tokens=20)
    writer.close()
    frame = pandas.read_csv(tmp_path / "metrics.csv")
    assert list(frame.columns) == ["step", "wall_s", "tokens", "split", "name", "value"]
    loss = frame[frame.name == "train/loss"]
    assert loss.value.tolist() == [1.0, 0.5] and loss.tokens.tolist() == [10, 20]
    assert frame.value.isna().sum() == 1


def test_non_finite_values_stay_valid_json(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    values = {"train/loss": math.nan, "train/lr": math.inf}
    writer.write(1, "train", values, wall_s=1.0, tokens=1)
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    row = json.loads(text, parse_constant=pytest.fail)
    assert row["train/loss"] is None
    assert math.isnan(read_metrics(tmp_path)[0]["train/loss"])
    assert ",train/lr,inf\n" in (tmp_path / "metrics.csv").read_text()


def test_tensorboard_events_read_back(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=True)
    write_steps(writer, [1, 4])
    writer.flush()
    writer.close()
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in read_events(tmp_path / "tensorboard")
        for value in event.summary.value
    ]
    assert [s for s in scalars if s[1] == "train/loss"] == [
        (1, "train/loss", 1.0),
        (4, "train/loss", 0.25),
    ]
    assert {tag for _, tag, _ in scalars} == {"train/loss", "train/lr"}


@pytest.mark.parametrize("resume_step", [0, 2, 9])
def test_resuming_drops_later_rows_everywhere(tmp_path, resume_step):
    writer = MetricsWriter(tmp_path, tensorboard=True)
    write_steps(writer, [1, 2, 3])
    writer.close()
    writer = MetricsWriter(tmp_path, tensorboard=True, resume_step=resume_step)
    write_steps(writer, [resume_step + 1])
    writer.close()

    steps = [s for s in (1, 2, 3) if s <= resume_step] + [resume_step + 1]
    assert [row["step"] for row in read_metrics(tmp_path)] == steps
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    losses = [r for r in rows if r["name"] == "train/loss"]
    assert [int(r["step"]) for r in losses] == steps
    assert [float(r["value"]) for r in losses] == [1.0 / s for s in steps]
    restarts = [
        event.step
        for event in read_events(tmp_path / "tensorboard")
        if event.HasField("session_log")
    ]
    assert restarts == [resume_step + 1]  # TensorBoard hides events from there on


def test_resuming_repairs_a_torn_last_line(tmp_path, monkeypatch):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    write_steps(writer, [1, 2])
    writer.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-9])
    seen = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: seen.append(text % args)
    )
    assert [row["step"] for row in read_metrics(path)] == [1]
    assert "the last line is torn" in seen[0] and str(path) in seen[0]
    writer = MetricsWriter(tmp_path, tensorboard=False, resume_step=5)
    write_steps(writer, [6])
    writer.close()
    assert [row["step"] for row in read_metrics(path)] == [1, 6]


def test_a_bad_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 1, "wall_s": 1.0, "tokens": 1, "split": "train"}\n'
    for bad in ("{broken\n", "[1]\n", '{"step": 1}\n', "3\n"):
        path.write_text(good + bad + good)
        with pytest.raises(ValueError, match="metrics.jsonl, line 2"):
            read_metrics(path)


def test_a_fresh_start_keeps_the_rows_of_an_earlier_attempt(tmp_path):
    for steps in ([1, 2], [3], [4]):
        writer = MetricsWriter(tmp_path, tensorboard=False)
        write_steps(writer, steps)
        writer.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [4]
    first = read_metrics(tmp_path / "metrics.before.0.jsonl")
    second = read_metrics(tmp_path / "metrics.before.1.jsonl")
    assert [row["step"] for row in first + second] == [1, 2, 3]


def test_summary(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    row = {"name": "a, b", "final_loss": 1.25, "steps_to_target": math.inf}
    writer.write_summary(row)
    writer.close()
    with open(tmp_path / "summary.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"name": "a, b", "final_loss": "1.25", "steps_to_target": "inf"}
        ]
    saved = json.loads((tmp_path / "summary.json").read_text())
    assert saved == row | {"steps_to_target": None}


def test_disabled_writes_nothing(tmp_path):
    writer = MetricsWriter(tmp_path / "none", tensorboard=True, enabled=False)
    write_steps(writer, [1])
    writer.write_summary({"a": 1})
    writer.flush()
    writer.close()
    assert not (tmp_path / "none").exists()


def test_names_of_the_event_are_reserved(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    with pytest.raises(ValueError, match="'tokens'"):
        writer.write(1, "train", {"tokens": 1.0}, wall_s=0.0, tokens=0)
    writer.close()
    writer.close()  # a second time does nothing
