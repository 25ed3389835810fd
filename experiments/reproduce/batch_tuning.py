"""Tuning of batch rules: learning rates, thetas, and what follows from a run.

Of the rules in `RATE_RULES` the learning rate is tuned. The measuring rules take the
small batch's and are tuned over theta. The open-loop rules take what the chosen
adaptive run did and are not tuned.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.reproduce.batch_protocol import (
    RULES,
    BatchProtocol,
    Method,
    mean_matched_size,
    open_loop_arms,
    rate_arms,
    theta_arms,
    training_protocol,
)
from experiments.reproduce.claims import Options
from experiments.reproduce.llama_protocol import run_of
from experiments.reproduce.sweep import Outcome, Sweep, SweepError
from experiments.reproduce.tuning import (
    Arm,
    Losses,
    Trial,
    best_trial,
    cheapest_trial,
    is_interior,
    tune,
)
from experiments.training.batch_path import FILE_NAME, Change, read_batch_path


def runs_folder(options: Options) -> pathlib.Path:
    """Where the runs lie; absolute, as the trainer is started in the checkout."""
    return (options.output_dir / options.run_name).resolve()


class Tuned(NamedTuple):
    """An arm with what was tried on the tuning seeds and what was chosen."""

    arm: Arm
    losses: Losses  # empty where nothing is tuned
    steps: dict[Trial, float]
    chosen: Trial
    interior: bool
    details: Mapping[str, Any]  # settings to report besides those of the variant


class Measured(NamedTuple):
    """Means over the tuning seeds, by trial."""

    losses: Losses
    steps: dict[Trial, float]


def measure(
    protocol: BatchProtocol,
    arms: Sequence[Arm],
    trials: Sequence[Trial],
    seeds: Sequence[int],
    sweep: Sweep,
) -> Measured:
    """Runs trials on some seeds: final losses and optimizer steps."""
    training = training_protocol(protocol, arms)
    runs = [run_of(training, trial, seed) for trial in trials for seed in seeds]
    outcomes = sweep.run(runs)
    shape = (len(trials), len(seeds))
    losses = np.reshape([o.final("eval/loss") for o in outcomes], shape).mean(axis=1)
    steps = np.reshape([steps_in_all(o) for o in outcomes], shape).mean(axis=1)
    return Measured(
        dict(zip(trials, map(float, losses), strict=True)),
        dict(zip(trials, map(float, steps), strict=True)),
    )


def steps_in_all(outcome: Outcome) -> float:
    """Optimizer steps of a run; nan if it diverged."""
    rows = outcome.rows("eval/loss")
    diverged = outcome.status == "diverged" or not rows
    return float("nan") if diverged else float(rows[-1]["step"])


def tune_rates(
    protocol: BatchProtocol, method: Method, options: Options, sweep: Sweep
) -> list[Tuned]:
    """Finds the learning rates of the rules that have one of their own."""
    arms = rate_arms(protocol, method, runs_folder(options))
    steps: dict[Trial, float] = {}

    def evaluate(trials: Sequence[Trial]) -> Losses:
        measured = measure(protocol, arms, trials, options.tuning_seeds, sweep)
        steps.update(measured.steps)
        return measured.losses

    found = tune(
        arms,
        method.learning_rates,
        evaluate,
        factor=protocol.factor,
        extensions=options.extensions,
    )
    return [
        Tuned(
            arm,
            found[arm.name],
            {trial: steps[trial] for trial in found[arm.name]},
            best_trial(found[arm.name]),
            is_interior(found[arm.name], protocol.factor),
            {"size": protocol.large_size} if arm.name == "large" else {},
        )
        for arm in arms
    ]


def tune_thetas(
    protocol: BatchProtocol,
    method: Method,
    small: Tuned,
    options: Options,
    sweep: Sweep,
) -> list[Tuned]:
    """Chooses each measuring rule's theta, at the small batch's learning rate.

    The one of fewest steps among those that lose at most `tolerance` of the small
    batch's tuning loss; where none does, the one of lowest loss.
    """
    arms = theta_arms(method)
    trials = [
        Trial(arm.name, variant, small.chosen.learning_rate)
        for arm in arms
        for variant in range(len(arm.variants))
    ]
    measured = measure(protocol, arms, trials, options.tuning_seeds, sweep)
    limit = (1.0 + protocol.tolerance) * small.losses[small.chosen]
    tuned = []
    for arm in arms:
        mine = [trial for trial in trials if trial.arm == arm.name]
        losses = {trial: measured.losses[trial] for trial in mine}
        steps = {trial: measured.steps[trial] for trial in mine}
        chosen = cheapest_trial(losses, steps, limit)
        thetas = [variant["batch.theta"] for variant in arm.variants]
        inside = min(thetas) < thetas[chosen.variant] < max(thetas)
        tuned.append(Tuned(arm, losses, steps, chosen, inside, {}))
    return tuned


def path_of(outcome: Outcome) -> tuple[Change, ...]:
    """The batch path that a run has recorded."""
    return read_batch_path(outcome.directory / FILE_NAME, quantum=1)


def take_open_loop(
    protocol: BatchProtocol,
    method: Method,
    adaptive: Tuned,
    options: Options,
    sweep: Sweep,
) -> list[Tuned]:
    """The rules that follow the chosen adaptive run of the first tuning seed.

    Raises:
      SweepError: if that run diverged.
    """
    seed = options.tuning_seeds[0]
    run = run_of(training_protocol(protocol, [adaptive.arm]), adaptive.chosen, seed)
    (outcome,) = sweep.run([run])
    if outcome.status == "diverged":
        raise SweepError(
            f"the best {adaptive.arm.label} run of {method.label} on seed {seed} "
            "diverged: there is no path to replay"
        )
    config = protocol.config
    constant = mean_matched_size(
        config.total_samples, steps_in_all(outcome), config.batch.micro_size
    )
    arms = open_loop_arms(method, path_of(outcome), constant, runs_folder(options))
    details = ({"size": constant}, {"recorded": f"adaptive, matched, seed {seed}"})
    return [
        Tuned(
            arm,
            {},
            {},
            Trial(arm.name, 0, adaptive.chosen.learning_rate),
            adaptive.interior,
            detail,
        )
        for arm, detail in zip(arms, details, strict=True)
    ]


def tuned_arms(
    protocol: BatchProtocol, method: Method, options: Options, sweep: Sweep
) -> list[Tuned]:
    """All rules of one optimizer, in the order of `RULES`."""
    rates = tune_rates(protocol, method, options, sweep)
    small = next(tuned for tuned in rates if tuned.arm.name == "small")
    thetas = tune_thetas(protocol, method, small, options, sweep)
    adaptive = next(t for t in thetas if t.arm.name == "adaptive_matched")
    taken = take_open_loop(protocol, method, adaptive, options, sweep)
    found = {tuned.arm.name: tuned for tuned in (*rates, *thetas, *taken)}
    return [found[rule] for rule in RULES]
