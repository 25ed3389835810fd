"""Gap and batch size against epochs, one column of the figure per problem."""

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.reproduce.pblbfgs_arms import DEFAULTS, PB_FO, PB_MB
from experiments.reproduce.pblbfgs_trace import value_at
from experiments.reproduce.report import Document

# Okabe and Ito's palette; the paper's test is dashed, in the colour of its overlap.
_STYLES: dict[str, dict[str, Any]] = {
    "full_batch": {"color": "#000000"},
    "optax_lbfgs": {"color": "#8C8C8C"},
    "pb_mb_paper": {"color": "#0072B2", "linestyle": (0, (4, 2))},
    "pb_fo_paper": {"color": "#D55E00", "linestyle": (0, (4, 2))},
    PB_MB: {"color": "#0072B2", "linewidth": 2.0},
    PB_FO: {"color": "#D55E00", "linewidth": 2.0},
    DEFAULTS: {"color": "#56B4E9"},
    "sgd": {"color": "#009E73"},
    "svrg": {"color": "#CC79A7"},
}
_LAST_EPOCH = 60.0
_LOWEST_GAP = 1e-11
_BANDS = (PB_MB, PB_FO)


def _over_seeds(
    arm: Mapping[str, Any], name: str, epochs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values [seeds, epochs], and whether each seed's curve is still going on there."""
    curves = [run["curve"] for run in arm["runs"]]
    values = np.asarray([[value_at(c, name, e) for e in epochs] for c in curves])
    lasts = np.asarray([float(curve["epochs"][-1]) for curve in curves])
    # A certified run stays where it is, one that ran out of epochs is not known after.
    going_on = epochs[None, :] <= lasts[:, None]
    return values, going_on


def _draw_arm(axes: Axes, arm: Mapping[str, Any], name: str, num_samples: int) -> None:
    epochs = np.linspace(0.0, _LAST_EPOCH, 481)
    values, going_on = _over_seeds(arm, name, epochs)
    seen = going_on.sum(axis=0) * 2 > len(values)
    style = {"linewidth": 1.2, **_STYLES[arm["name"]]}
    median = np.median(values, axis=0)
    if name == "batch_size":
        first = next(size for size in arm["runs"][0]["curve"][name] if size)
        median = np.where(median > 0, median, first)
        # A batch of all samples stays one: lines on top of each other say nothing.
        seen &= np.concatenate([[True], median[:-1] < num_samples])
    else:
        median = np.maximum(median, _LOWEST_GAP / 10)
    axes.plot(epochs[seen], median[seen], label=arm["label"], **style)
    if name == "gap" and arm["name"] in _BANDS:
        low = np.maximum(values.min(axis=0), _LOWEST_GAP / 10)
        high = values.max(axis=0)
        axes.fill_between(
            epochs[seen],
            low[seen],
            high[seen],
            color=style["color"],
            alpha=0.15,
            linewidth=0,
        )


def draw_convex(document: Document, path: pathlib.Path) -> None:
    """Draws a result document into a PNG file."""
    problems = document["problems"]
    figure, grid = plt.subplots(
        2,
        len(problems),
        figsize=(4.3 * len(problems), 6.6),
        height_ratios=(3, 2),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for column, problem in enumerate(problems):
        gaps, sizes = grid[:, column]
        for arm in problem["arms"]:
            _draw_arm(gaps, arm, "gap", problem["num_samples"])
            if arm["name"].startswith("pb_"):
                _draw_arm(sizes, arm, "batch_size", problem["num_samples"])
        gaps.set(yscale="log", ylim=(_LOWEST_GAP, 1.0), title=problem["label"])
        sizes.set_yscale("log", base=2)
        sizes.axhline(
            problem["num_samples"], color="0.6", linewidth=0.8, linestyle=":", zorder=1
        )
        sizes.set(xlabel="gradient evaluations / N (epochs)", xlim=(0, _LAST_EPOCH))
        for axes in (gaps, sizes):
            axes.grid(True, which="major", color="0.92", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set_ylabel("F(w) − F*")
    grid[1, 0].set_ylabel("batch size, until it is N (dotted)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    seeds = ", ".join(map(str, document["seeds"]))
    figure.suptitle(
        f"{document['title']}: medians over seeds {seeds}; bands of the unbiased test "
        "from least to largest",
        fontsize=11,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
