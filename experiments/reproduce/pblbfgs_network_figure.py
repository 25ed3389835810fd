"""Training loss, test accuracy and batch size of the small network against epochs."""

import pathlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.reproduce.pblbfgs_network_report import distinct_arms
from experiments.reproduce.report import Document

# Okabe and Ito's palette, in the order of the arms.
_COLORS = ("#0072B2", "#D55E00", "#000000", "#CC79A7", "#56B4E9", "#009E73")


def _lists(arm: Any, name: str) -> np.ndarray:
    """[seeds, epochs]."""
    return np.asarray([[float(x) for x in run[name]] for run in arm["runs"]])


def draw_network(document: Document, path: pathlib.Path) -> None:
    """Draws a result document into a PNG file."""
    figure, (losses, accuracies, sizes) = plt.subplots(
        1, 3, figsize=(13.0, 4.4), layout="constrained"
    )
    epochs = np.arange(1, int(document["epochs"]) + 1)
    colors = dict(zip((a["name"] for a in document["arms"]), _COLORS, strict=True))
    for arm in distinct_arms(document):
        color = colors[arm["name"]]
        style = {"color": color, "linewidth": 1.6}
        if not arm["name"].startswith("pb_"):
            style |= {"linewidth": 1.2, "linestyle": (0, (4, 2))}
        for axes, name, factor in (
            (losses, "loss", 1.0),
            (accuracies, "accuracy", 1e2),
        ):
            values = factor * _lists(arm, name)
            axes.plot(epochs, np.median(values, axis=0), label=arm["label"], **style)
            axes.fill_between(
                epochs,
                values.min(axis=0),
                values.max(axis=0),
                color=color,
                alpha=0.10,
                linewidth=0,
            )
        values = _lists(arm, "batch_size")
        sizes.plot(epochs, np.median(values, axis=0), **style)
    losses.set(yscale="log", ylabel="training loss (with the penalty)")
    accuracies.set(ylabel="test accuracy (%)", ylim=(85, 100))
    sizes.set_yscale("log", base=2)
    sizes.set_ylabel("batch size (dotted: all rows)")
    sizes.axhline(document["train_rows"], color="0.6", linewidth=0.8, linestyle=":")
    for axes in (losses, accuracies, sizes):
        axes.set(xlabel="epochs of gradients", xlim=(1, len(epochs)))
        axes.grid(True, which="major", color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = losses.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9
    )
    seeds = ", ".join(map(str, document["seeds"]))
    figure.suptitle(
        f"{document['title']}: medians over seeds {seeds}, bands from least to largest",
        fontsize=11,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
