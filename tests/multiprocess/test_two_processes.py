"""Two real processes over loopback: same losses as one, and an agreed preemption."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(40):
        words = " ".join(f"word{(number * 7 + i * i) % 97}" for i in range(150))
        (folder / f"{number:02}.txt").write_text(words)
    return folder


def _arguments(text, folder, **overrides):
    config = {
        "steps": 8,
        "data.source": "text",
        "data.path": text,
        "data.validation_fraction": 0.2,
        "evaluation.every": 4,
        "evaluation.batches": 2,
        "checkpoint.every": 0,
        "logging.every": 1,
        "logging.tensorboard": False,
        "optimizer.name": "gpa_adamw",
    } | overrides
    return [
        "--preset=llama_pico_stdlib",
        f"--output_dir={folder}",
        *(f"--config.{name}={value}" for name, value in config.items()),
    ]


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _start(arguments, count, devices):
    port = _free_port()
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "experiments.train_llama",
                *arguments,
                "--distributed",
                f"--coordinator=127.0.0.1:{port}",
                f"--num_processes={count}",
                f"--process_id={index}",
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def _finish(processes):
    outputs = [process.communicate(timeout=240) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]


def _losses(folder):
    rows = [row for row in read_metrics(folder) if row["split"] == "train"]
    return [row["step"] for row in rows], [row["train/loss"] for row in rows]


def test_two_processes_with_two_devices_train_on_disjoint_data(text, tmp_path):
    _finish(_start(_arguments(text, tmp_path / "two"), 2, devices=2))
    _finish(_start(_arguments(text, tmp_path / "again"), 2, devices=1))
    steps, losses = _losses(tmp_path / "two")
    assert steps == list(range(1, 9)) and losses[-1] < losses[0]
    # Which devices hold the rows does not matter, only which rows there are.
    np.testing.assert_allclose(losses, _losses(tmp_path / "again")[1], atol=1e-5)
    status = json.loads((tmp_path / "two" / "run_status.json").read_text())
    assert status["status"] == "finished"


def test_preempting_one_process_saves_both_and_resumes(text, tmp_path):
    long_run = {"steps": 4000, "evaluation.every": 4000}
    arguments = _arguments(text, tmp_path / "run", **long_run)
    processes = _start(arguments, 2, devices=1)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 180
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 20):
        assert time.monotonic() < deadline and processes[0].poll() is None
        time.sleep(0.2)
    processes[1].send_signal(signal.SIGTERM)
    _finish(processes)
    status = json.loads((tmp_path / "run" / "run_status.json").read_text())
    assert status["status"] == "preempted"
    step = status["step"]
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    resumed = _start(
        [*arguments, "--resume", "--config.stopping.max_seconds=0.2"], 2, devices=1
    )
    _finish(resumed)
    steps, _ = _losses(tmp_path / "run")
    assert steps == sorted(set(steps)) and steps[-1] > step


def test_two_processes_agree_on_the_batch_and_go_on_with_it(text, tmp_path):
    adaptive = {
        "steps": 16,
        "batch.adaptive": "sign",
        "batch.theta": 0.1,
        "batch.max_growth": 2.0,
        "batch.max_size": 32,
        "batch.warmup_fraction": 0.0,
        "noise_scale.every": 3,
        "optimizer.name": "signum",
    }
    # Four ranks, or two that cut their rows in two: the same draws.
    _finish(_start(_arguments(text, tmp_path / "four", **adaptive), 2, devices=2))
    cut = adaptive | {"noise_scale.splits": 2}
    _finish(_start(_arguments(text, tmp_path / "two", **cut), 2, devices=1))
    paths = [
        (tmp_path / name / "batch_path.csv").read_text() for name in ("four", "two")
    ]
    assert paths[0] == paths[1] and len(paths[0].splitlines()) > 2
    scales = [
        [
            row["optim/noise_scale"]
            for row in read_metrics(tmp_path / name)
            if row["split"] == "train"
        ]
        for name in ("four", "two")
    ]
    np.testing.assert_allclose(scales[0], scales[1], rtol=1e-3)
    resumed = _arguments(text, tmp_path / "two", **cut)
    _finish(_start([*resumed, "--resume"], 2, devices=1))
    assert (tmp_path / "two" / "batch_path.csv").read_text() == paths[1]
