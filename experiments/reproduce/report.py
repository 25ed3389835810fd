"""Result documents: one JSON holds everything, table and findings are made from it.

A document has the keys `claim`, `title`, `provenance`, `protocol` (sentences),
`total_steps`, `checks` (steps at which losses were taken), `baseline` (an arm's name),
`comparisons` (each a `subject`, the arm a claim is about, and the arms `against` which
it must hold), `seeds`, `tuning_seeds`, `arms` and optionally `sections` and
`acceptance`. Each arm has `name`, `label`, `best` (settings), `trials`
(settings, learning rate, loss), `extensions`, `interior`, `loss` and `loss_y`
([seeds, checks]), perhaps `seconds` (likewise), and `tokens_per_s` (one per seed, or
empty). An arm whose trials are some of another arm's names that one under `part_of`.
"""

import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.reproduce.curves import (
    Comparison,
    Estimate,
    compare,
    exceeds_two_errors,
    mean_and_standard_error,
)

Document = dict[str, Any]


def encode(value: Any) -> Any:
    """Plain JSON values; non-finite numbers become the strings inf, -inf, nan."""
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, np.ndarray):
        return encode(value.tolist())
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if isinstance(value, np.integer):
        return int(value)
    return value


def losses_of(arm: Mapping[str, Any], name: str = "loss") -> np.ndarray:
    """[seeds, checks] of an arm, strings for non-finite numbers decoded."""
    return np.asarray(
        [[float(loss) for loss in row] for row in arm[name]], dtype=np.float64
    )


def arm_named(document: Document, name: str) -> Mapping[str, Any]:
    """The arm of that name.

    Raises:
      ValueError: when the document has no such arm.
    """
    for arm in document["arms"]:
        if arm["name"] == name:
            return arm
    raise ValueError(
        f"no arm named {name!r}; there are "
        + ", ".join(arm["name"] for arm in document["arms"])
    )


def compare_arms(document: Document, name: str, baseline: str) -> Comparison:
    """One arm of a document against another."""
    return compare(
        document["checks"],
        losses_of(arm_named(document, name)),
        losses_of(arm_named(document, baseline)),
        document["total_steps"],
    )


class Finding(NamedTuple):
    """A statement and whether the numbers carry it."""

    text: str
    holds: bool


def finding_against(document: Document, subject_name: str, baseline: str) -> Finding:
    """Whether a subject's speed-up over one baseline exceeds two errors."""
    subject = arm_named(document, subject_name)
    other = arm_named(document, baseline)
    result = compare_arms(document, subject["name"], baseline)
    holds = (
        exceeds_two_errors(result.speed_up)
        and bool(subject["interior"])
        and bool(other["interior"])
    )
    return Finding(
        f"{subject['label']} against {other['label']}: final loss "
        f"{signed(result.difference)} (same seeds, paired; ratio "
        f"{number(result.ratio, 3)}), reaches "
        f"{other['label']}'s mean final loss {result.target:.4f} in "
        f"{result.reached} of {result.speed_up.count} seeds, speed-up "
        f"{percent(result.speed_up)}; "
        + (
            "more than two standard errors."
            if holds
            else "not shown (needs every seed to get there, a mean above two standard "
            "errors and interior learning rates)."
        ),
        holds,
    )


def findings(document: Document) -> list[Finding]:
    """Every subject against each of its baselines, and a verdict on each subject."""
    found = []
    for comparison in document["comparisons"]:
        subject = comparison["subject"]
        against = [
            finding_against(document, subject, name) for name in comparison["against"]
        ]
        label = arm_named(document, subject)["label"]
        holds = all(finding.holds for finding in against)
        verdict = (
            f"A speed-up of {label} is {'' if holds else 'not '}claimed from this run."
        )
        found += [*against, Finding(verdict, holds)]
    return found


def number(value: float, digits: int = 4) -> str:
    """Fixed digits, or a word for what is not a number."""
    if math.isinf(value):
        return "diverged" if value > 0 else "–"
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def plus_minus(estimate: Estimate, digits: int = 4) -> str:
    """Mean ± standard error."""
    text = number(estimate.mean, digits)
    if math.isfinite(estimate.standard_error):
        text += f" ± {estimate.standard_error:.{digits}f}"
    return text


def signed(estimate: Estimate) -> str:
    """Mean ± standard error, with the sign of the mean."""
    sign = "+" if estimate.mean > 0 else ""
    return sign + plus_minus(estimate)


def percent(estimate: Estimate) -> str:
    """Mean ± standard error in percent; a dash when some seed never got there."""
    if not math.isfinite(estimate.mean):
        return "–"
    scaled = Estimate(
        100 * estimate.mean, 100 * estimate.standard_error, estimate.count
    )
    return plus_minus(scaled, 1) + " %"


def describe(settings: Mapping[str, Any]) -> str:
    """Settings on one line, field names without their group."""
    return ", ".join(
        f"{name.rsplit('.', 1)[-1]}={value:.4g}"
        if isinstance(value, float)
        else f"{name.rsplit('.', 1)[-1]}={value}"
        for name, value in settings.items()
    )


