"""A comparison of batch rules in words: the protocol's sentences and its plan."""

import pathlib

from experiments.reproduce.batch_protocol import (
    OPEN_LOOP_RULES,
    RATE_RULES,
    RULES,
    BatchProtocol,
    Method,
    rate_arms,
    theta_arms,
    training_protocol,
)
from experiments.reproduce.batch_tuning import runs_folder
from experiments.reproduce.claims import Options
from experiments.reproduce.llama_comparison import parallel_runs
from experiments.reproduce.llama_protocol import run_of
from experiments.reproduce.report import describe
from experiments.reproduce.sweep import Run
from experiments.reproduce.tuning import Trial


def sentences(protocol: BatchProtocol, options: Options) -> list[str]:
    """The protocol in words, the tuning and its rule included."""
    small, large = protocol.small_size, protocol.large_size
    rates = "; ".join(
        f"{m.label} {', '.join(f'{rate:g}' for rate in m.learning_rates)}"
        for m in protocol.methods
    )
    counts = {len(grid) for m in protocol.methods for grid in m.thetas.values()}
    found = [
        *protocol.sentences,
        f"Every run trains on the same {protocol.checks[-1]:,} rows of a seed in the "
        f"same order. Small batch: {small} rows; large: {large}. A batch of another "
        "size takes the schedule's rate times (size / "
        f"{small})^{protocol.config.batch.lr_power:g}; learning rates are those of "
        "the small batch's schedule. Seesaw sets rate and batch by its own rule.",
        f"Tuned on seed {', '.join(map(str, options.tuning_seeds))}. Small, large and "
        f"Seesaw: learning rates ({rates}), each with up to {options.extensions} more "
        "while the best one lies at an edge. Adaptive rules: "
        f"{' or '.join(map(str, sorted(counts)))} thetas each, at the small batch's "
        "learning rate; taken is the theta of fewest steps among those that lose at "
        f"most {100 * protocol.tolerance:g} % of the small batch's tuning loss, else "
        "the one of lowest loss.",
        f"Open loop, not tuned: the path that the adaptive run of seed "
        f"{options.tuning_seeds[0]} took under the matched noise scale, replayed, and "
        "the constant batch of about as many steps, both at the small batch's "
        "learning rate.",
    ]
    if options.overrides:
        found.append(f"Changed for all runs: {', '.join(options.overrides)}.")
    return found


def batch_plan(protocol: BatchProtocol, options: Options) -> str:
    """What would run: rules, grids, totals and every first command."""
    root = runs_folder(options)
    lines = [f"* {sentence}" for sentence in sentences(protocol, options)]
    for method in protocol.methods:
        lines += _rules(protocol, method, root)
    lines += [_totals(protocol, options), "first commands:"]
    for method in protocol.methods:
        arms = rate_arms(protocol, method, root)
        training = training_protocol(protocol, arms)
        lines += [
            _command(run_of(training, Trial(arm.name, 0, rate), seed), root)
            for arm in arms
            for rate in method.learning_rates
            for seed in options.tuning_seeds
        ]
    return "\n".join(lines)


def _rules(protocol: BatchProtocol, method: Method, root: pathlib.Path) -> list[str]:
    rates = rate_arms(protocol, method, root)
    shared = rates[0].fixed
    lines = [f"{method.label}: {describe(shared)}"]
    lines += [f"  {arm.label}: tuned over learning rates" for arm in rates]
    for arm in theta_arms(method):
        added = {k: v for k, v in arm.fixed.items() if k not in shared}
        grid = ", ".join(describe(variant) for variant in arm.variants)
        lines.append(f"  {arm.label}: {describe(added)}; {grid}")
    return lines + [
        f"  {RULES[rule]}: from the tuning seed's run of {RULES['adaptive_matched']}"
        for rule in OPEN_LOOP_RULES
    ]


def _totals(protocol: BatchProtocol, options: Options) -> str:
    tuned, methods = len(options.tuning_seeds), protocol.methods
    tuning = tuned * sum(
        len(RATE_RULES) * len(method.learning_rates)
        + sum(len(grid) for grid in method.thetas.values())
        for method in methods
    )
    most = tuned * len(methods) * len(RATE_RULES) * options.extensions
    reporting = len(methods) * len(RULES) * len(options.seeds)
    billions = protocol.checks[-1] * protocol.config.data.seq_len / 1e9
    return (
        f"{tuning} tuning runs, at most {most} extensions, {reporting} reporting runs; "
        f"{billions:.3g} billion tokens each, {billions * (tuning + reporting):.4g} to "
        f"{billions * (tuning + most + reporting):.4g} billion in all; "
        f"{parallel_runs(options)} at once"
    )


def _command(run: Run, root: pathlib.Path) -> str:
    arguments = [*run.flags, f"--output_dir={root / run.digest}"]
    return "  " + " ".join(["python -m experiments.train_llama", *arguments])
