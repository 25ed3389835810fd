"""Optimizers compared on a Llama: tuned on equal budgets, reported on other seeds.

Whatever is measured is reported. A speed-up is claimed only when its mean exceeds two
standard errors against every arm that the protocol names, with interior learning rates
on both sides.
"""

import math
import os
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.reproduce.claims import Options
from experiments.reproduce.curves import mean_and_standard_error, seconds_to_target
from experiments.reproduce.llama_protocol import (
    Protocol,
    checked_steps,
    first_trials,
    run_of,
)
from experiments.reproduce.provenance import (
    available_cores,
    command_line,
    provenance,
)
from experiments.reproduce.report import (
    Document,
    arm_named,
    describe,
    losses_of,
    markdown,
    number,
    plus_minus,
    write_report,
)
from experiments.reproduce.sweep import (
    Outcome,
    Sweep,
    device_environments,
    thread_environments,
)
from experiments.reproduce.tuning import (
    Arm,
    Losses,
    Trial,
    best_trial,
    is_interior,
    tune,
)


class Evaluator:
    """Final losses of trials, mean over the tuning seeds, through a sweep."""

    def __init__(self, protocol: Protocol, sweep: Sweep, seeds: Sequence[int]):
        self._protocol = protocol
        self._sweep = sweep
        self._seeds = tuple(seeds)

    def __call__(self, trials: Sequence[Trial]) -> dict[Trial, float]:
        """Runs what is not finished yet and reads the losses."""
        runs = [
            run_of(self._protocol, trial, seed)
            for trial in trials
            for seed in self._seeds
        ]
        finals = [outcome.final("eval/loss") for outcome in self._sweep.run(runs)]
        rows = np.reshape(finals, (len(trials), len(self._seeds)))
        return dict(zip(trials, map(float, rows.mean(axis=1)), strict=True))


def curve_of(
    outcome: Outcome, checks: Sequence[int], metric: str, column: str = ""
) -> list[float]:
    """The metric at every checked step; `inf` from where a run diverged on.

    Args:
      outcome: of a run.
      checks: the checked steps.
      metric: of the rows that are read.
      column: what is read of these rows; the metric itself if empty.

    Raises:
      ValueError: when a run that did not diverge lacks a check.
    """
    column = column or metric
    found = {row["step"]: float(row[column]) for row in outcome.rows(metric)}
    if outcome.status == "diverged":
        # A run that blew up has no loss worth reading at its later checks.
        return [found.get(step, float("inf")) for step in checks[:-1]] + [float("inf")]
    missing = [step for step in checks if step not in found]
    if missing:
        raise ValueError(
            f"run {outcome.run.digest} has no {metric} at step {missing[0]}; it has "
            f"{sorted(found)}"
        )
    return [found[step] for step in checks]


def _tokens_per_second(outcome: Outcome) -> float:
    rates = [row["perf/tokens_per_s"] for row in outcome.rows("perf/tokens_per_s")]
    return statistics.median(rates) if rates else float("nan")


