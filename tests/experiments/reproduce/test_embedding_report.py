import json
import math

import numpy as np
import pytest

from experiments.reproduce.embedding_figure import draw_embeddings
from experiments.reproduce.embedding_report import (
    embedding_markdown,
    mean_and_deviation,
    order_row,
    paired_difference,
    panel_named,
)
from experiments.reproduce.report import write_files


def arm(name, params, loss, *, family=None, peer="", variation=False, **fields):
    return {
        "name": name,
        "label": name.replace("_", " "),
        "family": family or name,
        "peer": peer,
        "variation": variation,
        "table_params": params,
        "params": params + 10,
        "loss": loss,
        "auc": [0.75] * len(loss),
        **fields,
    }


@pytest.fixture
def document():
    arms = [
        arm("full", 8000, [0.50, 0.52, 0.51]),
        arm("hash", 2000, [0.60, 0.63, 0.62]),
        arm("qr_mult", 2000, [0.55, 0.57, 0.56], peer="hash"),
        arm("qr_add", 2000, [0.61, 0.62, 0.62], peer="hash"),
        arm(
            "qr_mult_t0",
            1600,
            [0.56, 0.57, 0.58],
            family="qr_mult",
            peer="hash",
            variation=True,
        ),
    ]
    return {
        "claim": "qr_planted",
        "title": "A title",
        "provenance": {
            "command": "python -m experiments.reproduce qr_planted",
            "date": "2026-01-31",
            "commit": "0123456789abcdef",
            "versions": {"jax": "0.10"},
            "machine": {"processor": "A processor", "cores": 2, "accelerators": []},
        },
        "protocol": ["First sentence."],
        "seeds": [0, 1, 2],
        "drawn": [
            {"panel": "dot", "metric": metric, "label": "a metric"}
            for metric in ("loss", "auc")
        ],
        "hollow": "other thresholds",
        "metrics": [
            {"name": "loss", "label": "expected log loss"},
            {"name": "auc", "label": "AUC"},
        ],
        "panels": [
            {
                "name": "dot",
                "label": "dot interaction",
                "floor": {"label": "Bayes", "loss": 0.49},
                "arms": arms,
            }
        ],
        "orders": [order("qr_mult", "hash")],
        "orders_text": "Two orders",
        "acceptance": [{"text": "A figure", "measured": "1", "met": False}],
        "notes": ["A note.", "Another."],
    }


def order(lower, higher, metric="loss"):
    return {"panel": "dot", "metric": metric, "lower": lower, "higher": higher}


def cells(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_report_is_made_from_the_stored_json(document, tmp_path):
    paths = write_files(
        document, tmp_path, "stem", text=embedding_markdown, draw=draw_embeddings
    )
    stored = json.loads(paths[0].read_text())
    text = paths[1].read_text()
    assert text == embedding_markdown(stored) and paths[2].stat().st_size > 10_000
    assert cells(text, "| qr mult |") == [
        "qr mult",
        "2,000",
        "4.0",
        "0.5600 ± 0.0100",
        "0.7500 ± 0.0000",
        "-0.0567 ± 0.0033",
    ]
    assert cells(text, "| full |")[-1] == ""
    assert "A figure: 1 — NOT met" in text and "A note. Another." in text
    assert "Bayes: 0.4900." in text and "least possible" not in text


def test_the_least_possible_loss_is_shown_where_one_is_known(document, tmp_path):
    document["panels"][0]["arms"][0]["floor"] = 0.48
    text = embedding_markdown(document)
    assert cells(text, "| embedding |")[5] == "least possible loss"
    assert cells(text, "| full |")[5] == "0.4800"
    assert cells(text, "| hash |")[5] == ""
    draw_embeddings(document, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("lower", "higher", "verdict"),
    [
        ("qr_mult", "hash", "reproduced"),
        ("hash", "qr_mult", "NOT reproduced: the other way round"),
        # -0.01, +0.01, 0: its mean is within two standard errors of zero.
        ("hash", "qr_add", "not reproduced: not told apart"),
    ],
)
def test_an_order_holds_beyond_two_standard_errors_only(
    document, lower, higher, verdict
):
    assert order_row(document, order(lower, higher))[-1] == verdict


def test_an_order_shows_every_seed(document):
    assert order_row(document, order("qr_mult", "hash")) == [
        "dot interaction",
        "expected log loss",
        "qr mult",
        "hash",
        "+0.0567 ± 0.0033",
        "+0.0500, +0.0600, +0.0600",
        "reproduced",
    ]
    assert order_row(document, order("qr_mult", "hash", "auc"))[1] == "AUC"


def test_differences_are_paired_by_seed(document):
    found = paired_difference(panel_named(document, "dot"), "hash", "full")
    np.testing.assert_allclose(found.mean, (0.10 + 0.11 + 0.11) / 3)
    expected = np.std([0.10, 0.11, 0.11], ddof=1) / math.sqrt(3)
    np.testing.assert_allclose(found.standard_error, expected)


def test_a_diverged_run_is_shown_and_claims_nothing(document, tmp_path):
    arms = document["panels"][0]["arms"]
    arms[2]["loss"] = ["inf", 0.5, 0.5]
    text = embedding_markdown(document)
    assert cells(text, "| qr mult |")[3] == "diverged"
    assert "| reproduced |" not in text
    draw_embeddings(document, tmp_path / "figure.png")


def test_one_seed_has_no_spread(document, tmp_path):
    assert mean_and_deviation(np.array([0.5])) == "0.5000"
    for entry in document["panels"][0]["arms"]:
        entry["loss"], entry["auc"] = entry["loss"][:1], entry["auc"][:1]
    text = embedding_markdown(document)
    assert "not told apart" in text
    draw_embeddings(document, tmp_path / "figure.png")


def test_an_unknown_panel_lists_what_exists(document):
    with pytest.raises(ValueError, match="no panel named 'cat'; there are dot"):
        panel_named(document, "cat")
