"""Figures: what is drawn, read from the axes before they are saved."""

import numpy as np
import pytest

from experiments.logistic import figures
from experiments.logistic.fit_records import Fit, Record


def fit(gaps, sizes=()):
    details = [{"batch_size": size} for size in sizes] or [{}] * len(gaps)
    records = [
        Record(i, 2.0 * i, gap, gap, 0.0, 0.5 * i, d)
        for i, (gap, d) in enumerate(zip(gaps, details, strict=True))
    ]
    return Fit("sgd", np.zeros(1), records, "max_epochs")


@pytest.fixture
def drawn(monkeypatch):
    kept = []
    save = figures._save

    def keep(figure, axes, path):
        save(figure, axes, path)
        kept.append(axes)

    monkeypatch.setattr(figures, "_save", keep)
    return kept


def test_gaps_are_drawn_on_a_logarithmic_axis(tmp_path, drawn):
    fits = {"a": [fit([1.0, 0.1, -1e-18]), fit([1.0, 0.2, 0.1])], "b": [fit([3.0])]}
    figures.plot_gaps(fits, tmp_path / "gap.png", title="t")
    (axes,) = drawn
    assert (tmp_path / "gap.png").stat().st_size > 10_000
    first, second, third = axes.get_lines()
    assert axes.get_yscale() == "log"
    np.testing.assert_array_equal(first.get_xdata(), [0, 2, 4])
    np.testing.assert_array_equal(first.get_ydata(), [1, 0.1, 1e-16])
    assert first.get_color() == second.get_color() != third.get_color()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["a", "b"]
    figures.plot_gaps(fits, tmp_path / "time.png", title="t", against="seconds")
    np.testing.assert_array_equal(drawn[1].get_lines()[0].get_xdata(), [0, 0.5, 1])


def test_batch_sizes_leave_out_records_without_one(tmp_path, drawn):
    grown = fit([1.0, 0.5], (64, 128))
    start = grown.records[0]._replace(details={})
    grown = grown._replace(records=[start, *grown.records[1:]])
    figures.plot_batch_sizes(
        {"a": [grown], "none": [fit([1.0])]},
        tmp_path / "b.png",
        title="t",
        num_samples=9,
    )
    line, all_samples = drawn[0].get_lines()
    assert (line.get_xdata(), line.get_ydata()) == ((2.0,), (128,))
    assert list(all_samples.get_ydata()) == [9, 9]


def test_unknown_axis_is_refused(tmp_path):
    with pytest.raises(ValueError, match="against must be one of epochs, seconds, got"):
        figures.plot_gaps({}, tmp_path / "a.png", title="t", against="steps")
