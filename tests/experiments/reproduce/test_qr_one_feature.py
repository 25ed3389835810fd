import functools

import numpy as np
import pytest

from experiments.data.planted import one_feature_world
from experiments.reproduce import qr_one_feature
from experiments.reproduce.claims import Options, reproduce
from experiments.reproduce.embedding_arms import embedding_arms
from experiments.reproduce.embedding_protocol import OnePass, train_and_predict
from experiments.reproduce.qr_one_feature import (
    acceptance,
    best_additive_log_odds,
    build_document,
    least_loss,
    linear_learner,
)
from experiments.reproduce.report import write_files

ARMS = {arm.name: arm for arm in embedding_arms()}
WORLD = one_feature_world()


def test_the_best_sum_matches_the_rate_of_every_class():
    """Optimality: expected and predicted clicks agree for each f and each g."""
    ids, mass = np.arange(1000), WORLD.popularity(0)
    true = WORLD.logits(ids[:, None])
    best = best_additive_log_odds(WORLD, 8)
    excess = mass * (1.0 / (1.0 + np.exp(-best)) - 1.0 / (1.0 + np.exp(-true)))
    for part in (ids // 8, ids % 8):
        np.testing.assert_allclose(np.bincount(part, excess), 0.0, atol=1e-12)
    table = best.reshape(125, 8)
    np.testing.assert_allclose(table - table[0], (table - table[0])[:, :1] + 0 * table)
    # With c = 1 a sum can take any value.
    np.testing.assert_allclose(best_additive_log_odds(WORLD, 1), true, atol=1e-9)


def test_floors_are_the_closed_forms():
    floor = functools.partial(least_loss, WORLD)
    np.testing.assert_allclose(floor(ARMS["full"]), 0.467586, atol=1e-6)
    for name, loss in (("c2", 0.510307), ("c4", 0.549662), ("c16", 0.592891)):
        np.testing.assert_allclose(floor(ARMS[f"hash_{name}"]), loss, atol=1e-6)
        assert floor(ARMS[f"qr_mult_{name}"]) == floor(ARMS["full"])
        assert floor(ARMS[f"qr_add_{name}"]) == floor(ARMS[f"features_{name}"])
    # A sum of both sees more than the quotient alone.
    assert 0.467586 < floor(ARMS["qr_add_c4"]) < 0.549609
    assert floor(ARMS["path_c4"]) is None and floor(ARMS["crt_k2"]) is None


def test_a_linear_read_out_of_a_sum_is_additive():
    """Its logits have no interaction of quotient and remainder, those of mult do."""
    every_id = qr_one_feature.ClickRows(
        np.arange(1000)[:, None], np.zeros((1000, 0)), np.zeros(1000)
    )
    generator = np.random.default_rng(0)
    rows = qr_one_feature.ClickRows(
        generator.integers(0, 1000, (300, 1)),
        np.zeros((300, 0)),
        (generator.random(300) < 0.5).astype(np.float32),
    )
    for name, additive in (("qr_add_c4", True), ("qr_mult_c4", False)):
        one_pass = OnePass(batch_size=100, learning_rate=0.1)
        learner = linear_learner(ARMS[name].table(1000, 0), one_pass)
        trained = train_and_predict(learner, one_pass, rows, every_id, (1000,), (0,))
        z = trained.logits[0].reshape(250, 4)
        mixed = z - z.mean(axis=0) - z.mean(axis=1, keepdims=True) + z.mean()
        assert (np.abs(mixed).max() < 1e-5) == additive


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    options = Options("qr_one_feature", steps=400, seeds=(0,), output_dir=folder)
    names = ("hash_c4", "qr_mult_c4")
    return build_document(options, [ARMS[name] for name in names]), folder


def test_a_quarter_of_the_pass_already_tells_them_apart(short):
    document, _ = short
    (panel,) = document["panels"]
    found = {arm["name"]: arm for arm in panel["arms"]}
    for arm in panel["arms"]:
        assert arm["loss"][0] > arm["floor"]
    assert found["qr_mult_c4"]["loss"][0] + 0.05 < found["hash_c4"]["loss"][0]
    assert found["qr_mult_c4"]["params"] == 16 * 254 + 17
    assert [item["met"] for item in acceptance(document)][1:] == [True, True]


def test_files_are_written_and_finished_runs_found_again(short, tmp_path, monkeypatch):
    document, folder = short
    monkeypatch.setattr(qr_one_feature, "train_and_predict", None)
    options = Options(
        "qr_one_feature",
        steps=400,
        seeds=(0,),
        output_dir=folder,
        results_dir=tmp_path,
    )
    arms = [ARMS[arm["name"]] for arm in document["panels"][0]["arms"]]
    again = build_document(options, arms)
    assert again["panels"] == document["panels"]
    text, draw = str, lambda document, path: path.touch()
    paths = write_files(again, tmp_path, options.result_name, text=text, draw=draw)
    assert paths[0].name == "qr_one_feature_seeds_0_steps_400.json"


def test_too_many_steps_are_refused():
    with pytest.raises(ValueError, match="steps must be at most 1563"):
        reproduce(Options("qr_one_feature", steps=1564))
