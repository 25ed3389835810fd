import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest

from experiments.training import run_directory
from experiments.training.run_directory import RunDirectory, write_json

# The module alone: importing the package takes seconds.
FOLDER = pathlib.Path(run_directory.__file__).parent


def test_a_new_directory_is_made_with_its_parents(tmp_path):
    directory = RunDirectory(tmp_path / "a" / "b")
    assert directory.path.is_dir()
    assert list(directory.path.iterdir()) == []
    assert directory.read_status() is None


def test_start_writes_what_the_run_is(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.start({"seed": 1, "target": -math.inf}, {"jax": "0.10"})
    assert json.loads(directory.config.read_text()) == {"seed": 1, "target": -math.inf}
    assert json.loads(directory.provenance.read_text()) == {"jax": "0.10"}
    assert directory.read_status() == {"status": "running"}
    directory.write_status("target_reached", step=7, steps_to_target=7)
    assert directory.read_status() == {
        "status": "target_reached",
        "step": 7,
        "steps_to_target": 7,
    }
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "trace", ["run_status.json", "config.json", "metrics.jsonl", "checkpoints"]
)
def test_another_run_is_refused_and_left_as_it_is(tmp_path, trace):
    (tmp_path / trace).write_text("precious")
    with pytest.raises(ValueError, match="already holds a run") as error:
        RunDirectory(tmp_path)
    assert trace in str(error.value) and str(tmp_path) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == [trace]
    assert (tmp_path / trace).read_text() == "precious"
    assert RunDirectory(tmp_path, resume=True).path == tmp_path


def test_files_that_are_no_run_do_not_matter(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunDirectory(tmp_path)


def test_a_file_in_the_way(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ValueError, match="is a file"):
        RunDirectory(path)
    with pytest.raises(ValueError, match="cannot be written"):
        RunDirectory(path / "below")


def test_an_unknown_status(tmp_path):
    with pytest.raises(ValueError, match="status must be one of running, .*'done'"):
        RunDirectory(tmp_path).write_status("done")
    assert list(tmp_path.iterdir()) == []


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    directory = RunDirectory(tmp_path / "other")
    directory.start({}, {})
    directory.write_status("finished")
    assert not directory.path.exists()


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_while_writing_leaves_the_old_file(tmp_path, moment):
    program = f"""
        import os, pathlib, signal, sys
        from run_directory import write_json

        path = pathlib.Path(sys.argv[1])
        write_json(path, {{"version": 1}})
        os.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        write_json(path, {{"version": 2, "filling": "x" * 100_000}})
    """
    path = tmp_path / "run_status.json"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)],
        env=os.environ | {"PYTHONPATH": str(FOLDER)},
    )
    assert done.returncode == -signal.SIGKILL
    assert json.loads(path.read_text()) == {"version": 1}