def _arm_entry(
    protocol: Protocol, arm: Arm, losses: Losses, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    best = best_trial(losses)
    checks = checked_steps(protocol)
    at_x = [curve_of(outcome, checks, "eval/loss") for outcome in outcomes]
    averaged = all(outcome.rows("eval/loss_y") for outcome in outcomes)
    at_y = [curve_of(o, checks, "eval/loss_y") for o in outcomes] if averaged else at_x
    return {
        "name": arm.name,
        "label": arm.label,
        "best": {**arm.variants[best.variant], "learning_rate": best.learning_rate},
        "interior": is_interior(losses, protocol.factor),
        "extensions": len(losses) - len(arm.variants) * len(protocol.learning_rates),
        "trials": [
            {
                "settings": arm.variants[trial.variant],
                "learning_rate": trial.learning_rate,
                "loss": loss,
            }
            for trial, loss in sorted(losses.items())
        ],
        "loss": at_x,
        "loss_y": at_y,
        "seconds": [curve_of(o, checks, "eval/loss", "wall_s") for o in outcomes],
        "tokens_per_s": [_tokens_per_second(outcome) for outcome in outcomes],
        "runs": [
            {"seed": o.run.overrides["seed"], "status": o.status, "id": o.run.digest}
            for o in outcomes
        ],
    }


def _sentences(protocol: Protocol, options: Options, parallel: int) -> list[str]:
    budget = len(protocol.arms[0].variants) * len(protocol.learning_rates)
    rates = ", ".join(f"{rate:g}" for rate in protocol.learning_rates)
    sentences = [
        *protocol.sentences,
        f"Every arm is tuned over {budget} configurations "
        f"({len(protocol.arms[0].variants)} variants x learning rates {rates}) and may "
        f"add up to {options.extensions} learning rates while its best one lies at an "
        "edge of the grid.",
        f"Tuned on seed {', '.join(map(str, options.tuning_seeds))} (mean of the final "
        "losses), reported on other seeds. Within a seed all configurations share "
        "initial parameters and data order; so few tuning seeds are few draws, and a "
        "choice between configurations that are closer than the seeds' spread is "
        "partly luck, for every arm alike.",
        f"Tokens/s: median of a run, {parallel} runs at once on this machine.",
    ]
    if options.overrides:
        sentences.append(f"Changed for all runs: {', '.join(options.overrides)}.")
    return sentences


def parallel_runs(options: Options) -> int:
    """Runs at once: what was asked for, else one per core or one accelerator."""
    if options.parallel:
        return options.parallel
    return min(available_cores(), 8) if options.scale == "cpu" else 1


def run_protocol(protocol: Protocol, options: Options, sweep: Sweep) -> Document:
    """Tunes all arms, runs the chosen ones on the reporting seeds."""
    losses = tune(
        protocol.arms,
        protocol.learning_rates,
        Evaluator(protocol, sweep, options.tuning_seeds),
        factor=protocol.factor,
        extensions=options.extensions,
    )
    runs = [
        run_of(protocol, best_trial(losses[arm.name]), seed)
        for arm in protocol.arms
        for seed in options.seeds
    ]
    outcomes = sweep.run(runs)
    count = len(options.seeds)
    document = {
        "claim": options.name,
        "title": f"Llama ({protocol.preset}): {protocol.title}",
        "provenance": provenance(command_line()),
        "protocol": _sentences(protocol, options, parallel_runs(options)),
        "total_steps": protocol.steps,
        "checks": checked_steps(protocol),
        "baseline": protocol.arms[0].name,
        "comparisons": [
            {"subject": subject, "against": list(against)}
            for subject, against in protocol.comparisons.items()
        ],
        "loss_name": "validation loss (nats per token)",
        "seeds": list(options.seeds),
        "tuning_seeds": list(options.tuning_seeds),
        "preset": protocol.preset,
        "overrides": {**protocol.overrides, "steps": protocol.steps},
        "arms": [
            _arm_entry(
                protocol,
                arm,
                losses[arm.name],
                outcomes[index * count : (index + 1) * count],
            )
            for index, arm in enumerate(protocol.arms)
        ],
    }
    return document | {"sections": [time_section(document)]}


def time_section(document: Document) -> dict[str, Any]:
    """Training seconds until the baseline's mean final loss, as a table."""
    baseline = arm_named(document, document["baseline"])
    target = mean_and_standard_error(losses_of(baseline)[:, -1]).mean
    whole = float(np.mean(losses_of(baseline, "seconds")[:, -1]))
    rows = []
    for arm in document["arms"]:
        losses, seconds = losses_of(arm), losses_of(arm, "seconds")
        reached = [
            seconds_to_target(*pair, target)
            for pair in zip(seconds, losses, strict=True)
        ]
        run, needed = map(mean_and_standard_error, (seconds[:, -1], reached))
        arrived = sum(np.isfinite(reached))
        seen = math.isfinite(needed.mean)
        rows.append(
            [
                arm["label"],
                number(1e3 * run.mean / document["total_steps"], 1),
                plus_minus(run, 1),
                (plus_minus(needed, 1) if seen else "–")
                + f" ({arrived}/{len(reached)})",
                number(needed.mean / whole, 2) if seen else "–",
            ]
        )
    label = baseline["label"]
    return {
        "header": [
            "arm",
            "ms per step",
            "seconds of a run",
            f"seconds to {label}'s final loss (seeds)",
            f"of {label}'s seconds",
        ],
        "rows": rows,
        "text": "Training seconds, without compilation and evaluation; mean ± standard "
        f"error over the seeds. The target is {label}'s mean final loss {target:.4f}, "
        "looked for at checked steps.",
    }


def plan(protocol: Protocol, options: Options, root: pathlib.Path) -> str:
    """What would run: arms, configurations, totals and every first command."""
    trials, tuned = first_trials(protocol), len(options.tuning_seeds)
    tuning, reporting = len(trials) * tuned, len(protocol.arms) * len(options.seeds)
    most = len(protocol.arms) * options.extensions * tuned
    tokens = protocol.steps * protocol.tokens_per_step
    lines = [f"* {s}" for s in _sentences(protocol, options, parallel_runs(options))]
    for arm in protocol.arms:
        lines.append(f"{arm.label}: {describe(arm.fixed)}")
        lines += [f"  {describe(variant)}" for variant in arm.variants]
    lines += [
        f"{tuning} tuning runs, at most {most} extensions, {reporting} reporting runs; "
        f"{tokens / 1e9:.3g} billion tokens each, "
        f"{tokens * (tuning + reporting) / 1e9:.4g} to "
        f"{tokens * (tuning + most + reporting) / 1e9:.4g} billion in all; "
        f"{parallel_runs(options)} at once",
        "first commands:",
    ]
    for trial in trials:
        for seed in options.tuning_seeds:
            run = run_of(protocol, trial, seed)
            command = ["python -m experiments.train_llama", *run.flags]
            lines.append(
                "  " + " ".join([*command, f"--output_dir={root / run.digest}"])
            )
    return "\n".join(lines)


def sweep_of(options: Options) -> Sweep:
    """The sweep of a claim: where its runs lie and what each of them may use."""
    root, parallel = options.output_dir / options.run_name, parallel_runs(options)
    if options.scale == "cpu":
        environments = thread_environments(parallel)
    else:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        environments = device_environments(parallel, visible)
    return Sweep(root, [{**compiled_once(root), **each} for each in environments])


def compiled_once(root: pathlib.Path) -> dict[str, str]:
    """Environment in which runs that share a program compile it once.

    A short run on a CPU compiles for longer than it trains.
    """
    return {
        "JAX_COMPILATION_CACHE_DIR": str(root.resolve() / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }


def compare_optimizers(protocol: Protocol, options: Options) -> None:
    """Runs the sweep and writes its table, figure and JSON; or prints the plan."""
    if options.dry_run:
        print(plan(protocol, options, options.output_dir / options.run_name))
        return
    document = run_protocol(protocol, options, sweep_of(options))
    paths = write_report(document, options.results_dir, options.result_name)
    print(markdown(document))
    print("\n".join(f"written: {path}" for path in paths))
