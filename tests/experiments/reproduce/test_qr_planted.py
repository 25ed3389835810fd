import pytest

from experiments.reproduce import qr_planted
from experiments.reproduce.claims import Options, reproduce
from experiments.reproduce.embedding_arms import embedding_arms
from experiments.reproduce.embedding_report import embedding_markdown
from experiments.reproduce.qr_planted import ARMS, acceptance, build_document


def document(dot, cat, floor=0.515):
    """Losses on two seeds of full, hash and QR mult, for both interactions."""
    panels = []
    for name, losses in (("dot", dot), ("cat", cat)):
        arms = [
            {"name": arm, "loss": list(loss)}
            for arm, loss in zip(("full", "hash_c4", "qr_mult_c4"), losses, strict=True)
        ]
        panels.append(
            {"name": name, "label": name, "arms": arms, "floor": {"loss": floor}}
        )
    return {"panels": panels}


GOOD = ((0.560, 0.561), (0.588, 0.589), (0.570, 0.571))


def met(dot=GOOD, cat=GOOD, **settings):
    return [item["met"] for item in acceptance(document(dot, cat, **settings))]


def test_acceptance_asks_for_a_gap_an_order_and_no_miracles():
    assert met() == [True] * 5
    small = (GOOD[0], (0.582, 0.583), GOOD[2])  # a gap of 0.012
    assert met(dot=small, cat=small) == [True, True, False, True, True]
    one_seed = (GOOD[0], (0.620, 0.570), GOOD[2])  # the second seed is negative
    assert met(dot=one_seed) == [False, True, True, True, True]
    worse = ((0.572, 0.573), GOOD[1], GOOD[2])
    assert met(cat=worse) == [True, True, True, False, True]
    assert met(floor=0.5605) == [True] * 5
    assert met(floor=0.5615)[-1] is False


def test_both_interactions_have_all_methods():
    assert list(ARMS) == ["dot", "cat"]
    assert len(ARMS["dot"]) == 37 and ARMS["dot"] == ARMS["cat"]


def test_a_short_run_gives_a_whole_document(tmp_path, monkeypatch):
    monkeypatch.setattr(qr_planted, "TRAIN_ROWS", 2_000)
    monkeypatch.setattr(qr_planted, "TEST_ROWS", 500)
    monkeypatch.setattr(qr_planted, "acceptance", lambda document: [])
    options = Options("qr_planted", steps=2, seeds=(0,), output_dir=tmp_path)
    made = build_document(options, {"dot": embedding_arms()[:1]})
    (panel,) = made["panels"]
    (arm,) = panel["arms"]
    assert arm["table_params"] == 80_320 and panel["name"] == "dot"
    assert panel["floor"]["loss"] < arm["loss"][0] < 1.0
    assert "expected log loss" in embedding_markdown(made)


def test_too_many_steps_are_refused():
    with pytest.raises(ValueError, match="steps must be at most 1563"):
        reproduce(Options("qr_planted", steps=1564))
