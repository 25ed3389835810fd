import csv
import json
import os
import pathlib
import signal
import sys
import textwrap
import threading
import time

import pytest

from experiments.reproduce.sweep import (
    Run,
    Sweep,
    SweepError,
    device_environments,
    outcome_of,
    thread_environments,
)

# Stands in for the trainer: writes what it was asked for, ends as its seed says.
FAKE = """
    import json, os, pathlib, signal, sys, time
    flags = dict(a[2:].split("=", 1) for a in sys.argv[1:] if "=" in a)
    folder = pathlib.Path(flags["output_dir"])
    resumed = "--resume" in sys.argv
    if folder.exists() and not resumed:
        sys.exit("error: the folder holds another run")
    folder.mkdir(exist_ok=True)
    with open(folder / "starts", "a") as file:
        file.write(("resumed " if resumed else "fresh ") + os.environ["SLOT"] + "\\n")
    kind = flags["config.kind"]
    status, code, loss = "finished", 0, float(flags["config.loss"])
    if kind == "diverged":
        status, code, loss = "diverged", 3, None
    if kind == "preempted" and not resumed:
        status = "preempted"
    if kind == "failing":
        sys.exit("error: no such optimizer")
    if kind == "killed" and not resumed:
        (folder / "metrics.jsonl").write_text('{"step": 1, "eval/lo')
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "waiting" and not resumed:
        def save(*_):
            (folder / "run_status.json").write_text('{"status": "preempted"}')
            sys.exit(0)
        signal.signal(signal.SIGTERM, save)
        (folder / "ready").touch()
        time.sleep(30)
    rows = [{"step": 5, "eval/loss": 9.0}, {"step": 10, "eval/loss": loss}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\\n" for r in rows))
    (folder / "run_status.json").write_text(json.dumps({"status": status}))
    sys.exit(code)
"""


@pytest.fixture
def sweep(tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(textwrap.dedent(FAKE))

    def build(parallel=2):
        environments = [{"SLOT": str(slot)} for slot in range(parallel)]
        command = (sys.executable, "-S", str(script))
        return Sweep(tmp_path / "runs", environments, command)

    return build


def make(kind, loss=1.0, **fields):
    return Run("nano", {"kind": kind, "loss": loss, **fields}, label=kind)


def starts(outcome):
    lines = (outcome.directory / "starts").read_text().splitlines()
    return [line.split()[0] for line in lines]


def test_a_run_is_named_by_what_it_asks_for_and_not_by_order_or_label():
    one = Run("nano", {"a": 1, "b": 0.1}, label="x")
    assert one.digest == Run("nano", {"b": 0.1, "a": 1}, label="y").digest
    assert one.digest != Run("micro", {"a": 1, "b": 0.1}).digest
    assert one.digest != Run("nano", {"a": 1, "b": 0.2}).digest
    assert one.flags == ["--preset=nano", "--config.a=1", "--config.b=0.1"]


def test_learning_rates_reach_the_trainer_to_the_last_digit():
    rate = 0.008 * 2**0.5
    (flag,) = Run("nano", {"lr": rate}).flags[1:]
    assert float(flag.split("=")[1]) == rate


def test_finished_runs_are_skipped_and_outcomes_keep_their_order(sweep):
    runs = [make("finished", loss) for loss in (3.0, 1.0, 2.0)]
    outcomes = sweep().run([*runs, runs[0]])
    assert [o.final("eval/loss") for o in outcomes] == [3.0, 1.0, 2.0, 3.0]
    again = sweep().run(runs)
    assert [starts(outcome) for outcome in again] == [["fresh"]] * 3


def test_all_slots_are_used_and_never_twice_at_once(sweep):
    outcomes = sweep(3).run([make("finished", seed=seed) for seed in range(5)])
    slots = {(o.directory / "starts").read_text().split()[1] for o in outcomes}
    assert slots == {"0", "1", "2"}


def test_a_diverged_run_is_a_result_with_infinite_loss(sweep):
    (outcome,) = sweep().run([make("diverged")])
    assert outcome.status == "diverged"
    assert outcome.final("eval/loss") == float("inf")
    assert outcome.rows("eval/loss")[-1]["eval/loss"] == float("inf")
    assert starts(*sweep().run([make("diverged")])) == ["fresh"]


def test_a_preempted_run_is_resumed_by_the_next_call(sweep):
    with pytest.raises(SweepError, match="1 of 2 runs unfinished .* goes on"):
        sweep().run([make("preempted"), make("finished")])
    outcomes = sweep().run([make("preempted"), make("finished")])
    assert [starts(o) for o in outcomes] == [["fresh", "resumed"], ["fresh"]]


def test_a_killed_run_is_reported_then_resumed_past_its_torn_line(sweep):
    with pytest.raises(SweepError, match="ended with status -9"):
        sweep().run([make("killed")])
    run = make("killed")
    assert outcome_of(run, sweep()._root).status == "unknown"
    assert outcome_of(run, sweep()._root).rows("eval/loss") == []
    (outcome,) = sweep().run([run])
    assert starts(outcome) == ["fresh", "resumed"]


def test_a_failing_run_stops_the_sweep_and_shows_its_last_line(sweep):
    runs = [make("failing"), *(make("finished", seed=s) for s in range(3))]
    with pytest.raises(SweepError, match=r"status 1: error: no such optimizer \[.*log"):
        sweep(1).run(runs)
    assert outcome_of(runs[-1], sweep()._root).status == "new"


def test_a_signal_lets_runs_save_and_starts_no_more(sweep):
    runs = [make("waiting"), make("finished")]
    ready = outcome_of(runs[0], sweep()._root).directory / "ready"

    def interrupt():
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(SweepError, match="2 of 2 runs unfinished"):
        sweep(1).run(runs)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert outcome_of(runs[0], sweep()._root).status == "preempted"
    outcomes = sweep(1).run(runs)
    assert [starts(o) for o in outcomes] == [["fresh", "resumed"], ["fresh"]]


def test_the_summary_has_one_row_per_run(sweep):
    driver = sweep()
    driver.run([make("finished", 2.0), make("diverged")])
    with open(driver.write_summary(), newline="") as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    assert rows["finished"]["eval/loss"] == "2.0"
    assert rows["diverged"]["eval/loss"] == "inf"
    assert "kind=diverged" in rows["diverged"]["overrides"]


def test_a_settled_run_without_the_metric_is_an_error(tmp_path):
    run = Run("nano", {})
    folder = tmp_path / run.digest
    folder.mkdir()
    (folder / "run_status.json").write_text(json.dumps({"status": "finished"}))
    with pytest.raises(SweepError, match="no eval/loss in .*metrics.jsonl"):
        outcome_of(run, tmp_path).final("eval/loss")


def test_cores_and_devices_are_split_between_runs():
    environments = thread_environments(1000)
    assert len(environments) == 1000 and environments[0]["NPROC"] == "1"
    assert device_environments(1, None) == [{}]
    assert device_environments(2, "0,1,2,3") == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    with pytest.raises(ValueError, match="at least 2 devices, got '0'"):
        device_environments(2, "0")


def test_the_trainer_runs_in_the_checkout(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (outcome,) = sweep().run([make("finished")])
    assert outcome.directory.is_absolute()
    assert pathlib.Path(outcome.directory).parent == tmp_path / "runs"
