import pytest

from experiments.reproduce import pblbfgs_network
from experiments.reproduce.claims import Options, reproduce
from experiments.reproduce.pblbfgs_network import ARMS, NetworkRuns, build_document
from experiments.reproduce.pblbfgs_network_report import TUNED_ADAM, network_markdown


class Training:
    """Stands for all training: the loss tells which run it was."""

    asked: list = []

    def __init__(self, data, overlap, epochs):
        self.overlap, self.epochs = overlap, epochs
        assert len(data.train.labels) == 1400

    def run(self, seed):
        return mini_batches(None, self.overlap, 0.02, seed, self.epochs)


def mini_batches(data, name, rate, seed, epochs):
    Training.asked.append((name, rate, seed))
    loss = abs(rate - (0.003 if name == "adam" else 0.3)) + (1 + seed) / 1e6
    return {
        "loss": [1.0] * (epochs - 1) + [float("nan") if rate == 3.0 else loss],
        "accuracy": [0.9] * epochs,
        "batch_size": [64] * epochs,
        "updates": 10,
        "seconds": 0.1,
        "reason": "max_epochs",
    }


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(pblbfgs_network, "ProgressiveTraining", Training)
    monkeypatch.setattr(pblbfgs_network, "run_mini_batches", mini_batches)
    Training.asked = []


def test_rates_are_chosen_on_the_tuning_seeds_and_runs_are_shared(tmp_path):
    options = Options("pblbfgs_network", output_dir=tmp_path)
    document = build_document(options)
    arms = {arm["name"]: arm for arm in document["arms"]}
    assert arms[TUNED_ADAM]["learning_rate"] == 0.003 and arms[TUNED_ADAM]["interior"]
    assert arms[TUNED_ADAM]["label"] == "Adam, tuned (0.003)"
    assert arms["sgd_tuned"]["learning_rate"] == 0.3
    assert arms["sgd_tuned"]["trials"][-1] == {
        "learning_rate": 3.0,
        "loss": float("inf"),
    }
    tuned = [asked for asked in Training.asked if asked[2] >= 100]
    assert len(tuned) == 3 * (4 + 5) and len(set(Training.asked)) == len(Training.asked)
    # PB-MB, PB-FO, three rates of Adam and one of SGD, five seeds each.
    assert len(Training.asked) - len(tuned) == 5 * 6
    assert ("multi", 0.02, 4) in Training.asked
    assert "| SGD, tuned (0.3) |" in network_markdown(document)
    Training.asked.clear()
    assert build_document(options)["arms"][0] == document["arms"][0]
    assert Training.asked == []


def test_an_edge_of_the_grid_is_told(tmp_path, monkeypatch):
    rates = {"adam": (0.003, 0.01), "sgd": (0.1, 0.3, 1.0)}
    monkeypatch.setattr(pblbfgs_network, "LEARNING_RATES", rates)
    options = Options("pblbfgs_network", output_dir=tmp_path, seeds=(0,), steps=2)
    document = build_document(options)
    interior = {a["name"]: a["interior"] for a in document["arms"] if "trials" in a}
    assert interior == {TUNED_ADAM: False, "sgd_tuned": True}
    assert "Adam, tuned (0.003) (at an edge of the grid)" in network_markdown(document)
    assert options.result_name == "pblbfgs_network_seeds_0_steps_2"


def test_a_solver_is_made_for_missing_runs_only(tmp_path, monkeypatch):
    options = Options("pblbfgs_network", output_dir=tmp_path, seeds=(0, 1), steps=1)
    data = pblbfgs_network.load_digit_rows()
    NetworkRuns(data, 1, options).entry(ARMS[0])
    monkeypatch.setattr(pblbfgs_network, "ProgressiveTraining", None)
    entry = NetworkRuns(data, 1, options).entry(ARMS[0])
    assert len(entry["runs"]) == 2 and entry["learning_rate"] is None


def test_the_plan_says_what_is_not_claimed_to_be_tuned(capsys):
    reproduce(Options("pblbfgs_network", dry_run=True))
    plan = capsys.readouterr().out
    assert "Nothing is tuned, no learning rate exists." in plan and "30 epochs" in plan
    with pytest.raises(ValueError, match="--override of pblbfgs_network must be left"):
        reproduce(Options("pblbfgs_network", overrides=("a=b",)))
