r"""The learning rate of a stochastic method: the best of :math:`2^{-10} … 2^{10}`.

All rates run side by side in one program. The best is the one with the lowest median
of F after a number of epochs, over seeds that no reported run may use.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.logistic.baselines import (
    DEFAULT_BATCH_SIZES,
    STOCHASTIC,
    check_batch_size,
    gradients_per_epoch,
    initial_carry,
    stochastic_epoch,
)
from experiments.logistic.problem import LogisticProblem, mean_loss

LEARNING_RATES = tuple(2.0**power for power in range(-10, 11))
TUNING_SEEDS = (1001, 1002, 1003)


class Tuning(NamedTuple):
    """What a search found.

    Attributes:
      learning_rate: the best one.
      values: median of F over the seeds for each rate, ascending; infinite where it
        diverged for at least half of them.
      epochs: after which F was taken.
      interior: whether there are worse rates on both sides of the best.
    """

    learning_rate: float
    values: dict[float, float]
    epochs: float
    interior: bool


def tune_learning_rate(
    problem: LogisticProblem,
    method: str,
    *,
    batch_size: int | None = None,
    epochs: float = 10.0,
    learning_rates: Sequence[float] = LEARNING_RATES,
    seeds: Sequence[int] = TUNING_SEEDS,
    reporting_seeds: Sequence[int] = (),
) -> Tuning:
    """Tries all learning rates from w = 0.

    Args:
      problem: to solve.
      method: `sgd`, `svrg` or `adam`.
      batch_size: as of `baselines.run_stochastic`.
      epochs: budget of each rate, in gradients over N; at least one pass is made.
      learning_rates: to choose from, all > 0.
      seeds: of the orders of the samples.
      reporting_seeds: of the runs to come.

    Returns:
      The best rate and the others; ties go to the smallest rate.

    Raises:
      ValueError: for an unknown method, an empty or bad grid, a seed in both lists, or
        when every rate diverged.
    """
    if method not in STOCHASTIC:
        raise ValueError(
            f"method must be one of {', '.join(STOCHASTIC)}, got {method!r}"
        )
    if not learning_rates or not all(0.0 < r < math.inf for r in learning_rates):
        raise ValueError(
            f"learning_rates must be > 0 and finite, got {list(learning_rates)}"
        )
    if not seeds:
        raise ValueError("seeds must name at least one tuning seed, got none")
    shared = sorted(set(seeds) & set(reporting_seeds))
    if shared:
        raise ValueError(
            f"tuning seeds must not be among the reporting seeds, got {shared} in both"
        )
    if batch_size is None:
        batch_size = min(DEFAULT_BATCH_SIZES[method], problem.num_samples)
    check_batch_size(problem, batch_size)
    rates = sorted(float(rate) for rate in learning_rates)
    cost = gradients_per_epoch(method, problem.num_samples, batch_size)
    cost /= problem.num_samples
    passes = max(1, int(epochs / cost))
    finals = np.stack(
        [
            _final_values(problem, method, batch_size, rates, passes, seed)
            for seed in seeds
        ]
    )
    medians = np.median(np.where(np.isfinite(finals), finals, np.inf), axis=0)
    best = int(np.argmin(medians))
    if not np.isfinite(medians[best]):
        raise ValueError(
            f"{method} diverged on {problem.name} with every learning rate from "
            f"{rates[0]:g} to {rates[-1]:g}"
        )
    return Tuning(
        rates[best],
        dict(zip(rates, medians.tolist(), strict=True)),
        passes * cost,
        0 < best < len(rates) - 1,
    )


@functools.partial(jax.jit, static_argnames=("method", "batch_size"))
def _epoch_of_all(carries, data, l2, key, rates, *, method, batch_size):
    epoch = functools.partial(stochastic_epoch, method=method, batch_size=batch_size)
    in_axes = (0, None, None, None, 0)
    return jax.vmap(epoch, in_axes=in_axes)(carries, data, l2, key, rates)


@jax.jit
def _values_of_all(params, data, l2):
    return jax.lax.map(lambda w: mean_loss(w, data, l2), params)


def _final_values(problem, method, batch_size, rates, passes, seed) -> np.ndarray:
    """F after the last pass, for each rate."""
    rates = jnp.asarray(rates, problem.dtype)
    key = jax.random.key(seed)
    carries = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (len(rates), *jnp.shape(leaf))),
        initial_carry(method, problem.initial_params()),
    )
    for number in range(passes):
        carries = _epoch_of_all(
            carries,
            problem.data,
            problem.l2,
            jax.random.fold_in(key, number),
            rates,
            method=method,
            batch_size=batch_size,
        )
    return np.asarray(_values_of_all(carries[0], problem.data, problem.l2))
