import json
import math

import numpy as np
import pytest

from experiments.reproduce.report import (
    arm_named,
    encode,
    findings,
    markdown,
    write_report,
)


def arm(name, label, finals, *, interior=True):
    """An arm whose curves fall from 8 to the given final losses, check by check."""
    curves = [[8.0, (8.0 + final) / 2, final] for final in finals]
    return {
        "name": name,
        "label": label,
        "best": {"optimizer.b1": 0.9, "learning_rate": 0.01},
        "interior": interior,
        "extensions": 0,
        "trials": [
            {"settings": {"optimizer.b1": 0.9}, "learning_rate": rate, "loss": loss}
            for rate, loss in ((0.01, 2.0), (0.005, 3.0), (0.02, math.inf))
        ],
        "loss": curves,
        "loss_y": curves,
        "tokens_per_s": [1000.0, 1200.0],
    }


@pytest.fixture
def document():
    return {
        "claim": "gpa_llama",
        "title": "A title",
        "provenance": {
            "command": "python -m experiments.reproduce gpa_llama",
            "date": "2026-01-31",
            "commit": "0123456789abcdef",
            "versions": {"jax": "0.10"},
            "machine": {
                "system": "Linux",
                "processor": "A processor",
                "cores": 2,
                "accelerators": [],
            },
        },
        "protocol": ["First sentence.", "Second sentence."],
        "total_steps": 30,
        "checks": [10, 20, 30],
        "baseline": "adamw",
        "comparisons": [{"subject": "gpa", "against": ["adamw", "adamw_ema"]}],
        "seeds": [1, 2],
        "tuning_seeds": [0],
        "arms": [
            arm("adamw", "AdamW", [4.0, 4.2]),
            arm("adamw_ema", "AdamW + EMA", [4.0, 4.1]),
            arm("gpa", "GPA", [0.1, 0.1]),
        ],
    }


def row_of(text, label):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {label} |")][
        :1
    ]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_is_made_from_the_stored_json(document, tmp_path):
    paths = write_report(document, tmp_path, "stem")
    assert [path.name for path in paths] == ["stem.json", "stem.md", "stem.png"]
    stored = json.loads(paths[0].read_text())
    assert paths[1].read_text() == markdown(stored)
    assert paths[2].stat().st_size > 10_000
    row = row_of(markdown(stored), "GPA")
    # AdamW ends at 4.1 on average; both curves of GPA are there (4.05) at step 20.
    assert row[1:] == [
        "b1=0.9, learning_rate=0.01",
        "3",
        "0.1000 ± 0.0000",
        "0.1000 ± 0.0000",
        "0.024",
        "20",
        "20 ± 0 (2/2)",
        "33.3 ± 0.0 %",
        "1100 ± 100",
    ]
    # One of AdamW's own two seeds does not reach their mean.
    assert row_of(markdown(stored), "AdamW")[7:9] == ["– (1/2)", "–"]


def test_the_report_says_how_it_was_made(document):
    text = markdown(encode(document))
    assert "`python -m experiments.reproduce gpa_llama`" in text
    assert "commit 0123456789ab;" in text and "jax 0.10" in text
    assert "* First sentence.\n* Second sentence." in text
    assert "| AdamW | b1=0.9 | 0.005: 3.0000, 0.01: 2.0000, 0.02: diverged |" in text


def test_a_gain_is_claimed_only_against_both_and_with_interior_rates(document):
    assert [finding.holds for finding in findings(document)] == [True, True, True]
    document["arms"][1]["interior"] = False
    verdicts = findings(document)
    assert [finding.holds for finding in verdicts] == [True, False, False]
    assert verdicts[-1].text == "A speed-up of GPA is not claimed from this run."


def test_a_loss_is_reported_as_it_is(document):
    document["arms"][2] = arm("gpa", "GPA", [5.0, 5.1])
    text = markdown(encode(document))
    assert "final loss +0.9500 ± 0.0500 (same seeds, paired; ratio 1.232)" in text
    assert "in 0 of 2 seeds, speed-up –; not shown" in text


def test_a_diverged_arm_stays_in_the_table_and_the_figure_is_drawn(document, tmp_path):
    document["arms"][2]["loss"] = [[8.0, 9.0, math.inf], [8.0, 4.0, 1.0]]
    document["arms"][2]["loss_y"] = document["arms"][2]["loss"]
    paths = write_report(document, tmp_path, "stem")
    row = row_of(paths[1].read_text(), "GPA")
    assert row[3] == "diverged" and row[7] == "– (1/2)"
    stored = json.loads(paths[0].read_text())
    assert stored["arms"][2]["loss"][0][2] == "inf"


def test_an_arm_that_is_part_of_another_is_not_tuned_twice(document):
    part = arm("gpa_fixed", "GPA, fixed", [0.1, 0.1]) | {"part_of": "gpa"}
    document["arms"].append(part)
    text = markdown(encode(document))
    assert text.count("| GPA, fixed |") == 1


def test_acceptance_figures_are_met_or_not(document):
    document["acceptance"] = [
        {"text": "ratio", "measured": "0.5", "met": True},
        {"text": "steps", "measured": "never", "met": False},
    ]
    text = markdown(encode(document))
    assert "* ratio: 0.5 — met" in text and "* steps: never — NOT met" in text


def test_an_unknown_arm_is_named(document):
    with pytest.raises(ValueError, match="no arm named 'lion'; there are adamw, "):
        arm_named(document, "lion")


def test_numbers_are_encoded_as_plain_json():
    value = {"a": np.float32(1.5), "b": (np.int64(2), math.nan), "c": np.ones(2)}
    assert encode(value) == {"a": 1.5, "b": [2, "nan"], "c": [1.0, 1.0]}
    assert json.loads(json.dumps(encode(-math.inf))) == "-inf"
