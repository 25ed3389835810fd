import json
import math

import numpy as np
import pytest

from experiments.reproduce.batch_figure import draw_batches
from experiments.reproduce.batch_protocol import RULES
from experiments.reproduce.batch_report import (
    batch_findings,
    batch_markdown,
    target_items,
)
from experiments.reproduce.report import encode, write_files

CHECKS = [100, 200, 300, 400]
FINALS = {  # above the small batch's final loss, and steps of a run
    "small": (0.0, 50),
    "large": (0.2, 10),
    "mean_matched": (0.1, 20),
    "replay": (0.01, 20),
    "seesaw": (0.0, 35),
    "adaptive_l2": (0.02, 30),
    "adaptive_matched": (0.005, 20),
    "adaptive_alignment": (-0.01, 25),
}


def arm(rule, *, jitter=0.0):
    """Losses fall to 1 or 1.1 plus the rule's excess, in proportion to the rows."""
    excess, steps = FINALS[rule]
    losses = [
        [3.0, 2.0, 1.5, base + excess + sign * jitter]
        for base, sign in ((1.0, 1), (1.1, -1))
    ]
    theta = {"batch.theta": 0.6} if rule.startswith("adaptive") else {}
    untuned = rule in ("replay", "mean_matched")
    return {
        "name": rule,
        "label": RULES[rule],
        "best": {**theta, "learning_rate": 0.01},
        "interior": rule != "seesaw",
        "trials": []
        if untuned
        else [{"settings": theta, "learning_rate": 0.01, "loss": 1.0, "steps": steps}],
        "loss": losses,
        "steps": [[share * steps / 4 for share in (1, 2, 3, 4)]] * 2,
        "paths": [[[0, 400 // steps]]] * 2,
        "scale_over_batch": [1.2, 1.4] if theta else [],
        "runs": [],
    }


@pytest.fixture
def document():
    return {
        "title": "A title",
        "provenance": {
            "command": "python -m experiments.reproduce gns_llama",
            "date": "2026-01-31",
            "commit": "0123456789abcdef",
            "versions": {"jax": "0.10"},
            "machine": {"processor": "A processor", "cores": 2, "accelerators": []},
        },
        "protocol": ["First sentence."],
        "checks": CHECKS,
        "small_size": 8,
        "claimed": ["signum", "muon"],
        "required_saving": 0.5,
        "loss_name": "validation loss (nats per token)",
        "seeds": [1, 2],
        "tuning_seeds": [0],
        "optimizers": [
            {
                "name": name,
                "label": label,
                "geometry": geometry,
                "arms": [arm(rule) for rule in RULES],
            }
            for name, label, geometry in (
                ("signum", "Signum", "sign"),
                ("muon", "Muon", "spectral"),
                ("adamw", "AdamW", "sign"),
            )
        ],
    }


def replace_arm(document, index, rule, new):
    arms = document["optimizers"][index]["arms"]
    arms[list(RULES).index(rule)] = new


def cells(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(start)][:1]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_report_is_made_from_the_stored_json(document, tmp_path):
    paths = write_files(
        document, tmp_path, "stem", text=batch_markdown, draw=draw_batches
    )
    assert [path.name for path in paths] == ["stem.json", "stem.md", "stem.png"]
    stored = json.loads(paths[0].read_text())
    text = paths[1].read_text()
    assert text == batch_markdown(stored) and paths[2].stat().st_size > 10_000
    assert cells(text, "| adaptive, matched |") == [
        "adaptive, matched",
        "theta=0.6, learning_rate=0.01",
        "1.0550 ± 0.0500",
        "+0.0050 ± 0.0000",
        "20 ± 0",
        "60.0 ± 0.0 %",
        "20.0 ± 0.0",
        "–",
        "– (1/2)",
        "–",
    ]
    # Only alignment ends below the small batch's mean of 1.05: after 25 of 50 steps.
    assert cells(text, "| adaptive, alignment |")[7:] == ["25", "– (1/2)", "50.0 %"]
    assert "learning_rate=0.01 (at an edge)" in text


def test_the_open_loop_part_of_the_saving_is_stated(document):
    text = batch_markdown(encode(document))
    assert cells(text, "| Signum | replayed path |") == [
        "Signum",
        "replayed path",
        "100.0 %",
        "+0.0050 ± 0.0000",
        "adaptive, matched ends lower",
    ]
    assert cells(text, "| Muon | Seesaw |")[2:] == [
        "50.0 %",
        "-0.0050 ± 0.0000",
        "adaptive, matched ends higher",
    ]
    replay = batch_findings(document)[3]
    assert replay.startswith("The open-loop ramp, a path of another seed, against")
    assert "Signum 100.0 % of its saved steps, final loss +0.0050 ± 0.0000" in replay
    assert "ends lower for Signum, Muon, AdamW, higher for none." in replay


def test_a_difference_within_two_errors_is_not_told_apart(document):
    replace_arm(document, 1, "replay", arm("replay", jitter=0.02))
    assert (
        "| Muon | replayed path | 100.0 % | +0.0050 ± 0.0200 | not told apart |"
        in batch_markdown(document)
    )
    assert "ends lower for Signum, AdamW, higher" in batch_findings(document)[3]


def test_the_target_is_stated_for_signum_and_muon_met_or_not(document):
    met = target_items(document)
    assert [item["text"].split(",")[0] for item in met] == ["Signum", "Muon"]
    assert [item["met"] for item in met] == [True, True]
    few = arm("adaptive_matched")
    few["steps"] = (1.3 * np.asarray(few["steps"])).tolist()  # 26 of 50 steps
    replace_arm(document, 0, "adaptive_matched", few)
    lost = arm("adaptive_matched")  # 0.06 above, the standard error is 0.05
    lost["loss"] = (np.asarray(lost["loss"]) + 0.055).tolist()
    replace_arm(document, 1, "adaptive_matched", lost)
    assert [item["met"] for item in target_items(document)] == [False, False]
    assert batch_markdown(document).count("NOT met") == 2
    assert "48.0 ± 0.0 % fewer steps" in target_items(document)[0]["measured"]


def test_a_diverged_rule_stays_in_the_table_and_the_figure_is_drawn(document, tmp_path):
    broken = arm("large")
    broken["loss"][0] = [3.0, 9.0, math.inf, math.inf]
    broken["steps"][0] = [2.5, 5.0, math.nan, math.nan]
    replace_arm(document, 2, "large", broken)
    paths = write_files(
        document, tmp_path, "stem", text=batch_markdown, draw=draw_batches
    )
    lines = paths[1].read_text().split("## AdamW")[1]
    assert cells(lines, "| large, constant |")[2:6] == [
        "diverged",
        "+diverged",
        "–",
        "–",
    ]


def test_the_measured_noise_scale_stands_beside_the_batch(document):
    arms = document["optimizers"][1]["arms"]
    arms[-1]["scale_over_batch"] = [20.0, "inf"]
    text = batch_markdown(document)
    assert (
        "Muon: after the warm-up the measured noise scale over the batch is, in the "
        "median, 1.3 (adaptive, l2), 1.3 (adaptive, matched), inf (adaptive, alignment)"
    ) in text


def test_steps_are_shown_where_theta_was_tried(document):
    text = batch_markdown(document)
    assert "| Signum | small, constant | rate=0.01: 1.0000 |" in text
    assert "| Signum | adaptive, l2 | theta=0.6: 1.0000 in 30 steps |" in text
    assert "| Signum | replayed path | rate" not in text
