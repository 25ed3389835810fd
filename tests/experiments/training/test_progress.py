import io

import pytest
from absl import logging

from experiments.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def logged(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "info", lambda text, *args: lines.append(text % args))
    return lines


def test_a_bar_on_a_terminal_shows_loss_speed_and_time_left(logged):
    terminal = Terminal()
    with Progress(100, initial=20, stream=terminal) as progress:
        progress.update(50, loss=2.34567, per_s=12_345.0)
        progress.evaluated(50, {"eval/loss": 2.5})
    shown = terminal.getvalue()
    assert "20/100" in shown and "50/100" in shown
    assert "loss=2.3457" in shown and "tokens/s=12.3k" in shown
    assert "<" in shown  # elapsed<left
    assert "step 50/100: eval/loss 2.5000" in shown
    assert logged == []


def test_off_a_terminal_one_line_per_evaluation(logged):
    stream = io.StringIO()
    progress = Progress(10, stream=stream)
    for step in range(1, 11):
        progress.update(step, loss=1.0, per_s=5.0)
    progress.evaluated(10, {"eval/loss": 1.0, "eval/loss_y": 1.25})
    progress.close()
    assert stream.getvalue() == ""
    assert logged == ["step 10/10: eval/loss 1.0000, eval/loss_y 1.2500"]


@pytest.mark.parametrize("process", [0, 1])
def test_silent_when_switched_off_or_on_another_process(monkeypatch, logged, process):
    monkeypatch.setattr("jax.process_index", lambda: process)
    terminal = Terminal()
    progress = Progress(10, enabled=process == 1, stream=terminal)
    progress.update(5, loss=1.0)
    progress.evaluated(5, {"eval/loss": 1.0})
    progress.close()
    assert terminal.getvalue() == "" and logged == []
