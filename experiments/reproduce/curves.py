"""Statistics of loss curves over seeds, and what may be claimed from them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.curves import Curve, steps_to_reach


class Estimate(NamedTuple):
    """A mean over seeds with its standard error."""

    mean: float
    standard_error: float  # nan with a single seed
    count: int


def mean_and_standard_error(values: Sequence[float]) -> Estimate:
    """Mean and s / sqrt(n), with the sample standard deviation s (n - 1).

    One diverged run (loss `inf`) makes the mean `inf` and the error `nan`: it is a
    result, not a gap.

    Args:
      values: one number per seed.

    Returns:
      The estimate.

    Raises:
      ValueError: when there are no values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("values must hold at least one number, got none")
    if not np.all(np.isfinite(array)):
        return Estimate(float(np.mean(array)), math.nan, int(array.size))
    if array.size == 1:
        return Estimate(float(array[0]), math.nan, 1)
    error = float(np.std(array, ddof=1) / math.sqrt(array.size))
    return Estimate(float(np.mean(array)), error, int(array.size))


def steps_to_target(
    steps: Sequence[int], losses: Sequence[float], target: float
) -> float:
    """The first checked step whose loss is at or below `target`; `inf` if none.

    No interpolation between checks: the answer is a step at which the loss was
    really measured.

    Args:
      steps: the checked steps, increasing.
      losses: the loss at each of them; non-finite losses never reach a target.
      target: the loss to reach.

    Returns:
      A step as a float, or `inf`.

    Raises:
      ValueError: when the two sequences differ in length.
    """
    if len(steps) != len(losses):
        raise ValueError(
            f"steps and losses must have the same length, got {len(steps)} and "
            f"{len(losses)}"
        )
    reached = steps_to_reach(Curve(np.asarray(steps), np.asarray(losses)), target)
    return math.inf if reached is None else float(reached)


def seconds_to_target(
    seconds: Sequence[float], losses: Sequence[float], target: float
) -> float:
    """Seconds at the first check whose loss is at or below `target`; `inf` if none.

    Args:
      seconds: at each check, increasing.
      losses: the loss at each check.
      target: the loss to reach.
    """
    check = steps_to_target(range(len(seconds)), losses, target)
    return float(seconds[int(check)]) if math.isfinite(check) else math.inf


def speed_up(steps: float, total_steps: int) -> float:
    """1 - steps / total_steps: the share of the run saved; `-inf` if never reached."""
    return 1.0 - steps / total_steps


class Comparison(NamedTuple):
    """One arm against a baseline run on the same seeds."""

    target: float  # the baseline's mean final loss
    final: Estimate  # the arm's final loss
    ratio: float  # mean final loss over the baseline's
    difference: Estimate  # per-seed final loss minus the baseline's of the same seed
    steps_of_mean: float  # first check at which the mean curve reaches the target
    steps: tuple[float, ...]  # the same for each seed's own curve
    reached: int  # seeds that reach the target
    speed_up: Estimate  # over seeds; -inf when one of them never reaches the target


def compare(
    steps: Sequence[int],
    losses: np.ndarray,
    baseline: np.ndarray,
    total_steps: int,
) -> Comparison:
    """Compares the curves of an arm with those of a baseline, seed by seed.

    Args:
      steps: the checked steps, shared by all curves.
      losses: [seeds, checks] curves of the arm.
      baseline: [seeds, checks] curves of the baseline on the same seeds.
      total_steps: length of the runs.

    Returns:
      The comparison.
    """
    losses, baseline = np.asarray(losses), np.asarray(baseline)
    target = mean_and_standard_error(baseline[:, -1]).mean
    final = mean_and_standard_error(losses[:, -1])
    reached = tuple(steps_to_target(steps, row, target) for row in losses)
    # inf - inf is nan, which is what two diverged runs tell about each other.
    with np.errstate(invalid="ignore"):
        difference = mean_and_standard_error(losses[:, -1] - baseline[:, -1])
        mean_curve = np.mean(losses, axis=0)
    return Comparison(
        target=target,
        final=final,
        ratio=final.mean / target,
        difference=difference,
        steps_of_mean=steps_to_target(steps, mean_curve, target),
        steps=reached,
        reached=sum(math.isfinite(step) for step in reached),
        speed_up=mean_and_standard_error(
            [speed_up(step, total_steps) for step in reached]
        ),
    )


def exceeds_two_errors(estimate: Estimate) -> bool:
    """True when the mean lies more than two standard errors above zero."""
    # False for nan, so a single seed or a seed that never got there claims nothing.
    return (
        math.isfinite(estimate.mean) and estimate.mean > 2.0 * estimate.standard_error
    )