_COLUMNS = (
    "arm",
    "best configuration",
    "configurations tried",
    "final loss at x",
    "final loss at y",
    "ratio",
    "steps of the mean curve",
    "steps, mean over seeds (reached)",
    "speed-up",
)


def _row(document: Document, arm: Mapping[str, Any]) -> list[str]:
    result = compare_arms(document, arm["name"], document["baseline"])
    at_y = mean_and_standard_error(losses_of(arm, "loss_y")[:, -1])
    steps = mean_and_standard_error(result.steps)
    seeds = len(result.steps)
    tried = f"{len(arm['trials'])}" + ("" if arm["interior"] else " (at an edge)")
    row = [
        arm["label"],
        describe(arm["best"]),
        tried,
        plus_minus(result.final),
        plus_minus(at_y),
        number(result.ratio, 3),
        f"{result.steps_of_mean:.0f}" if math.isfinite(result.steps_of_mean) else "–",
        (plus_minus(steps, 0) if math.isfinite(steps.mean) else "–")
        + f" ({result.reached}/{seeds})",
        percent(result.speed_up),
    ]
    if _has_throughput(document):
        rates = [float(rate) for rate in arm["tokens_per_s"]]
        row.append(plus_minus(mean_and_standard_error(rates), 0) if rates else "–")
    return row


def _has_throughput(document: Document) -> bool:
    return any(arm["tokens_per_s"] for arm in document["arms"])


def markdown_rows(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _tuning_table(document: Document) -> str:
    rows = []
    for arm in document["arms"]:
        if "part_of" in arm:
            continue  # its trials stand under the arm they belong to
        variants: dict[str, list[str]] = {}
        for trial in sorted(arm["trials"], key=lambda t: t["learning_rate"]):
            cells = variants.setdefault(describe(trial["settings"]), [])
            cells.append(
                f"{trial['learning_rate']:.3g}: {number(float(trial['loss']))}"
            )
        rows += [
            [arm["label"], name, ", ".join(cells)] for name, cells in variants.items()
        ]
    return markdown_rows(["arm", "variant", "learning rate: loss"], rows)


def origin(document: Document) -> str:
    """How a document was made, in one sentence."""
    made = document["provenance"]
    machine, versions = made["machine"], made["versions"]
    devices = ", ".join(machine["accelerators"])
    return (
        f"Made by `{made['command']}` on {made['date']} (commit {made['commit'][:12]}; "
        f"{machine['processor']}, {machine['cores']} cores"
        + (f", {devices}" if devices else "")
        + "; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ")."
    )


def markdown(document: Document) -> str:
    """The whole report: how it was made, the table, what follows, the tuning."""
    baseline = arm_named(document, document["baseline"])["label"]
    columns = list(_COLUMNS)
    columns[5] = f"ratio to {baseline}"
    if _has_throughput(document):
        columns.append("tokens/s")
    parts = [
        f"# {document['title']}",
        origin(document),
        "\n".join(f"* {sentence}" for sentence in document["protocol"]),
        f"Seeds {', '.join(map(str, document['seeds']))}; mean ± standard error. "
        f'"Steps" count until the loss is at or below {baseline}\'s mean final loss, '
        "at checked steps only; a speed-up is given when every seed gets there.",
        markdown_rows(columns, [_row(document, arm) for arm in document["arms"]]),
        "\n".join(f"* {finding.text}" for finding in findings(document)),
    ]
    parts += [
        markdown_rows(section["header"], section["rows"]) + "\n\n" + section["text"]
        for section in document.get("sections", [])
    ]
    if document.get("acceptance"):
        parts.append(acceptance_text(document))
    parts += [
        f"Tuning, seed {', '.join(map(str, document['tuning_seeds']))} "
        "(final loss at x):",
        _tuning_table(document),
    ]
    return "\n\n".join(parts) + "\n"


def acceptance_text(document: Document) -> str:
    """The acceptance figures, each met or not met."""
    return "\n".join(
        f"* {item['text']}: {item['measured']} — {'met' if item['met'] else 'NOT met'}"
        for item in document["acceptance"]
    )


def write_files(
    document: Document,
    results_dir: pathlib.Path,
    stem: str,
    *,
    text: Callable[[Document], str],
    draw: Callable[[Document, pathlib.Path], None],
) -> list[pathlib.Path]:
    """Writes JSON, Markdown and figure side by side; returns their paths.

    Args:
      document: the results.
      results_dir: where the files go.
      stem: their name.
      text: makes the Markdown from a document.
      draw: makes the figure, likewise.
    """
    results_dir.mkdir(parents=True, exist_ok=True)
    paths = [results_dir / f"{stem}.{ending}" for ending in ("json", "md", "png")]
    document = encode(document)
    paths[0].write_text(json.dumps(document, indent=1) + "\n")
    paths[1].write_text(text(document))
    draw(document, paths[2])
    return paths


def write_report(
    document: Document, results_dir: pathlib.Path, stem: str
) -> list[pathlib.Path]:
    """Writes the JSON, the report and the figure of compared optimizers."""
    # Here, so that tables can be made where matplotlib is not installed.
    from experiments.reproduce.figure import draw

    return write_files(document, results_dir, stem, text=markdown, draw=draw)
