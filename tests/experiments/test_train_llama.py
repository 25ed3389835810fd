"""The binaries as a person starts them: flags, exit status, messages, sampling."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
ONE_DEVICE = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
TINY = (
    "--preset=llama_pico_stdlib",
    "--config.steps=6",
    "--config.evaluation.every=3",
    "--config.logging.tensorboard=false",
    "--config.optimizer.name=gpa_adamw",
)


def _start(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=ONE_DEVICE,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a tiny run on the embedded text."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    done = _start("experiments.train_llama", *TINY, f"--output_dir={folder}")
    assert done.returncode == 0, done.stderr
    assert "finished: 6 steps done" in done.stdout
    assert "step 3/6" not in done.stderr, done.stderr  # silent off a terminal
    return folder


def test_run_writes_config_metrics_and_checkpoint(trained):
    config = json.loads((trained / "config.json").read_text())
    assert config["optimizer"]["name"] == "gpa_adamw" and config["steps"] == 6
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["optim/state_copies"] == pytest.approx(3.0, abs=0.01)
    provenance = json.loads((trained / "provenance.json").read_text())
    assert {"versions", "machine", "date"} <= set(provenance)
    assert (trained / "checkpoints" / "6").is_dir()


def test_a_sample_is_written_and_repeats_with_its_seed(trained):
    arguments = (f"--checkpoint={trained}", "--prompt=def f(", "--max_new_tokens=12")
    first = _start("experiments.sample", *arguments, "--top_k=5", "--top_p=0.9")
    again = _start("experiments.sample", *arguments, "--top_k=5", "--top_p=0.9")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("def f(") and len(first.stdout) > len("def f(")
    assert again.stdout == first.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset=nope"], "--preset must be one of llama_150m"),
        (["--config.optimizer.name=nope"], "optimizer.name must be one of adagrad"),
        (["--config.data.tokenizer=nope"], "data.tokenizer"),
        (["--optimizer=pb_lbfgs"], "--optimizer=pb_lbfgs contradicts --config.optimi"),
        (
            ["--config.optimizer.name=pb_lbfgs", "--config.optimizer.learning_rate=1"],
            "optimizer.learning_rate cannot be given with optimizer.name=pb_lbfgs",
        ),
        (["--config.steps=none"], "config.steps must be of type int"),
        (["--config.data.source=text", "--config.data.path=nowhere.txt"], "nowhere"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(tmp_path, arguments, message):
    folder = tmp_path / "run"
    refused = _start(
        "experiments.train_llama", *TINY, *arguments, f"--output_dir={folder}"
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not folder.exists() or not any(folder.iterdir())


def test_an_unknown_field_is_refused_with_a_suggestion(tmp_path):
    refused = _start(
        "experiments.train_llama",
        "--config.optimizer.learning_rat=1",
        f"--output_dir={tmp_path / 'run'}",
    )
    assert refused.returncode != 0
    assert "config.optimizer.learning_rate" in refused.stderr


def test_a_second_run_in_the_same_folder_is_refused(trained):
    refused = _start("experiments.train_llama", *TINY, f"--output_dir={trained}")
    assert refused.returncode == 2 and "already holds a run" in refused.stderr


def test_sampling_from_an_empty_folder_is_refused(tmp_path):
    refused = _start("experiments.sample", f"--checkpoint={tmp_path}")
    assert refused.returncode == 2 and "holds no run" in refused.stderr
