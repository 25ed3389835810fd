"""What a batch rule saves and what it costs, from curves over seeds.

All curves of a comparison are checked at the same rows trained on. A rule is compared
with the small constant batch, seed by seed.
"""

import math
from typing import NamedTuple

import numpy as np

from experiments.reproduce.curves import (
    Estimate,
    mean_and_standard_error,
    steps_to_target,
)


class Curves(NamedTuple):
    """The runs of one rule, one row per seed."""

    losses: np.ndarray  # [seeds, checks]; inf from a divergence on
    steps: np.ndarray  # [seeds, checks] optimizer steps; nan from a divergence on


class Saving(NamedTuple):
    """One rule against the small constant batch on the same seeds."""

    final: Estimate  # final loss
    difference: Estimate  # per-seed final loss minus the small batch's
    steps: Estimate  # optimizer steps of a run
    saved: Estimate  # share of the small batch's steps that a run does without
    target: float  # the small batch's lowest loss, mean over seeds
    target_steps: float  # steps at which the small batch is there, mean over seeds
    steps_to_target: tuple[float, ...]  # of each seed; inf if never
    reached: int  # seeds that reach the target
    steps_of_mean: float  # steps at which the mean curve reaches it; inf if never
    saved_to_target: float  # 1 - steps_of_mean / target_steps; -inf if never


def best_loss(small: Curves) -> tuple[float, float]:
    """The lowest loss of each seed and the steps that took, each as a mean."""
    best = np.argmin(small.losses, axis=1)[:, None]
    losses = np.take_along_axis(small.losses, best, axis=1)
    steps = np.take_along_axis(small.steps, best, axis=1)
    return float(losses.mean()), float(steps.mean())


def _steps_at(steps: np.ndarray, losses: np.ndarray, target: float) -> float:
    check = steps_to_target(range(len(losses)), losses, target)
    return float(steps[int(check)]) if math.isfinite(check) else math.inf


def saving(curves: Curves, small: Curves) -> Saving:
    """Compares a rule with the small constant batch.

    Args:
      curves: of the rule.
      small: of the small batch, on the same seeds and at the same checks.

    Returns:
      The comparison.
    """
    target, target_steps = best_loss(small)
    reached = tuple(
        _steps_at(*row, target) for row in zip(curves.steps, curves.losses, strict=True)
    )
    of_mean = _steps_at(curves.steps.mean(axis=0), curves.losses.mean(axis=0), target)
    return Saving(
        final=mean_and_standard_error(curves.losses[:, -1]),
        difference=paired(curves.losses[:, -1], small.losses[:, -1]),
        steps=mean_and_standard_error(curves.steps[:, -1]),
        saved=mean_and_standard_error(1.0 - curves.steps[:, -1] / small.steps[:, -1]),
        target=target,
        target_steps=target_steps,
        steps_to_target=reached,
        reached=sum(math.isfinite(steps) for steps in reached),
        steps_of_mean=of_mean,
        saved_to_target=1.0 - of_mean / target_steps,
    )


def paired(values: np.ndarray, others: np.ndarray) -> Estimate:
    """Mean of the differences of the same seeds, with its standard error."""
    # inf - inf is nan, which is what two diverged runs tell about each other.
    with np.errstate(invalid="ignore"):
        return mean_and_standard_error(values - others)


def keeps_loss(curves: Curves, small: Curves) -> bool:
    """Whether the mean final loss is within one standard error of the small batch's.

    Lower always is. Without an error, from a single seed, nothing is shown.
    """
    reference = mean_and_standard_error(small.losses[:, -1])
    final = mean_and_standard_error(curves.losses[:, -1]).mean
    return final <= reference.mean + reference.standard_error


def share_of_saving(part: Saving, whole: Saving) -> float:
    """Saved steps of one rule over those of another; nan where that saves none."""
    if not whole.saved.mean > 0.0:
        return math.nan
    return part.saved.mean / whole.saved.mean
