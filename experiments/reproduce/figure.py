"""Loss curves with seed bands, and how the tuned loss depends on the learning rate."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.reproduce.curves import mean_and_standard_error
from experiments.reproduce.report import Document, arm_named, describe, losses_of

# Okabe and Ito's palette: told apart by colour-blind readers and in grey.
_COLORS = ("#000000", "#E69F00", "#56B4E9", "#CC79A7", "#D55E00", "#009E73")
_MARKERS = ("o", "s", "^", "v", "D", "x")


def _drawn_arms(document: Document) -> list[Mapping[str, Any]]:
    """All arms, without one that is the chosen configuration of another."""
    chosen = [arm["best"] for arm in document["arms"] if "part_of" not in arm]
    return [
        arm
        for arm in document["arms"]
        if "part_of" not in arm or arm["best"] not in chosen
    ]


def _draw_curves(axes: Axes, document: Document) -> None:
    checks = np.asarray(document["checks"])
    ends = []
    for arm, color in zip(_drawn_arms(document), _COLORS, strict=False):
        losses = losses_of(arm)
        if not np.all(np.isfinite(losses[:, -1])):
            continue
        mean = losses.mean(axis=0)
        error = (
            losses.std(axis=0, ddof=1) / math.sqrt(len(losses))
            if len(losses) > 1
            else np.zeros_like(mean)
        )
        axes.plot(checks, mean, color=color, label=arm["label"], linewidth=1.6)
        axes.fill_between(
            checks, mean - error, mean + error, color=color, alpha=0.18, linewidth=0
        )
        ends.append(mean)
    baseline = arm_named(document, document["baseline"])
    target = mean_and_standard_error(losses_of(baseline)[:, -1]).mean
    if math.isfinite(target):
        axes.axhline(
            target,
            color="0.5",
            linewidth=0.9,
            linestyle=":",
            label=f"{baseline['label']}, final",
        )
    if ends:
        # The first checks would leave the part that differs to a few pixels.
        late = np.concatenate([mean[len(mean) // 5 :] for mean in ends])
        low, high = late.min(), late.max()
        axes.set_ylim(low * (low / high) ** 0.08, high)
    axes.set_yscale("log")
    axes.set_xlim(0, document["total_steps"])
    axes.set_xlabel("step")
    axes.set_ylabel(document.get("loss_name", "validation loss"))
    axes.set_title(
        f"mean of {len(document['seeds'])} seeds, band ± 1 standard error", fontsize=10
    )
    axes.legend(frameon=False, fontsize=8)


def _best_line(arm: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Learning rates and losses of the arm's best variant."""
    settings = {k: v for k, v in arm["best"].items() if k != "learning_rate"}
    points = sorted(
        (trial["learning_rate"], float(trial["loss"]))
        for trial in arm["trials"]
        if describe(trial["settings"]) == describe(settings)
    )
    return [rate for rate, _ in points], [loss for _, loss in points]


def _draw_tuning(axes: Axes, document: Document) -> None:
    finite = []
    for arm, color, marker in zip(
        _drawn_arms(document), _COLORS, _MARKERS, strict=False
    ):
        rates, losses = _best_line(arm)
        axes.plot(
            rates, losses, color=color, marker=marker, markersize=4, linewidth=1.2
        )
        finite += [loss for loss in losses if math.isfinite(loss)]
    axes.set_xscale("log")
    axes.set_yscale("log")
    if finite:
        low = min(finite)
        # Learning rates far too high would flatten the minima.
        axes.set_ylim(low * 0.97, min(max(finite) * 1.05, low * 4))
    axes.set_xlabel("peak learning rate")
    axes.set_ylabel(f"final {document.get('loss_name', 'validation loss')}")
    seeds = ", ".join(map(str, document["tuning_seeds"]))
    axes.set_title(f"tuning, best variant of each arm, seed {seeds}", fontsize=10)


def draw(document: Document, path: pathlib.Path) -> None:
    """Draws a result document into a PNG file."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10.5, 4.2), width_ratios=(3, 2), layout="constrained"
    )
    _draw_curves(left, document)
    _draw_tuning(right, document)
    for axes in (left, right):
        axes.grid(True, which="major", color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(document["title"], fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)
