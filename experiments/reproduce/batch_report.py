"""The report on batch rules: tables, findings and the target, from a stored document.

A document has the keys `title`, `provenance`, `protocol` (sentences), `checks` (rows
trained on at which losses were taken), `small_size`, `claimed` (names of the optimizers
that the target is stated for), `required_saving`, `seeds`, `tuning_seeds` and
`optimizers`. Each of these has `name`, `label` and `arms`; each arm `name`, `label`,
`best` (settings), `interior`, `trials` (settings, learning rate, loss, steps; none for
an open-loop rule), `loss` and `steps` ([seeds, checks]), `paths` (of each seed, pairs
of rows trained on and batch size) and `scale_over_batch` (of each seed, the median of
the noise scale read after the warm-up over the batch; empty where none is measured).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.reproduce.batch_protocol import THETA_RULES
from experiments.reproduce.batch_savings import (
    Curves,
    Saving,
    keeps_loss,
    paired,
    saving,
    share_of_saving,
)
from experiments.reproduce.curves import (
    Estimate,
    exceeds_two_errors,
    mean_and_standard_error,
)
from experiments.reproduce.report import (
    Document,
    acceptance_text,
    arm_named,
    describe,
    losses_of,
    markdown_rows,
    number,
    origin,
    percent,
    plus_minus,
    signed,
)

Optimizer = Mapping[str, Any]


def curves_of(optimizer: Optimizer, rule: str) -> Curves:
    """The reporting runs of one rule."""
    arm = arm_named(dict(optimizer), rule)
    return Curves(losses_of(arm), losses_of(arm, "steps"))


def saving_of(optimizer: Optimizer, rule: str) -> Saving:
    """One rule against the small constant batch of the same optimizer."""
    return saving(curves_of(optimizer, rule), curves_of(optimizer, "small"))


_COLUMNS = (
    "batch",
    "chosen",
    "final loss",
    "minus small, same seed",
    "steps",
    "fewer steps",
    "mean batch",
    "steps to target: mean curve",
    "seeds (reached)",
    "saved to target",
)


def _row(document: Document, optimizer: Optimizer, arm: Mapping[str, Any]) -> list[str]:
    result = saving_of(optimizer, arm["name"])
    rows = document["checks"][-1]
    batches = mean_and_standard_error(rows / losses_of(arm, "steps")[:, -1])
    seeds = mean_and_standard_error(result.steps_to_target)
    there = math.isfinite(result.steps_of_mean)
    edge = "" if arm["interior"] or not arm["trials"] else " (at an edge)"
    return [
        arm["label"],
        describe(arm["best"]) + edge,
        plus_minus(result.final),
        "" if arm["name"] == "small" else signed(result.difference),
        plus_minus(result.steps, 0),
        percent(result.saved),
        plus_minus(batches, 1),
        f"{result.steps_of_mean:.0f}" if there else "–",
        (plus_minus(seeds, 0) if math.isfinite(seeds.mean) else "–")
        + f" ({result.reached}/{len(result.steps_to_target)})",
        _percent(result.saved_to_target) if there else "–",
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "–"


def _table(document: Document, optimizer: Optimizer) -> str:
    result = saving_of(optimizer, "small")
    rows = [_row(document, optimizer, arm) for arm in optimizer["arms"]]
    return (
        f"## {optimizer['label']}\n\n"
        + markdown_rows(list(_COLUMNS), rows)
        + f"\n\nTarget: the small batch's lowest loss {number(result.target)} (mean "
        f"over seeds), which takes it {result.target_steps:.0f} steps."
    )


def minus_adaptive(optimizer: Optimizer, rule: str) -> Estimate:
    """Final loss of a rule minus that of the adaptive, matched batch, same seeds."""
    adaptive = curves_of(optimizer, "adaptive_matched")
    return paired(curves_of(optimizer, rule).losses[:, -1], adaptive.losses[:, -1])


def _verdict(difference: Estimate) -> str:
    mirrored = Estimate(-difference.mean, difference.standard_error, difference.count)
    if exceeds_two_errors(difference):
        return "adaptive, matched ends lower"
    if exceeds_two_errors(mirrored):
        return "adaptive, matched ends higher"
    return "not told apart"


def _share(optimizer: Optimizer, rule: str) -> str:
    adaptive = saving_of(optimizer, "adaptive_matched")
    return _percent(share_of_saving(saving_of(optimizer, rule), adaptive))


def _adaptive_table(document: Document) -> str:
    """Every other rule against the adaptive, matched batch."""
    rows = []
    for optimizer in document["optimizers"]:
        for arm in optimizer["arms"]:
            if arm["name"] in ("small", "adaptive_matched"):
                continue
            difference = minus_adaptive(optimizer, arm["name"])
            rows.append(
                [
                    optimizer["label"],
                    arm["label"],
                    _share(optimizer, arm["name"]),
                    signed(difference),
                    _verdict(difference),
                ]
            )
    header = [
        "optimizer",
        "batch",
        "of the adaptive saving",
        "final loss minus adaptive, matched",
        "at two standard errors",
    ]
    return markdown_rows(header, rows)


def _adaptive_finding(optimizer: Optimizer) -> str:
    result = saving_of(optimizer, "adaptive_matched")
    best = arm_named(dict(optimizer), "adaptive_matched")["best"]
    to_target = (
        f"the mean curve is at the small batch's lowest loss after "
        f"{_percent(result.saved_to_target)} fewer steps"
        if math.isfinite(result.saved_to_target)
        else "the mean curve never gets to the small batch's lowest loss"
    )
    return (
        f"{optimizer['label']}: the batch that follows the {optimizer['geometry']} "
        f"noise scale (theta = {best['batch.theta']:g}) takes {percent(result.saved)} "
        f"fewer steps than the small batch at a final loss {signed(result.difference)} "
        f"against it; {to_target}."
    )


def _summary(document: Document, rule: str, opening: str) -> str:
    """What a rule saves of the steps that the adaptive batch saves, and its loss."""
    shares, lower, higher = [], [], []
    for optimizer in document["optimizers"]:
        label = optimizer["label"]
        difference = minus_adaptive(optimizer, rule)
        shares.append(
            f"{label} {_share(optimizer, rule)} of its saved steps, final loss "
            f"{signed(difference)}"
        )
        verdict = _verdict(difference)
        lower += [label] * verdict.endswith("lower")
        higher += [label] * verdict.endswith("higher")
    return (
        f"{opening}, against adaptive, matched: {'; '.join(shares)}. Beyond two "
        f"standard errors that one ends lower for {', '.join(lower) or 'none'}, higher "
        f"for {', '.join(higher) or 'none'}."
    )


def _reading(optimizer: Optimizer) -> str:
    """How far the measured noise scale lies above the batch."""
    found = []
    for rule in THETA_RULES:
        arm = arm_named(dict(optimizer), rule)
        ratios = [float(ratio) for ratio in arm["scale_over_batch"]]
        if ratios:
            found.append(f"{np.median(ratios):.2g} ({arm['label']})")
    return (
        f"{optimizer['label']}: after the warm-up the measured noise scale over the "
        f"batch is, in the median, {', '.join(found)}."
    )


def batch_findings(document: Document) -> list[str]:
    """What follows from the runs, in sentences made from their numbers."""
    return [
        *map(_adaptive_finding, document["optimizers"]),
        _summary(document, "replay", "The open-loop ramp, a path of another seed"),
        _summary(document, "seesaw", "Seesaw, a ramp known before any run"),
        _summary(document, "mean_matched", "No ramp, the mean-matched constant batch"),
        _summary(document, "adaptive_l2", "Another noise scale, adaptive, l2"),
        _summary(document, "adaptive_alignment", "Another signal, adaptive, alignment"),
        *map(_reading, document["optimizers"]),
    ]


def target_items(document: Document) -> list[dict[str, Any]]:
    """The target for every optimizer it is stated for, met or not."""
    items = []
    for optimizer in document["optimizers"]:
        if optimizer["name"] not in document["claimed"]:
            continue
        small = curves_of(optimizer, "small")
        adaptive = curves_of(optimizer, "adaptive_matched")
        result = saving(adaptive, small)
        reference = mean_and_standard_error(small.losses[:, -1])
        saved = bool(result.saved.mean >= document["required_saving"])
        items.append(
            {
                "text": f"{optimizer['label']}, adaptive, matched: at least "
                f"{100 * document['required_saving']:g} % fewer steps at a final loss "
                "within one standard error of the small batch's",
                "measured": f"{percent(result.saved)} fewer steps at "
                f"{plus_minus(result.final)} against {plus_minus(reference)} "
                f"(same seeds: {signed(result.difference)})",
                "met": saved and keeps_loss(adaptive, small),
            }
        )
    return items


def _tuning_table(document: Document) -> str:
    rows = []
    for optimizer in document["optimizers"]:
        for arm in optimizer["arms"]:
            cells = []
            for trial in arm["trials"]:
                tried = trial["settings"] or {"rate": trial["learning_rate"]}
                steps, loss = float(trial["steps"]), number(float(trial["loss"]))
                counts = trial["settings"] and math.isfinite(steps)
                shown = f" in {steps:.0f} steps" if counts else ""
                cells.append(f"{describe(tried)}: {loss}{shown}")
            if cells:
                rows.append([optimizer["label"], arm["label"], "; ".join(cells)])
    return markdown_rows(["optimizer", "batch", "tried: loss"], rows)


def batch_markdown(document: Document) -> str:
    """The whole report: how it was made, the target, findings, tables, the tuning."""
    seeds = ", ".join(map(str, document["seeds"]))
    parts = [
        f"# {document['title']}",
        origin(document),
        "\n".join(f"* {sentence}" for sentence in document["protocol"]),
        acceptance_text({"acceptance": target_items(document)}),
        "\n".join(f"* {finding}" for finding in batch_findings(document)),
        f'Seeds {seeds}; mean ± standard error. "Fewer steps" are those of a whole run '
        'against the small batch\'s, at equal rows. "Steps to target" count until '
        "the loss is at or below the small batch's lowest, at checks only; seeds that "
        "differ from the mean by luck reach it early or never, so the mean curve's "
        "count stands beside theirs.",
        _adaptive_table(document),
        *(_table(document, optimizer) for optimizer in document["optimizers"]),
        f"Tuning, seed {', '.join(map(str, document['tuning_seeds']))} (final loss):",
        _tuning_table(document),
    ]
    return "\n\n".join(parts) + "\n"
