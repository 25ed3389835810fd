"""The report on the small network: table, findings and acceptance, from a document.

A document has the keys `claim`, `title`, `provenance`, `protocol` (sentences), `seeds`,
`tuning_seeds`, `epochs`, `train_rows`, `arms` and `acceptance`. Each arm has `name`,
`label`, `kind`, `learning_rate` (None for progressive batching), perhaps `trials` (rate
and loss of the tuning) and `interior`, and `runs`, one per seed; see
`pblbfgs_network_training` for a run: its lists have one number per epoch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.reproduce.report import (
    Document,
    acceptance_text,
    arm_named,
    markdown_rows,
    origin,
)

PB_MB, PB_FO = "pb_mb", "pb_fo"
TUNED_ADAM, TUNED_SGD, USUAL_ADAM = "adam_tuned", "sgd_tuned", "adam_0.001"

# Medians by this project's prototype, written in NumPy: loss after 5, 10 and 30 epochs
# and the best test accuracy in percent. Its initial weights were others.
PROTOTYPE = {PB_MB: (0.136, 0.074, 0.035, 98.7), PB_FO: (0.167, 0.092, 0.048, 98.2)}
SLACK = 1.15
SHOWN_EPOCHS = (5, 10, 30)


def losses_after(arm: Mapping[str, Any], epochs: int) -> np.ndarray:
    """Training objective after so many epochs, one number per seed."""
    return np.asarray([float(run["loss"][epochs - 1]) for run in arm["runs"]])


def best_accuracies(arm: Mapping[str, Any]) -> np.ndarray:
    """Best test accuracy over the epochs in percent, one number per seed."""
    return np.asarray([100.0 * max(map(float, run["accuracy"])) for run in arm["runs"]])


def final_accuracies(arm: Mapping[str, Any]) -> np.ndarray:
    """Test accuracy after the last epoch in percent, one number per seed."""
    return np.asarray([100.0 * float(run["accuracy"][-1]) for run in arm["runs"]])


def spread(values: np.ndarray, digits: int) -> str:
    """Median (least–largest)."""
    text = f"{np.median(values):.{digits}f}"
    if len(values) == 1:
        return text
    return f"{text} ({values.min():.{digits}f}–{values.max():.{digits}f})"


def shown_epochs(document: Document) -> list[int]:
    """The epochs of the table: 5, 10, 30, and the last one if that is another."""
    last = int(document["epochs"])
    return sorted({*(e for e in SHOWN_EPOCHS if e <= last), last})


def acceptance(document: Document) -> list[dict[str, Any]]:
    """Quality beside tuned Adam's, and the prototype's numbers."""
    last = int(document["epochs"])
    mb, adam, usual = (
        arm_named(document, name) for name in (PB_MB, TUNED_ADAM, USUAL_ADAM)
    )
    accuracy = [float(np.median(best_accuracies(arm))) for arm in (mb, adam)]
    loss, tuned, untuned = (
        float(np.median(losses_after(arm, last))) for arm in (mb, adam, usual)
    )
    items = [
        {
            "text": "PB-MB without tuning: best test accuracy at most one point below "
            "tuned Adam's (medians)",
            "measured": f"{accuracy[0]:.2f} % beside {accuracy[1]:.2f} %",
            "met": bool(accuracy[0] >= accuracy[1] - 1.0),
        },
        {
            "text": f"PB-MB without tuning: loss after {last} epochs at most 1.5 times "
            "tuned Adam's (medians)",
            "measured": f"{loss:.4f} beside {tuned:.4f}, {loss / tuned:.2f} times",
            "met": bool(loss <= 1.5 * tuned),
        },
        {
            "text": f"PB-MB without tuning: loss after {last} epochs below that of "
            "Adam at 1e-3 (medians)",
            "measured": f"{loss:.4f} beside {untuned:.4f}",
            "met": bool(loss < untuned),
        },
    ]
    for name in (PB_MB, PB_FO):
        items += _prototype_items(document, name)
    return items


def _prototype_items(document: Document, name: str) -> list[dict[str, Any]]:
    arm, items = arm_named(document, name), []
    *losses, accuracy = PROTOTYPE[name]
    for epochs, prototype in zip(SHOWN_EPOCHS, losses, strict=True):
        if epochs <= int(document["epochs"]):
            median = float(np.median(losses_after(arm, epochs)))
            items.append(
                {
                    "text": f"{arm['label']}: loss after {epochs} epochs at most "
                    f"{SLACK} times the prototype's {prototype} (median)",
                    "measured": f"{median:.4f}",
                    "met": bool(median <= SLACK * prototype),
                }
            )
    median = float(np.median(best_accuracies(arm)))
    items.append(
        {
            "text": f"{arm['label']}: best test accuracy at most half a point below "
            f"the prototype's {accuracy} % (median)",
            "measured": f"{median:.2f} %",
            "met": bool(median >= accuracy - 0.5),
        }
    )
    return items


def distinct_arms(document: Document) -> list[Mapping[str, Any]]:
    """All arms, without those that are the tuned configuration over again."""
    tuned = {
        (arm["kind"], arm["learning_rate"])
        for arm in document["arms"]
        if "trials" in arm
    }
    return [
        arm
        for arm in document["arms"]
        if "trials" in arm or (arm["kind"], arm["learning_rate"]) not in tuned
    ]


def findings(document: Document) -> list[str]:
    """Each form of progressive batching beside each peer, seed by seed."""
    last, found = int(document["epochs"]), []
    for name in (PB_MB, PB_FO):
        arm = arm_named(document, name)
        for peer in distinct_arms(document):
            if peer["name"] in (PB_MB, PB_FO):
                continue
            ratio = losses_after(arm, last) / losses_after(peer, last)
            gain = best_accuracies(arm) - best_accuracies(peer)
            updates = np.median([run["updates"] for run in peer["runs"]])
            updates /= np.median([run["updates"] for run in arm["runs"]])
            found.append(
                f"{arm['label']} beside {peer['label']}: loss after {last} epochs "
                f"{spread(ratio, 2)} times, lower on {int((ratio < 1).sum())} of "
                f"{len(ratio)} seeds; best test accuracy {_signed(gain)} points; "
                f"{updates:.1f} times fewer updates."
            )
    return found


def _signed(values: np.ndarray) -> str:
    text = f"{np.median(values):+.2f}"
    if len(values) == 1:
        return text
    return f"{text} ({values.min():+.2f} to {values.max():+.2f})"


def _table(document: Document) -> str:
    shown, rows = shown_epochs(document), []
    for arm in document["arms"]:
        runs = arm["runs"]
        rows.append(
            [
                arm["label"],
                *(spread(losses_after(arm, epochs), 4) for epochs in shown),
                spread(best_accuracies(arm), 2),
                spread(final_accuracies(arm), 2),
                spread(np.asarray([run["updates"] for run in runs]), 0),
                spread(np.asarray([float(run["seconds"]) for run in runs]), 2),
                ", ".join(dict.fromkeys(run["reason"] for run in runs)),
            ]
        )
    header = [
        "method",
        *(f"loss, {epochs} epochs" for epochs in shown),
        "best test accuracy (%)",
        "final",
        "updates",
        "seconds",
        "end",
    ]
    return markdown_rows(header, rows)


def _tuning_table(document: Document) -> str:
    rows = []
    for arm in document["arms"]:
        if "trials" in arm:
            cells = [
                f"{t['learning_rate']:g}: {float(t['loss']):.4f}" for t in arm["trials"]
            ]
            edge = "" if arm["interior"] else " (at an edge of the grid)"
            rows.append([arm["label"] + edge, ", ".join(cells)])
    return markdown_rows(["method", "learning rate: loss"], rows)


def network_markdown(document: Document) -> str:
    """The whole report."""
    seeds = ", ".join(map(str, document["seeds"]))
    tuning = ", ".join(map(str, document["tuning_seeds"]))
    last = document["epochs"]
    return (
        "\n\n".join(
            [
                f"# {document['title']}",
                origin(document),
                "\n".join(f"* {sentence}" for sentence in document["protocol"]),
                "Acceptance figures:",
                acceptance_text(document),
                f"Medians over seeds {seeds} (least–largest). The best test accuracy "
                "is the best of those after each epoch, for every method: it is "
                "chosen on the test rows.",
                _table(document),
                "Seed by seed:",
                "\n".join(f"* {finding}" for finding in findings(document)),
                f"Tuning: median of the loss after {last} epochs over the seeds "
                f"{tuning}:",
                _tuning_table(document),
                "Seconds are those of all epochs with everything compiled before, "
                "without the evaluations, on a machine that may have had other work. "
                "Progressive batching is one call of its device loop, the others are "
                "called once per epoch.",
            ]
        )
        + "\n"
    )
