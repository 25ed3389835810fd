import json

import numpy as np

from experiments.curves import Curve, plot_curves, read_curve, steps_to_reach


def test_curve_of_a_metrics_file(tmp_path):
    rows = [
        {"step": 1, "wall_s": 0.1, "tokens": 8, "split": "train", "train/loss": 5.0},
        {"step": 2, "wall_s": 0.2, "tokens": 16, "split": "eval", "eval/loss": 4.0},
        {"step": 4, "wall_s": 0.4, "tokens": 32, "split": "eval", "eval/loss": 3.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    curve = read_curve(tmp_path)
    assert list(curve.steps) == [2, 4] and list(curve.values) == [4.0, 3.0]


def test_steps_to_reach_is_the_first_at_or_below():
    curve = Curve(np.array([10, 20, 30, 40]), np.array([3.0, 2.0, 2.5, 1.0]))
    assert steps_to_reach(curve, 2.0) == 20
    assert steps_to_reach(curve, 0.5) is None
    assert steps_to_reach(curve, np.nan) is None


def test_figure_is_written_even_with_a_diverged_curve(tmp_path):
    steps = np.arange(1, 13)
    curves = {
        "good": [Curve(steps, 5.0 / steps), Curve(steps, 6.0 / steps)],
        "diverged": [Curve(steps, np.where(steps > 6, np.nan, 1.0))],
    }
    path = tmp_path / "loss.png"
    plot_curves(curves, path, title="t", ylabel="loss", target=1.0)
    assert path.read_bytes().startswith(b"\x89PNG")
