"""The report on embeddings: tables and findings, from a stored document.

A document has the keys `claim`, `title`, `provenance`, `protocol` (sentences), `seeds`,
`metrics` (of the tables, each a `name` and a `label`), `panels`, `orders`,
`orders_text` (what they are), `acceptance` (perhaps none), `notes` (sentences), `drawn`
(parts of the figure, each a `panel`, a `metric` and a `label`) and, where an arm is a
variation, `hollow` (what these are). Each panel has `name`, `label`,
`arms` and perhaps `floor` (a `label` and a `loss` that no model can beat). Each arm has
`name`, `label`, `family`, `peer` (name of an arm, or ""), `variation`, `table_params`,
`params`, perhaps `floor` (a loss), and one number per seed for every metric; `loss` is
one of them. Each order is an expectation: a `panel`, a `metric`, and the arms `lower`
and `higher`, whose metric should be the higher one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.reproduce.curves import (
    Estimate,
    exceeds_two_errors,
    mean_and_standard_error,
)
from experiments.reproduce.report import (
    Document,
    acceptance_text,
    arm_named,
    markdown_rows,
    number,
    origin,
    signed,
)

Panel = Mapping[str, Any]


def panel_named(document: Document, name: str) -> Panel:
    """The panel of that name.

    Raises:
      ValueError: when the document has no such panel.
    """
    for panel in document["panels"]:
        if panel["name"] == name:
            return panel
    raise ValueError(
        f"no panel named {name!r}; there are "
        + ", ".join(panel["name"] for panel in document["panels"])
    )


def values_of(panel: Panel, arm: str, metric: str = "loss") -> np.ndarray:
    """A metric of an arm, one number per seed."""
    found = arm_named(dict(panel), arm)
    return np.asarray([float(value) for value in found[metric]], np.float64)


def paired_difference(
    panel: Panel, arm: str, other: str, metric: str = "loss"
) -> Estimate:
    """An arm minus another one, seed by seed."""
    # inf - inf is nan, which is what two diverged runs tell about each other.
    with np.errstate(invalid="ignore"):
        difference = values_of(panel, arm, metric) - values_of(panel, other, metric)
    return mean_and_standard_error(list(difference))


def mean_and_deviation(values: np.ndarray, digits: int = 4) -> str:
    """Mean ± sample standard deviation."""
    text = number(float(np.mean(values)), digits)
    if len(values) > 1 and np.isfinite(values).all():
        text += f" ± {np.std(values, ddof=1):.{digits}f}"
    return text


def order_row(document: Document, order: Mapping[str, Any]) -> list[str]:
    """One expectation beside what was measured, as cells of a table."""
    panel = panel_named(document, order["panel"])
    lower, higher = (arm_named(dict(panel), order[key]) for key in ("lower", "higher"))
    metric = order["metric"]
    gap = paired_difference(panel, higher["name"], lower["name"], metric)
    opposite = Estimate(-gap.mean, gap.standard_error, gap.count)
    if exceeds_two_errors(gap):
        verdict = "reproduced"
    elif exceeds_two_errors(opposite):
        verdict = "NOT reproduced: the other way round"
    else:
        verdict = "not reproduced: not told apart"
    return [
        panel["label"],
        _label_of(document, metric),
        lower["label"],
        higher["label"],
        signed(gap),
        _each(panel, higher["name"], lower["name"], metric),
        verdict,
    ]


_ORDER_COLUMNS = ["model", "metric", "lower", "than", "by", "on each seed", "verdict"]


def _orders(document: Document) -> list[str]:
    if not document["orders"]:
        return []
    rows = [order_row(document, order) for order in document["orders"]]
    return [
        f"{document['orders_text']} (the mean ± standard error of the differences seed "
        "by seed; reproduced means more than two of these errors):",
        markdown_rows(_ORDER_COLUMNS, rows),
        "Two standard errors of so few seeds are a weak test: where there is no "
        "difference one is found, in one direction or the other, in 18 % of the cases "
        "with three seeds and in 12 % with five.",
    ]


def _label_of(document: Document, metric: str) -> str:
    for described in document["metrics"]:
        if described["name"] == metric:
            return described["label"]
    return metric


def _each(panel: Panel, higher: str, lower: str, metric: str) -> str:
    pairs = values_of(panel, higher, metric), values_of(panel, lower, metric)
    return ", ".join(f"{h - low:+.4f}" for h, low in zip(*pairs, strict=True))


def _row(document: Document, panel: Panel, arm: Mapping[str, Any]) -> list[str]:
    full = arm_named(dict(panel), "full")["table_params"]
    row = [
        arm["label"],
        f"{arm['table_params']:,}",
        f"{full / arm['table_params']:.1f}",
    ]
    for metric in document["metrics"]:
        values = values_of(panel, arm["name"], metric["name"])
        row.append(mean_and_deviation(values))
    if _has_floors(panel):
        row.append(f"{arm['floor']:.4f}" if "floor" in arm else "")
    peer = arm["peer"]
    row.append(signed(paired_difference(panel, arm["name"], peer)) if peer else "")
    return row


def _has_floors(panel: Panel) -> bool:
    return any("floor" in arm for arm in panel["arms"])


def _table(document: Document, panel: Panel) -> str:
    header = ["embedding", "table parameters", "full / these"]
    header += [metric["label"] for metric in document["metrics"]]
    header += ["least possible loss"] * _has_floors(panel)
    header.append("loss minus hash of as many rows")
    rows = [_row(document, panel, arm) for arm in panel["arms"]]
    floor = panel.get("floor")
    below = f"\n\n{floor['label']}: {float(floor['loss']):.4f}." if floor else ""
    return f"## {panel['label']}\n\n{markdown_rows(header, rows)}{below}"


def embedding_markdown(document: Document) -> str:
    """The whole report: how it was made, acceptance, findings, a table per panel."""
    seeds = ", ".join(map(str, document["seeds"]))
    parts = [
        f"# {document['title']}",
        origin(document),
        "\n".join(f"* {sentence}" for sentence in document["protocol"]),
    ]
    if document.get("acceptance"):
        parts += ["Acceptance figures:", acceptance_text(document)]
    parts += _orders(document)
    if document["notes"]:
        parts.append(" ".join(document["notes"]))
    parts.append(
        f"Seeds {seeds}; metrics are mean ± standard deviation over them, the last "
        "column is the mean ± standard error of the differences on the same seeds."
    )
    parts += [_table(document, panel) for panel in document["panels"]]
    return "\n\n".join(parts) + "\n"
