"""Batch rules compared on a Llama: tuned on one seed, reported on others.

In this order, for every optimizer: learning rates of the rules in `RATE_RULES`; thetas
of the measuring rules, at the small batch's learning rate; from the adaptive run that
was chosen among them, the replayed path and the mean-matched batch; all rules on the
reporting seeds.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from experiments.reproduce.batch_plan import batch_plan, sentences
from experiments.reproduce.batch_protocol import BatchProtocol, training_protocol
from experiments.reproduce.batch_report import batch_markdown
from experiments.reproduce.batch_tuning import Tuned, path_of, tuned_arms
from experiments.reproduce.claims import Options
from experiments.reproduce.llama_comparison import sweep_of
from experiments.reproduce.llama_protocol import run_of
from experiments.reproduce.provenance import command_line, provenance
from experiments.reproduce.report import Document, write_files
from experiments.reproduce.sweep import Outcome, Run, Sweep, SweepError


def curve_at(
    outcome: Outcome, checks: Sequence[int], seq_len: int
) -> tuple[list[float], list[float]]:
    """Losses and optimizer steps of a run at rows trained on.

    At each check stands the first evaluation that was not earlier: a run evaluates
    after the step that passes a check.

    Args:
      outcome: a run that has ended.
      checks: rows trained on, increasing; the last one is the whole run.
      seq_len: tokens of a row.

    Raises:
      SweepError: when a run that did not diverge lacks a check, or did not train on
        as many rows as the others.
    """
    rows = outcome.rows("eval/loss")
    if outcome.status != "diverged":
        trained = rows[-1]["tokens"] // seq_len if rows else 0
        if trained != checks[-1]:
            raise SweepError(
                f"run {outcome.run.digest} trained on {trained} rows, not {checks[-1]}"
            )
    losses, steps = [], []
    for check in checks:
        later = [row for row in rows if row["tokens"] >= check * seq_len]
        losses.append(float(later[0]["eval/loss"]) if later else float("inf"))
        steps.append(float(later[0]["step"]) if later else float("nan"))
    if outcome.status == "diverged":
        losses[-1], steps[-1] = float("inf"), float("nan")
    return losses, steps


def scale_over_batch(outcome: Outcome, samples: int, seq_len: int) -> float | None:
    """The measured noise scale over the batch it was measured with.

    Args:
      outcome: a run that has ended.
      samples: rows trained on from which readings count.
      seq_len: tokens of a row.

    Returns:
      The median of the logged readings; None of a run that measured nothing.
    """
    readings = [
        row["optim/noise_scale"] / row["train/batch_size"]
        for row in outcome.rows("optim/noise_scale")
        if row["tokens"] > samples * seq_len
    ]
    return statistics.median(readings) if readings else None


def _entry(
    protocol: BatchProtocol, tuned: Tuned, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    config = protocol.config
    seq_len = config.data.seq_len
    warm = round(config.batch.warmup_fraction * config.total_samples)
    ratios = [scale_over_batch(outcome, warm, seq_len) for outcome in outcomes]
    curves = [curve_at(outcome, protocol.checks, seq_len) for outcome in outcomes]
    variants, chosen = tuned.arm.variants, tuned.chosen
    return {
        "name": tuned.arm.name,
        "label": tuned.arm.label,
        "best": {
            **variants[chosen.variant],
            **tuned.details,
            "learning_rate": chosen.learning_rate,
        },
        "interior": tuned.interior,
        "trials": [
            {
                "settings": variants[trial.variant],
                "learning_rate": trial.learning_rate,
                "loss": loss,
                "steps": tuned.steps[trial],
            }
            for trial, loss in sorted(tuned.losses.items())
        ],
        "loss": [losses for losses, _ in curves],
        "steps": [steps for _, steps in curves],
        "scale_over_batch": [ratio for ratio in ratios if ratio is not None],
        "paths": [[list(change) for change in path_of(o)] for o in outcomes],
        "runs": [
            {"seed": o.run.overrides["seed"], "status": o.status, "id": o.run.digest}
            for o in outcomes
        ],
    }


def reporting_runs(
    protocol: BatchProtocol, arms: Sequence[Tuned], seeds: Sequence[int]
) -> list[Run]:
    """The chosen configurations on the reporting seeds, arm by arm."""
    training = training_protocol(protocol, [tuned.arm for tuned in arms])
    return [run_of(training, tuned.chosen, seed) for tuned in arms for seed in seeds]


def run_batch_protocol(
    protocol: BatchProtocol, options: Options, sweep: Sweep
) -> Document:
    """Tunes all rules of all optimizers, then runs them on the reporting seeds."""
    found = {
        method.name: tuned_arms(protocol, method, options, sweep)
        for method in protocol.methods
    }
    runs = [
        run
        for arms in found.values()
        for run in reporting_runs(protocol, arms, options.seeds)
    ]
    remaining = iter(sweep.run(runs))
    optimizers = [
        {
            "name": method.name,
            "label": method.label,
            "geometry": method.geometry,
            "arms": [
                _entry(protocol, tuned, [next(remaining) for _ in options.seeds])
                for tuned in found[method.name]
            ],
        }
        for method in protocol.methods
    ]
    return {
        "claim": options.name,
        "title": f"Llama ({protocol.preset}): {protocol.title}",
        "provenance": provenance(command_line()),
        "protocol": sentences(protocol, options),
        "checks": protocol.checks,
        "small_size": protocol.small_size,
        "claimed": list(protocol.claimed),
        "required_saving": protocol.required_saving,
        "loss_name": "validation loss (nats per token)",
        "seeds": list(options.seeds),
        "tuning_seeds": list(options.tuning_seeds),
        "preset": protocol.preset,
        "overrides": {**protocol.overrides, "steps": protocol.steps},
        "optimizers": optimizers,
    }


def compare_batches(protocol: BatchProtocol, options: Options) -> None:
    """Runs the sweep and writes its table, figure and JSON; or prints the plan."""
    if options.dry_run:
        print(batch_plan(protocol, options))
        return
    # Here, so that plans can be made where matplotlib is not installed.
    from experiments.reproduce.batch_figure import draw_batches

    document = run_batch_protocol(protocol, options, sweep_of(options))
    paths = write_files(
        document,
        options.results_dir,
        options.result_name,
        text=batch_markdown,
        draw=draw_batches,
    )
    print(batch_markdown(document))
    print("\n".join(f"written: {path}" for path in paths))
