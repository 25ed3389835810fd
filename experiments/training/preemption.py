"""SIGTERM and SIGINT become a flag that the loop reads between two steps.

One process: the flag is `PreemptionGuard.requested`. Several processes must stop at
the same step, and on which one JAX's own SIGTERM notifier lets them agree
(`Checkpoints.reached_preemption`): there SIGTERM is left to it, and SIGINT is handed
on as SIGTERM.
"""

import os
import signal
import threading
from types import FrameType

import jax
from absl import logging


class PreemptionGuard:
    """Context in which the first signal asks for an orderly end.

    The second signal aborts: the handlers of before are back in place and receive
    it. Only the main thread may install handlers; elsewhere the context does nothing
    and says so.
    """

    def __init__(self):
        self._signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}
        self._hand_on = False

    @property
    def requested(self) -> bool:
        """Whether a signal arrived; read it between two steps."""
        return self._signal is not None and not self._hand_on

    @property
    def signal_name(self) -> str | None:
        """The signal that arrived first, as `SIGTERM`."""
        return None if self._signal is None else self._signal.name

    def __enter__(self) -> "PreemptionGuard":
        if threading.current_thread() is not threading.main_thread():
            logging.warning(
                "SIGTERM and SIGINT are not caught: not in the main thread."
            )
            return self
        self._hand_on = jax.process_count() > 1
        caught = [signal.SIGINT] if self._hand_on else [signal.SIGTERM, signal.SIGINT]
        for number in caught:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            # None stands for a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._signal is not None:
            self._restore()
            signal.raise_signal(number)
            return
        self._signal = signal.Signals(number)
        # Not by way of logging: the signal may have interrupted a write of it.
        text = f"{self._signal.name}: stopping at the next step; once more to abort\n"
        os.write(2, text.encode())
        if self._hand_on:
            os.kill(os.getpid(), signal.SIGTERM)
