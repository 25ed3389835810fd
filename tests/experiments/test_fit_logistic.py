"""The logistic binary as a person starts it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
ONE_DEVICE = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}

# Each list of flags becomes a configuration, or the message of its refusal.
REQUESTS = """
import json, sys
from absl import flags
from experiments import fit_logistic
for arguments in json.loads(sys.argv[1]):
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    try:
        rest = flags.FLAGS(["program", *arguments])
        print(fit_logistic._request(rest))
    except (ValueError, flags.Error) as error:
        print("error:", error)
"""


def start(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=ONE_DEVICE,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def fit(*arguments):
    return start("-m", "experiments.fit_logistic", *arguments)


@pytest.fixture
def csv_file(tmp_path):
    path = tmp_path / "points.csv"
    lines = [f"{x},{x * x % 7},{'yes' if x % 5 > 1 else 'no'}" for x in range(90)]
    path.write_text("a,b,kind\n" + "\n".join(lines))
    return path


@pytest.mark.slow
def test_a_csv_file_is_fitted(csv_file, tmp_path):
    folder = tmp_path / "run"
    arguments = (f"--dataset=csv:{csv_file}", "--method=lbfgs", "--memory_size=5")
    done = fit(*arguments, f"--output_dir={folder}")
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first.startswith("lbfgs on points (90 x 3, l2=0.01111): certified after ")
    assert "max |gradient| = " in second and third == str(folder)
    stored = json.loads((folder / "config.json").read_text())
    assert stored["method"] == "lbfgs" and stored["memory_size"] == 5
    again = fit(*arguments, f"--output_dir={folder}")
    assert again.returncode == 2
    assert again.stderr.startswith(f"error: output directory {folder} already holds")


@pytest.mark.slow
def test_progressive_batching_is_the_default(csv_file, tmp_path):
    folder = tmp_path / "run"
    done = fit(
        f"--dataset=csv:{csv_file}",
        "--batch_size=32",
        "--overlap=full",
        f"--output_dir={folder}",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pb_lbfgs on points (90 x 3, l2=0.01111): certified")
    stored = json.loads((folder / "config.json").read_text())
    assert stored["solver"] == {"overlap": "full"} and stored["batch_size"] == 32


def test_a_rate_that_diverges_has_its_own_status(csv_file, tmp_path):
    done = fit(
        f"--dataset=csv:{csv_file}",
        "--method=sgd",
        "--learning_rate=1e308",
        f"--output_dir={tmp_path / 'run'}",
    )
    assert done.returncode == 3, done.stderr
    assert "diverged after " in done.stdout


def test_flags_make_the_configuration():
    requests = {
        ("--dataset=digits", "--theta=0.5", "--growth_cap=inf", "--nodamping"): (
            "'theta': 0.5, 'growth_cap': inf, 'damping': False"
        ),
        ("--method=svrg", "--learning_rate=0.5", "--seed=3", "--l2=0.1"): (
            "method='svrg', seed=3, "
        ),
        ("--dataset=synthetic", "--rows=9", "--features=2", "--precision=float32"): (
            "name='synthetic', rows=9, features=2, seed=0, standardize=None, "
            "constant_column=None, layout='auto', label_column='', l2=None, "
            "dtype='float32'"
        ),
        ("--evaluation=bucketed", "--chunk_size=8", "--memory_size=4"): (
            "memory_size=4, learning_rate=None, tuning_epochs=None, "
            "solver={'evaluation': 'bucketed', 'chunk_size': 8}"
        ),
        (): "solver={})",
        ("--dataset=mnist",): (
            "error: dataset must be one of breast_cancer, digits, synthetic, "
            "libsvm:PATH, csv:PATH, got 'mnist'"
        ),
        ("--method=newton",): "value should be one of <pb_lbfgs|lbfgs|sgd|svrg|adam>",
        ("--method=lbfgs", "--theta=0.9"): (
            "error: theta=0.9 is for pb_lbfgs, not for lbfgs"
        ),
        ("--learning_rate=0.1",): (
            "error: learning_rate=0.1 is for sgd, svrg, adam, not for pb_lbfgs"
        ),
        ("--rows=many",): "error: flag --rows=many",
        ("digits",): "error: unexpected argument 'digits'; flags start with --",
        ("--max_epochs=0",): "error: max_epochs must be > 0 and finite, got 0.0",
    }
    done = start("-c", REQUESTS, json.dumps([list(flags) for flags in requests]))
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    for (flags, expected), answer in zip(requests.items(), answers, strict=True):
        assert expected in answer, flags


def test_refusal_is_one_line(tmp_path):
    done = fit("--dataset=csv:gone.csv", f"--output_dir={tmp_path / 'run'}")
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: cannot read gone.csv: ")
