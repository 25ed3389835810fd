import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from experiments.training import preemption
from experiments.training.preemption import PreemptionGuard


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_sets_the_flag_and_the_old_handler_returns(number, capfd):
    received = []
    before = signal.signal(number, lambda *_: received.append(number))
    try:
        mine = signal.getsignal(number)
        with PreemptionGuard() as guard:
            assert not guard.requested and guard.signal_name is None
            signal.raise_signal(number)
            assert guard.requested
            assert guard.signal_name == signal.Signals(number).name
            assert received == []
        assert signal.getsignal(number) is mine
        assert guard.requested  # still known afterwards
        assert "stopping at the next step" in capfd.readouterr().err
    finally:
        signal.signal(number, before)


def test_the_second_signal_goes_to_the_old_handler():
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("old"))
    try:
        with PreemptionGuard() as guard:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert guard.requested
        assert received == ["old"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_handlers_return_after_an_exception():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError), PreemptionGuard():
        raise RuntimeError
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_nothing_is_installed():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def body():
        with PreemptionGuard() as guard:
            seen.append((signal.getsignal(signal.SIGTERM), guard.requested))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def test_several_processes_leave_sigterm_to_the_notifier(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("notifier"))
    try:
        with PreemptionGuard() as guard:
            signal.raise_signal(signal.SIGINT)
            assert received == ["notifier"]
            assert not guard.requested  # the processes agree on the step elsewhere
    finally:
        signal.signal(signal.SIGTERM, before)


# The module alone: importing the package takes seconds.
FOLDER = pathlib.Path(preemption.__file__).parent

PROGRAM = """
    import signal, sys, time
    from preemption import PreemptionGuard

    with PreemptionGuard() as guard:
        print("ready", flush=True)
        while not guard.requested:
            time.sleep(0.01)
        print("saved", guard.signal_name, flush=True)
        if sys.argv[1] == "hang":
            time.sleep(60)
    print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""


def start(mode: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(FOLDER)},
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_sigterm_to_a_process_ends_it_in_order():
    process = start("leave")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert out == "saved SIGTERM\nTrue\n"
    assert process.returncode == 0


def test_a_second_sigterm_ends_a_process_that_hangs():
    process = start("hang")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saved SIGTERM\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
