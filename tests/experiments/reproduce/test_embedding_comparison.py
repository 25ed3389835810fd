import numpy as np
import pytest

from experiments.reproduce import embedding_comparison
from experiments.reproduce.claims import Options
from experiments.reproduce.embedding_arms import embedding_arms
from experiments.reproduce.embedding_comparison import (
    dlrm_configurations,
    expected_orders,
    model_sentences,
    panels_of,
    run_claim,
)
from experiments.reproduce.embedding_protocol import ClickRows, OnePass
from experiments.reproduce.qr_planted import ARMS as PLANTED_ARMS

ONE_PASS = OnePass(batch_size=128, learning_rate=0.05)


def test_configurations_run_through_the_panels_in_order():
    arms = {"dot": embedding_arms()[:2], "cat": embedding_arms()[:1]}
    rows = ClickRows(np.zeros((1, 2), int), np.zeros((1, 3)), np.zeros(1))
    found = dlrm_configurations(arms, (500, 60), ONE_PASS, rows, rows, dict)
    assert [(c.panel, c.arm.name) for c in found] == [
        ("dot", "full"),
        ("dot", "hash_c2"),
        ("cat", "full"),
    ]
    # The smaller table is below the threshold, and the perceptrons differ.
    assert [c.params["tables"] for c in found] == [8960, 16 * (252 + 60), 8960]
    bottom, shared = 3 * 16 + 16 + 16 * 16 + 16, 64 + 64 + 1
    assert found[0].params["total"] == 8960 + bottom + (16 + 3) * 64 + shared
    assert found[2].params["total"] == 8960 + bottom + 48 * 64 + shared


def test_entries_go_back_to_their_panels():
    arms = {"dot": embedding_arms()[:2], "cat": embedding_arms()[:1]}
    panels = panels_of(arms, [{"name": name} for name in "abc"])
    assert [(p["name"], p["arms"]) for p in panels] == [
        ("dot", [{"name": "a"}, {"name": "b"}]),
        ("cat", [{"name": "c"}]),
    ]


def test_orders_name_arms_of_their_panel():
    orders = expected_orders(PLANTED_ARMS, "loss")
    names = {arm.name for arm in PLANTED_ARMS["dot"]}
    assert len(orders) == 2 * 20
    for order in orders:
        assert {order["lower"], order["higher"]} <= names
    pairs = {(order["lower"], order["higher"]) for order in orders}
    assert {
        ("qr_mult_c16", "hash_c16"),
        ("qr_mult_c4", "qr_concat_c4"),
        ("full", "path_c4"),
        ("features_c4", "hash_c4"),
        ("qr_mult_c4", "qr_mult_c4_t0"),
    } <= pairs
    few = expected_orders({"cat": embedding_arms(collisions=(4,), parts=())}, "auc")
    assert len(few) == 3 + 2 + 1 + 4
    assert {order["metric"] for order in few} == {"auc"}


def test_the_protocol_names_the_numbers_it_was_run_with():
    text = " ".join(model_sentences(5, ONE_PASS))
    for part in ("5-16-16", "64-1", "at most 100 rows", "0.05", "batches of 128"):
        assert part in text


def test_a_dry_run_builds_nothing(capsys, monkeypatch, tmp_path):
    written = []

    def write_files(document, folder, stem, *, text, draw):
        written.append((document, folder, stem, text))
        return [folder / f"{stem}.md"]

    monkeypatch.setattr(embedding_comparison, "write_files", write_files)
    monkeypatch.setattr(embedding_comparison, "embedding_markdown", str.title)
    dry = Options("qr_planted", dry_run=True, results_dir=tmp_path)
    run_claim(dry, ["one", "two"], lambda: pytest.fail("built"))
    assert capsys.readouterr().out == "one\ntwo\n" and not written
    run_claim(Options("qr_planted", results_dir=tmp_path), [], lambda: "a report")
    assert written == [("a report", tmp_path, "qr_planted", str.title)]
    assert capsys.readouterr().out == (
        f"A Report\nwritten: {tmp_path / 'qr_planted.md'}\n"
    )
