"""Loss against the parameters of the tables, one panel for each model and metric."""

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from experiments.reproduce.embedding_arms import FAMILIES
from experiments.reproduce.embedding_report import Panel, panel_named, values_of
from experiments.reproduce.report import Document

# Okabe and Ito's palette and two more; markers differ too. With a linear read-out add
# lies on features: the smaller mark is on top.
_STYLES: dict[str, dict[str, Any]] = {
    "full": {"color": "#000000", "marker": "*", "markersize": 11},
    "hash": {"color": "#E69F00", "marker": "o"},
    "qr_mult": {"color": "#0072B2", "marker": "s"},
    "qr_add": {"color": "#D55E00", "marker": "^", "markersize": 5, "zorder": 3},
    "qr_concat": {"color": "#009E73", "marker": "v"},
    "features": {"color": "#56B4E9", "marker": "D", "markersize": 9},
    "path": {"color": "#CC79A7", "marker": "P"},
    "mixed_radix": {"color": "#8C8C8C", "marker": "X"},
    "crt": {"color": "#7B4B2A", "marker": "x", "linestyle": (0, (2, 2))},
}


def _of_family(
    panel: Panel, family: str, metric: str, variation: bool
) -> list[Mapping[str, Any]]:
    return [
        arm
        for arm in panel["arms"]
        if arm["family"] == family
        and bool(arm["variation"]) == variation
        and np.isfinite(values_of(panel, arm["name"], metric)).all()
    ]


def _draw_family(axes: Axes, panel: Panel, family: str, metric: str) -> None:
    style = {"linewidth": 1.3, "markersize": 6, **_STYLES[family]}
    arms = _of_family(panel, family, metric, variation=False)
    losses = [values_of(panel, arm["name"], metric) for arm in arms]
    if arms:
        axes.errorbar(
            [arm["table_params"] for arm in arms],
            [values.mean() for values in losses],
            yerr=[values.std(ddof=min(1, len(values) - 1)) for values in losses],
            capsize=2,
            elinewidth=0.9,
            label=FAMILIES[family],
            **style,
        )
    hollow = {**style, "linestyle": "none", "markerfacecolor": "none"}
    for arm in _of_family(panel, family, metric, variation=True):
        mean = values_of(panel, arm["name"], metric).mean()
        axes.plot(arm["table_params"], mean, **hollow)


def _draw_floors(axes: Axes, panel: Panel) -> None:
    floor = panel.get("floor")
    if floor:
        axes.axhline(
            float(floor["loss"]), color="0.4", linestyle=":", label=floor["label"]
        )
    known = [arm for arm in panel["arms"] if "floor" in arm]
    if known:
        axes.plot(
            [arm["table_params"] for arm in known],
            [float(arm["floor"]) for arm in known],
            linestyle="none",
            marker="_",
            markersize=15,
            color="0.45",
            label="least possible with this embedding",
            zorder=0,
        )


def draw_embeddings(document: Document, path: pathlib.Path) -> None:
    """Draws a result document into a PNG file."""
    drawn = document["drawn"]
    figure, grid = plt.subplots(
        1,
        len(drawn),
        figsize=(1.5 + 5.2 * len(drawn), 5.6),
        layout="constrained",
        squeeze=False,
    )
    entries: dict[str, Any] = {}
    for axes, asked in zip(grid[0], drawn, strict=True):
        panel = panel_named(document, asked["panel"])
        for family in FAMILIES:
            _draw_family(axes, panel, family, asked["metric"])
        if asked["metric"] == "loss":
            _draw_floors(axes, panel)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("parameters of the tables")
        axes.set_ylabel(asked["label"])
        axes.set_title(panel["label"], fontsize=10)
        axes.grid(True, which="major", color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(
        entries.values(),
        entries,
        loc="outside lower center",
        ncols=4 if len(drawn) == 1 else 6,
        frameon=False,
        fontsize=8,
    )
    panels = [panel_named(document, asked["panel"]) for asked in drawn]
    hollow = any(arm["variation"] for panel in panels for arm in panel["arms"])
    figure.suptitle(
        f"{document['title']}\nmean of {len(document['seeds'])} seeds, bars ± 1 "
        "standard deviation" + (f"; hollow: {document['hollow']}" if hollow else ""),
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
