"""Loss and batch size over the rows trained on, one column per optimizer."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.reproduce.report import Document, arm_named, losses_of
from experiments.training.batch_path import Change, size_along

# Okabe and Ito's palette, told apart by colour-blind readers; black and grey are the
# constant batches, dashes the rules that measure nothing.
_STYLES: dict[str, dict[str, Any]] = {
    "small": {"color": "#000000"},
    "large": {"color": "#8C8C8C"},
    "mean_matched": {"color": "#56B4E9", "linestyle": (0, (1, 1))},
    "replay": {"color": "#D55E00", "linestyle": (0, (4, 2))},
    "seesaw": {"color": "#009E73", "linestyle": (0, (4, 2))},
    "adaptive_l2": {"color": "#CC79A7"},
    "adaptive_matched": {"color": "#0072B2"},
    "adaptive_alignment": {"color": "#E69F00"},
}
_LATE = 0.4  # share of the run that the loss panels leave out


def _style(arm: Mapping[str, Any]) -> dict[str, Any]:
    width = 2.2 if arm["name"] == "adaptive_matched" else 1.4
    return {"label": arm["label"], "linewidth": width, **_STYLES[arm["name"]]}


def _late_losses(document: Document, arm: Mapping[str, Any]) -> np.ndarray:
    checks = np.asarray(document["checks"])
    return losses_of(arm)[:, checks >= _LATE * checks[-1]]


def _band(losses: np.ndarray) -> np.ndarray:
    """Standard error over the seeds; zero for a single one."""
    if len(losses) == 1:
        return np.zeros(losses.shape[1])
    return losses.std(axis=0, ddof=1) / math.sqrt(len(losses))


def _draw_losses(
    axes: Axes, below: Axes, document: Document, optimizer: Mapping[str, Any]
) -> None:
    """Mean losses, and below what they exceed the small batch's by, seed by seed."""
    checks = np.asarray(document["checks"])
    late = checks[checks >= _LATE * checks[-1]]
    small = _late_losses(document, arm_named(dict(optimizer), "small"))
    means, excesses = [], []
    for arm in optimizer["arms"]:
        losses = _late_losses(document, arm)
        if not np.all(np.isfinite(losses)):
            continue
        style, shade = _style(arm), _STYLES[arm["name"]]["color"]
        means.append(losses.mean(axis=0))
        axes.plot(late, means[-1], **style)
        if arm["name"] == "small" or not np.all(np.isfinite(small)):
            continue
        excess, band = (losses - small).mean(axis=0), _band(losses - small)
        excesses.append(excess)
        below.plot(late, excess, **style)
        below.fill_between(
            late, excess - band, excess + band, color=shade, alpha=0.12, linewidth=0
        )
    below.axhline(0.0, **_STYLES["small"], linewidth=1.4)
    _limit(axes, means)
    _limit(below, [np.zeros(1), *(excess[len(excess) // 3 :] for excess in excesses)])


def _limit(axes: Axes, curves: Sequence[np.ndarray]) -> None:
    """The whole of most curves: one far above the rest would flatten them."""
    if curves:
        low = min(float(curve.min()) for curve in curves)
        high = float(np.quantile([curve.max() for curve in curves], 0.8))
        margin = 0.08 * (high - low) + 1e-6
        axes.set_ylim(low - margin, high + margin)


def _draw_paths(axes: Axes, document: Document, optimizer: Mapping[str, Any]) -> None:
    samples = np.linspace(0, document["checks"][-1] - 1, 600).astype(int)
    for arm in optimizer["arms"]:
        sizes = []
        for path in arm["paths"]:
            size_at = size_along([Change(*map(int, change)) for change in path])
            sizes.append([size_at(int(sample)) for sample in samples])
        axes.plot(samples, np.mean(sizes, axis=0), **_style(arm))
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")


def draw_batches(document: Document, path: pathlib.Path) -> None:
    """Draws a result document into a PNG file: late losses above, batches below."""
    rows, optimizers = document["checks"][-1], document["optimizers"]
    figure, grid = plt.subplots(
        3,
        len(optimizers),
        figsize=(1.6 + 3.6 * len(optimizers), 8.6),
        height_ratios=(5, 5, 4),
        layout="constrained",
        squeeze=False,
    )
    for column, optimizer in zip(grid.T, optimizers, strict=True):
        top, middle, bottom = column
        _draw_losses(top, middle, document, optimizer)
        _draw_paths(bottom, document, optimizer)
        top.set_title(optimizer["label"], fontsize=11)
        bottom.set_xlabel("rows trained on")
        for axes in column:
            axes.grid(True, which="major", color="0.92", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.locator_params(axis="x", nbins=5)
            axes.set_xlim(0 if axes is bottom else _LATE * rows, rows)
    grid[0, 0].set_ylabel(document["loss_name"])
    grid[1, 0].set_ylabel("minus small batch, same seed")
    grid[2, 0].set_ylabel("batch size (rows)")
    handles, labels = grid[2, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"{document['title']}, {len(document['seeds'])} seeds", fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)
