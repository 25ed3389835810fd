"""Pictures of fits: how far from the minimum, and at which batch size, over epochs."""

import pathlib
from collections.abc import Mapping, Sequence

from experiments.logistic.fit_records import Fit

# Gaps below are rounding, and would only stretch the axis.
_LOWEST_GAP = 1e-16

_AXES = {
    "epochs": "gradient evaluations / N (epochs)",
    "seconds": "seconds, compilation left out",
}


def plot_gaps(
    fits: Mapping[str, Sequence[Fit]],
    path: pathlib.Path,
    *,
    title: str,
    against: str = "epochs",
) -> None:
    """Draws F - F* on a logarithmic axis, one colour per name, one line per fit.

    Args:
      fits: for each name its fits, such as those of several seeds.
      path: the PNG to write.
      title: above the figure.
      against: `epochs` or `seconds`.

    Raises:
      ValueError: for another `against`.
    """
    figure, axes = _figure(title, against)
    for name, runs in fits.items():
        _draw(
            axes,
            name,
            [_points(fit, against, lambda r: max(r.gap, _LOWEST_GAP)) for fit in runs],
        )
    axes.set(yscale="log", ylabel="F(w) - F*")
    _save(figure, axes, path)


def plot_batch_sizes(
    fits: Mapping[str, Sequence[Fit]],
    path: pathlib.Path,
    *,
    title: str,
    num_samples: int,
    against: str = "epochs",
) -> None:
    """Draws batch sizes, with the number of samples as a dashed line.

    Args:
      fits: as of `plot_gaps`; what has no batch size is left out.
      path: the PNG to write.
      title: above the figure.
      num_samples: N.
      against: `epochs` or `seconds`.

    Raises:
      ValueError: for another `against`.
    """
    figure, axes = _figure(title, against)
    for name, runs in fits.items():
        points = [
            _points(fit, against, lambda r: r.details.get("batch_size")) for fit in runs
        ]
        _draw(axes, name, points, drawstyle="steps-pre")
    axes.axhline(num_samples, color="0.5", linewidth=0.8, linestyle="--")
    axes.set_yscale("log", base=2)
    axes.set_ylabel("batch size (dashed: all samples)")
    _save(figure, axes, path)


def _figure(title: str, against: str):
    if against not in _AXES:
        raise ValueError(f"against must be one of {', '.join(_AXES)}, got {against!r}")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=_AXES[against])
    return figure, axes


def _points(fit: Fit, against: str, height) -> list[tuple[float, float]]:
    points = [(getattr(record, against), height(record)) for record in fit.records]
    return [(x, y) for x, y in points if y is not None]


def _draw(axes, name: str, runs: Sequence[list], **style) -> None:
    color = None
    for points in runs:
        if not points:
            continue
        (line,) = axes.plot(
            *zip(*points, strict=True),
            color=color,
            label=name if color is None else None,
            linewidth=1.2,
            alpha=0.85,
            **style,
        )
        color = line.get_color()


def _save(figure, axes, path: pathlib.Path) -> None:
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
