"""Seesaw: a larger batch in place of a smaller learning rate, known in advance.

Each time the schedule would have halved the rate since the last change, the batch is
doubled and the rate divided by the square root of two; in between both stay. Where the
cap leaves less than a doubling, the rate takes the rest of the halving:

    size' = min(2 size, cap),    rate' = rate / 2 * sqrt(size' / size).

For gradients that are mostly noise a normalised method then moves as it would have on
the schedule itself (Meterez et al., 2025, arXiv 2510.14717; the rule at the cap is
ours).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.training.batch_path import Change


class Seesaw(NamedTuple):
    """The batch path and the rates that go with it."""

    path: tuple[Change, ...]  # rows trained on -> batch size
    starts: tuple[int, ...]  # rows trained on from which `rates` hold
    rates: tuple[float, ...]

    def rate(self, before: jax.Array, samples: jax.Array) -> jax.Array:
        """The learning rate, in graph.

        Args:
          before: rate of the schedule, for samples before the first change.
          samples: int32 (), rows trained on.
        """
        if not self.starts:
            return before
        index = jnp.searchsorted(jnp.asarray(self.starts), samples, side="right")
        rates = jnp.asarray(self.rates, jnp.float32)
        return jnp.where(index > 0, rates[jnp.maximum(index - 1, 0)], before)


def seesaw(schedule: optax.Schedule, *, steps: int, size: int, max_size: int) -> Seesaw:
    """Where the schedule halves, and what happens there instead.

    Args:
      schedule: rate as a function of steps of `size` rows.
      steps: length of the run, in the same steps.
      size: rows of the first step.
      max_size: rows that a step may reach, >= `size`.

    Returns:
      The path, beginning at 0, and the rates from the first change on. A schedule that
      never halves has a single entry and no rates.
    """
    planned = np.asarray(jax.vmap(schedule)(jnp.arange(steps)), np.float64)
    peak_step = int(np.argmax(planned))
    rate = reference = planned[peak_step]
    path, starts, rates = [Change(0, size)], [], []
    for step in range(peak_step, steps):
        changed = False
        # 1e-6: rounding must not delay a halving that falls on a step.
        while reference > 0 and planned[step] <= 0.5 * reference * (1.0 + 1e-6):
            reference *= 0.5
            grown = min(2 * size, max_size)  # whole micro-batches, as both are
            rate *= 0.5 * math.sqrt(grown / size)
            size, changed = grown, True
            if planned[step] <= 0.0:
                reference = 0.0
        if changed:
            starts.append(step * path[0].size)
            rates.append(float(rate))
            if size != path[-1].size:
                path.append(Change(step * path[0].size, size))
    return Seesaw(tuple(path), tuple(starts), tuple(rates))
