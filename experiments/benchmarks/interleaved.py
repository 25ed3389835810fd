"""Timing of several contenders in one process, in rounds of random order.

A shared machine changes speed by the minute. So every contender runs once per round,
in an order drawn anew, and is compared with the reference of the same round.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

Contender = Callable[[], object]  # runs once and returns the arrays to wait for


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Time over the reference's: quartiles over the rounds, and minimum over minimum.

    The minima are the figure of an undisturbed machine, the quartiles that of this one.
    """

    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float


def restrict_threads(threads: int) -> None:
    """Binds the process to its first `threads` cores; call before JAX starts.

    XLA sizes its CPU thread pool by the cores it may run on when the backend starts.
    """
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(cores):
        raise ValueError(
            f"threads must lie in [1, {len(cores)}], the cores available here, "
            f"got {threads}"
        )
    os.sched_setaffinity(0, cores[:threads])


def interleave(
    contenders: Mapping[str, Contender],
    *,
    rounds: int,
    warmup: int = 3,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Runs every contender once per round and returns the seconds of each round.

    Args:
      contenders: name to a function that runs once; compiled beforehand.
      rounds: how many rounds are timed, >= 1.
      warmup: rounds run first and not timed, >= 0.
      seed: of the order within the rounds.

    Returns:
      Name to the seconds of each timed round, in order.
    """
    if not rounds >= 1:
        raise ValueError(f"rounds must be >= 1, got {rounds}")
    if not warmup >= 0:
        raise ValueError(f"warmup must be >= 0, got {warmup}")
    rng = np.random.default_rng(seed)
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_index in range(-warmup, rounds):
        for index in rng.permutation(len(names)):
            name = names[index]
            start = time.perf_counter()
            jax.block_until_ready(contenders[name]())
            elapsed = time.perf_counter() - start
            if round_index >= 0:
                seconds[name].append(elapsed)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(seconds: np.ndarray, reference: np.ndarray) -> Ratio:
    """Compares a contender with the reference of the same rounds."""
    lower, median, upper = np.quantile(seconds / reference, (0.25, 0.5, 0.75))
    return Ratio(
        median=float(median),
        lower_quartile=float(lower),
        upper_quartile=float(upper),
        minimum=float(seconds.min() / reference.min()),
    )
