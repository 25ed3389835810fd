"""Two real processes that share the tables train as one device does."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.multiprocess.sparse_step_process import train

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _two_processes(plan, devices, file):
    address = f"127.0.0.1:{_free_port()}"
    command = [sys.executable, "-m", "tests.multiprocess.sparse_step_process", address]
    processes = [
        subprocess.Popen(
            [*command, "2", str(index), plan, str(file)],
            cwd=ROOT,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def alone():
    return train(None, None)


@pytest.mark.parametrize(("plan", "devices"), [("mix", 2), ("table", 1)])
def test_two_processes_train_as_one(alone, plan, devices, tmp_path):
    # Five samples are with one process, four with the other.
    found = _two_processes(plan, devices, tmp_path / "trained.npz")
    assert found.keys() == alone.keys()
    for name, array in alone.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)
