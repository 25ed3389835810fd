"""Equal tuning budgets: learning-rate grids that grow until the best is interior.

An arm is a few *variants* (its own hyperparameters) times one grid of learning rates.
All arms start with the same number of configurations, and each may add the same
number of learning rates at an edge where its best one lies. Which configurations were
really run is part of the result.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Arm:
    """A method under comparison with the hyperparameters it is tuned over.

    Attributes:
      name: identifier, stable over result files.
      label: what tables and figures show.
      variants: settings tried besides the learning rate, one mapping each.
      fixed: settings shared by all variants.
    """

    name: str
    label: str
    variants: tuple[Mapping[str, Any], ...]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, order=True)
class Trial:
    """One configuration of an arm: which variant, at which learning rate."""

    arm: str
    variant: int
    learning_rate: float


Losses = dict[Trial, float]


def require_equal_budgets(arms: Sequence[Arm]) -> None:
    """Raises a `ValueError` unless all arms have the same number of variants."""
    counts = {arm.name: len(arm.variants) for arm in arms}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(
            f"every arm must have the same number (>= 1) of variants, got {counts}"
        )


def require_separate_seeds(tuning: Sequence[int], reporting: Sequence[int]) -> None:
    """Raises a `ValueError` when a seed serves for tuning and for reporting."""
    for name, seeds in (("tuning", tuning), ("reporting", reporting)):
        if not seeds:
            raise ValueError(f"{name} seeds must name at least one seed, got none")
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"{name} seeds must differ, got {list(seeds)}")
    shared = sorted(set(tuning) & set(reporting))
    if shared:
        raise ValueError(
            f"tuning seeds must not be among the reporting seeds, got {shared} in both"
        )


def best_trial(losses: Mapping[Trial, float]) -> Trial:
    """The trial of lowest loss; diverged ones (inf, nan) come last.

    Ties, in particular an arm that diverged everywhere, go to the smallest learning
    rate, so that its grid grows downwards.

    Args:
      losses: the loss of each trial.

    Returns:
      The best trial.
    """

    def rank(trial: Trial) -> tuple[float, float, int]:
        loss = losses[trial]
        return (
            loss if math.isfinite(loss) else math.inf,
            trial.learning_rate,
            trial.variant,
        )

    return min(losses, key=rank)


def cheapest_trial(
    losses: Mapping[Trial, float], costs: Mapping[Trial, float], limit: float
) -> Trial:
    """The cheapest trial that is good enough; the best one where none is.

    Args:
      losses: the loss of each trial.
      costs: what each trial took, such as its steps; ties go to the lower loss.
      limit: highest loss that is good enough; nothing is if it is not finite.

    Returns:
      The trial.
    """
    enough = {
        trial: loss
        for trial, loss in losses.items()
        if math.isfinite(limit) and loss <= limit
    }
    if not enough:
        return best_trial(losses)
    return min(enough, key=lambda trial: (costs[trial], enough[trial]))


def edge_extension(
    losses: Mapping[float, float], factor: float
) -> tuple[float | None, str]:
    """The learning rate to add to a grid, if its best one lies at an edge.

    Args:
      losses: loss by learning rate, of one variant.
      factor: ratio of neighbouring learning rates, > 1.

    Returns:
      The new learning rate and the side (`"low"` or `"high"`), or `(None,
      "interior")`.

    Raises:
      ValueError: when `factor` is not above 1 or `losses` is empty.
    """
    if not factor > 1.0:
        raise ValueError(f"factor must be > 1, got {factor}")
    if not losses:
        raise ValueError("losses must hold at least one learning rate, got none")
    best = best_trial({Trial("", 0, rate): loss for rate, loss in losses.items()})
    low, high = min(losses), max(losses)
    if best.learning_rate == low:  # also the grid of a single learning rate
        return low / factor, "low"
    if best.learning_rate == high:
        return high * factor, "high"
    return None, "interior"


def line_of(losses: Mapping[Trial, float], variant: int) -> dict[float, float]:
    """Loss by learning rate of one variant."""
    return {
        trial.learning_rate: loss
        for trial, loss in losses.items()
        if trial.variant == variant
    }


def is_interior(losses: Mapping[Trial, float], factor: float) -> bool:
    """True when the best trial has tried neighbours on both sides."""
    best = best_trial(losses)
    if not math.isfinite(losses[best]):
        return False
    return edge_extension(line_of(losses, best.variant), factor)[0] is None


def extension_trials(
    losses: Mapping[Trial, float], factor: float, allowed: int
) -> list[Trial]:
    """What an arm adds next: one learning rate for its best variant, or nothing.

    Args:
      losses: the trials of one arm so far.
      factor: ratio of neighbouring learning rates.
      allowed: extensions the arm still has.

    Returns:
      At most one trial.
    """
    if allowed <= 0:
        return []
    best = best_trial(losses)
    rate, _ = edge_extension(line_of(losses, best.variant), factor)
    return [] if rate is None else [Trial(best.arm, best.variant, rate)]


def padding_trial(losses: Mapping[Trial, float], factor: float) -> Trial:
    """An extra trial beside the nearer edge of an arm whose best is interior.

    Used where trials are cheap, to end with exactly equal numbers of configurations.
    """
    best = best_trial(losses)
    rates = sorted(line_of(losses, best.variant))
    position = rates.index(best.learning_rate)
    above = len(rates) - 1 - position
    rate = rates[-1] * factor if above <= position else rates[0] / factor
    return Trial(best.arm, best.variant, rate)


Evaluate = Callable[[Sequence[Trial]], Mapping[Trial, float]]


def tune(
    arms: Sequence[Arm],
    learning_rates: Sequence[float],
    evaluate: Evaluate,
    *,
    factor: float = 2.0,
    extensions: int = 3,
    equalise: bool = False,
) -> dict[str, Losses]:
    """Tries every arm's grid and extends it until its best is interior.

    Trials of one round are independent of each other, and `evaluate` gets them
    together, so that it may run them in parallel.

    Args:
      arms: the methods, each with the same number of variants.
      learning_rates: the first grid, the same for all arms.
      evaluate: from trials to their losses (`inf` for a diverged run).
      factor: ratio of neighbouring learning rates.
      extensions: learning rates each arm may add.
      equalise: add trials to the arms that needed fewer extensions, so that all
        arms end with the same number of configurations.

    Returns:
      The losses of all trials run, by arm name.
    """
    require_equal_budgets(arms)
    losses: dict[str, Losses] = {arm.name: {} for arm in arms}
    trials = [
        Trial(arm.name, variant, rate)
        for arm in arms
        for variant in range(len(arm.variants))
        for rate in sorted(learning_rates)
    ]
    initial = len(trials) // len(arms)
    while trials:
        results = evaluate(trials)
        for trial in trials:
            losses[trial.arm][trial] = results[trial]
        trials = [
            trial
            for found in losses.values()
            for trial in extension_trials(
                found, factor, extensions - (len(found) - initial)
            )
        ]
        most = max(len(found) for found in losses.values())
        if not trials and equalise:
            trials = [
                padding_trial(found, factor)
                for found in losses.values()
                if len(found) < most
            ]
    return losses
