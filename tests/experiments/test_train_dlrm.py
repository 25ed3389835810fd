"""The click binary as a person starts it, and as a function."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from experiments.train_dlrm import from_reference_args, run
from tests.experiments.training.click_runs import tiny_clicks

ROOT = pathlib.Path(__file__).resolve().parents[2]
ONE_DEVICE = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
TINY = (
    "--preset=dlrm_nano",
    "--config.steps=6",
    "--config.evaluation.every=3",
    "--config.evaluation.batches=4",
    "--config.data.train_rows=600",
    "--config.data.test_rows=300",
    "--config.logging.tensorboard=false",
)
COUNT = ("--mode=count",)


def _start(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.train_dlrm", *arguments],
        cwd=ROOT,
        env=ONE_DEVICE,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "trained"
    done = _start(*TINY, f"--output_dir={folder}")
    assert done.returncode == 0, done.stderr
    assert "finished: 6 steps done" in done.stdout
    return folder


def test_evaluation_reports_what_quantisation_costs(trained):
    done = _start("--mode=eval", f"--output_dir={trained}", "--table_bits=8")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("step 6, full precision: loss 0.6")
    assert "tables of 8 bits" in lines[1] and "the loss changed by" in lines[2]
    found = re.match(r"([\d,]+) bytes became ([\d,]+);", lines[2])
    before, after = (int(number.replace(",", "")) for number in found.groups())
    # Rows of 16 float32 become 16 bytes and a pair of float32; perceptrons stay.
    assert after < 0.6 * before


def test_predictions_of_new_samples(trained, tmp_path):
    generator = np.random.default_rng(0)
    samples = tmp_path / "new.npz"
    ids = np.stack([generator.integers(0, n, 300) for n in (2000, 2000, 1000, 20)], 1)
    np.savez(samples, dense=generator.normal(size=(300, 4)), ids=ids)
    out = tmp_path / "p.npy"
    done = _start(
        "--mode=predict",
        f"--output_dir={trained}",
        f"--input={samples}",
        f"--predictions={out}",
    )
    assert done.returncode == 0, done.stderr
    p = np.load(out, allow_pickle=False)
    assert p.shape == (300,) and np.all((p > 0) & (p < 1)) and p.std() > 0
    np.savez(samples, dense=np.zeros((1, 4)), ids=np.array([[0, 0, 1000, 0]]))
    done = _start("--mode=predict", f"--output_dir={trained}", f"--input={samples}")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "error: table 2, sample 0: id 1000 is outside [0, 1000) (id_policy may be "
        "clip, drop or hash)"
    )


def test_plan_and_count_print_tables():
    done = _start("--mode=plan", *TINY, "--devices=2", "--byte_budget=400000")
    assert done.returncode == 0, done.stderr
    assert "MiB on each of 2 devices" in done.stdout
    done = _start("--mode=count", *TINY)
    assert done.returncode == 0 and "20,512" in done.stdout, done.stderr


def _slow(arguments, message):
    return pytest.param(arguments, message, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset=dlrm_giant",), "--preset must be one of dcnv2_mlperf_v2, dlrm_"),
        _slow((*TINY,), "--mode=train needs --output_dir"),
        (("--mode=eval", "--output_dir=/nowhere"), "/nowhere holds no run"),
        _slow(("--mode=plan", *TINY, "--byte_budget=9000"), "byte_budget is 9000"),
        _slow(("--reference_args=--optimizer=adam", *COUNT), "--optimizer must be"),
        _slow(("--mode=preprocess", "--config.data.source=criteo"), "data.path must"),
    ],
)
def test_bad_requests_end_with_one_line(arguments, message):
    done = _start(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_the_same_data_come_in_every_epoch_of_the_original():
    arguments = ["--data-size=6", "--mini-batch-size=2", "--learning-rate=0"]
    with pytest.raises(ValueError, match="learning_rate must be > 0"):
        from_reference_args(arguments)
    arguments[-1] = "--learning-rate=1e-12"
    result = run(from_reference_args([*arguments, "--nepochs=2"]))
    assert result.status == "finished" and len(result.losses) == 6
    np.testing.assert_allclose(result.losses[:3], result.losses[3:], rtol=1e-6)


def test_losses_are_those_before_each_update(tmp_path):
    result = run(tiny_clicks(steps=4), tmp_path / "run")
    assert len(result.losses) == 4 and result.step == 4
    assert (tmp_path / "run" / "summary.json").exists()
