"""What a person at a terminal sees of a run: a bar with loss, speed and time left.

Off a terminal (a log file, a pipe, a batch system) there is no bar, and one plain
line per evaluation through the log.
"""

import sys
from collections.abc import Mapping
from typing import TextIO

import jax
import tqdm
from absl import logging


class Progress:
    """A progress bar on process 0, if it writes to a terminal."""

    def __init__(
        self,
        total: int,
        *,
        initial: int = 0,
        enabled: bool = True,
        unit: str = "tokens",
        stream: TextIO | None = None,
    ):
        """Draws the bar, if there is one.

        Args:
          total: steps of the whole run.
          initial: steps completed before; a continued run's bar does not begin at 0.
          enabled: False is silent everywhere.
          unit: of the speed.
          stream: where the bar goes; standard error if None.
        """
        stream = sys.stderr if stream is None else stream
        self._total = total
        self._unit = unit
        self._speaks = enabled and jax.process_index() == 0
        self._bar = None
        if self._speaks and stream.isatty():
            self._bar = tqdm.tqdm(
                total=total,
                initial=initial,
                file=stream,
                unit="step",
                dynamic_ncols=True,
                smoothing=0.1,
            )

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        per_s: float | None = None,
    ) -> None:
        """Moves the bar to `step`; the time left is the bar's own estimate."""
        if self._bar is None:
            return
        shown = {}
        if loss is not None:
            shown["loss"] = f"{loss:.4f}"
        if per_s is not None:
            shown[f"{self._unit}/s"] = tqdm.tqdm.format_sizeof(per_s)
        if shown:
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """One line about an evaluation: above the bar, or in the log."""
        if not self._speaks:
            return
        figures = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        line = f"step {step}/{self._total}: {figures}"
        if self._bar is None:
            logging.info("%s", line)
        else:
            self._bar.write(line, file=self._bar.fp)

    def close(self) -> None:
        """Leaves the bar as it stands and frees the line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.close()
