"""Loss curves of runs, read from their metric files: compared and drawn."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.training.metrics import read_metrics


class Curve(NamedTuple):
    """One metric of one run over its steps."""

    steps: np.ndarray  # int (points,)
    values: np.ndarray  # float (points,)


def read_curve(run_dir: pathlib.Path, metric: str = "eval/loss") -> Curve:
    """All values of a metric that a run has written, in order of steps."""
    rows = [row for row in read_metrics(run_dir / "metrics.jsonl") if metric in row]
    return Curve(
        np.array([row["step"] for row in rows], int),
        np.array([row[metric] for row in rows], float),
    )


def steps_to_reach(curve: Curve, target: float) -> int | None:
    """The first evaluated step at or below the target; a NaN never is."""
    reached = np.flatnonzero(curve.values <= target)
    return int(curve.steps[reached[0]]) if reached.size else None


def plot_curves(
    curves: Mapping[str, Sequence[Curve]],
    path: pathlib.Path,
    *,
    title: str,
    ylabel: str,
    target: float | None = None,
) -> None:
    """Draws loss against steps, one line per name, with a band over its seeds.

    Args:
      curves: for each name one curve per seed, evaluated at the same steps; the line
        is their mean and the band their lowest and highest value.
      path: the PNG to write.
      title: above the figure.
      ylabel: what is measured, with its unit.
      target: a level to mark.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, seeds in curves.items():
        values = np.stack([curve.values for curve in seeds])
        (line,) = axes.plot(seeds[0].steps, values.mean(axis=0), label=name)
        if len(seeds) > 1:
            axes.fill_between(
                seeds[0].steps,
                values.min(axis=0),
                values.max(axis=0),
                color=line.get_color(),
                alpha=0.15,
                linewidth=0,
            )
    if target is not None:
        axes.axhline(target, color="0.5", linewidth=0.8, linestyle="--")
    # The first evaluations are far above the rest and would flatten what matters.
    tails = np.concatenate(
        [c.values[len(c.values) // 6 :] for s in curves.values() for c in s]
    )
    finite = tails[np.isfinite(tails)]
    if finite.size:
        margin = 0.05 * (finite.max() - finite.min() + 1e-12)
        axes.set_ylim(finite.min() - margin, finite.max() + margin)
    axes.set(title=title, xlabel="step", ylabel=ylabel)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
