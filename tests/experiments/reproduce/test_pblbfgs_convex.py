import pytest

from experiments.reproduce import pblbfgs_convex
from experiments.reproduce.claims import Options, reproduce
from experiments.reproduce.pblbfgs_arms import (
    CONVEX_ARMS,
    DEFAULTS,
    GAPS,
    PB_FO,
    PB_MB,
)
from experiments.reproduce.pblbfgs_convex import (
    arms_of,
    build_document,
    wider_seeds,
)
from experiments.reproduce.pblbfgs_convex_report import convex_markdown

OPTAX = "optax_lbfgs"
ARMS = [arm for arm in CONVEX_ARMS if arm.name in (PB_MB, PB_FO, OPTAX)]
ARMS += [CONVEX_ARMS[0]]


class FakeRuns:
    """Stands for solvers; remembers what was asked for."""

    compiled: list = []
    asked: list = []

    def __init__(self, problem, optimum, arm):
        self.arm = arm
        assert problem.num_samples == 569 and 0.066 < optimum < 0.067

    def compile(self):
        self.compiled.append(self.arm.name)

    def measure(self, seed, *, last_gap=0.0):
        self.asked.append((self.arm.name, seed, last_gap))
        found = {"epochs": [2.0, 6.0, 10.0 + seed, 18.0], "work": [9.0] * 4}
        if last_gap:
            return found
        return {
            **found,
            "seconds": [0.1] * 4,
            "init_seconds": 0.01,
            "curve": {"epochs": [0.0], "gap": [0.7], "batch_size": [0]},
            "reason": "certified",
            "grad_norm": 1e-9,
        }


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(pblbfgs_convex, "ProgressiveRuns", FakeRuns)
    FakeRuns.compiled, FakeRuns.asked = [], []
    return FakeRuns


def build(folder, seeds, **fields):
    options = Options("pblbfgs_convex", seeds=seeds, output_dir=folder, **fields)
    return build_document(options, ARMS, ["breast_cancer"])


def test_each_seed_once_and_twenty_of_the_unbiased_test(fake, tmp_path):
    document = build(tmp_path, (0, 1, 2, 3, 4))
    assert document["many_seeds"] == list(range(20))
    assert sorted(fake.compiled) == sorted(["full_batch", PB_MB, PB_FO])
    for name in (PB_MB, PB_FO):
        expected = [(name, seed, 0.0) for seed in range(5)]
        expected += [(name, seed, GAPS[-1]) for seed in range(20)]
        assert [asked for asked in fake.asked if asked[0] == name] == expected
    # All samples: no seed makes a difference.
    assert [a for a in fake.asked if a[0] == "full_batch"] == [("full_batch", 0, 0.0)]
    assert all(item["met"] for item in document["acceptance"])
    (problem,) = document["problems"]
    optax = next(arm for arm in problem["arms"] if arm["name"] == OPTAX)
    assert len(optax["runs"]) == 1 and optax["runs"][0]["reason"] == "certified"
    assert optax["runs"][0]["epochs"] == [7.0, 11.0, 14.0, 22.0]
    text = convex_markdown(document)
    assert "12.0 (10.0–14.0)" in text and "0 to 19" in text


def test_what_is_finished_is_neither_compiled_nor_run_again(fake, tmp_path):
    first = build(tmp_path, (0, 1))
    fake.asked.clear(), fake.compiled.clear()
    again = build(tmp_path, (1, 0))
    assert (fake.asked, fake.compiled) == ([], [])
    arms = [document["problems"][0]["arms"] for document in (first, again)]
    of_mb = [next(arm for arm in found if arm["name"] == PB_MB) for found in arms]
    assert of_mb[0]["runs"] == of_mb[1]["runs"][::-1]
    # Another seed: that one alone, and the wider set grows with it.
    build(tmp_path, (0, 1, 8))
    assert {asked[:2] for asked in fake.asked if asked[0] == PB_MB} == {
        (PB_MB, seed) for seed in (8, 9, 10, 11)
    }
    # Fewer epochs are other runs of what they could cut short.
    assert {arm.max_epochs for arm in arms_of(Options("pblbfgs_convex", steps=20))} == {
        20.0
    }


def test_wider_seeds_hold_those_that_are_reported():
    assert wider_seeds((0, 1, 2, 3, 4)) == tuple(range(20))
    assert wider_seeds((7,)) == (0, 1, 2, 3, 7)


def test_the_protocol_is_the_default():
    options = Options("pblbfgs_convex")
    assert (options.seeds, options.result_name) == ((0, 1, 2, 3, 4), "pblbfgs_convex")
    assert min(options.tuning_seeds) >= 100
    assert arms_of(options) == CONVEX_ARMS
    with pytest.raises(ValueError, match="tuning seeds must not be among the report"):
        Options("pblbfgs_convex", seeds=(100,))
    with pytest.raises(ValueError, match="--override of pblbfgs_convex must be left"):
        reproduce(Options("pblbfgs_convex", overrides=("a=b",)))


def test_the_best_step_of_sg_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(pblbfgs_convex, "SG_HORIZONS", (1.0,))
    calls = []

    class Tuning:
        learning_rate, interior, epochs = 0.125, True, 1.0
        values = {0.0625: 0.2, 0.125: 0.1, 0.25: float("inf")}

    def tune(problem, kind, **options):
        calls.append((kind, options["epochs"], tuple(options["seeds"])))
        return Tuning

    monkeypatch.setattr(pblbfgs_convex, "tune_learning_rate", tune)
    sgd = [arm for arm in arms_of(Options("pblbfgs_convex", steps=2))][-2:-1]
    mb, fo = (
        next(arm for arm in CONVEX_ARMS if arm.name == name) for name in (PB_MB, PB_FO)
    )
    monkeypatch.setattr(pblbfgs_convex, "ProgressiveRuns", FakeRuns)
    options = Options("pblbfgs_convex", seeds=(0,), output_dir=tmp_path, steps=2)
    for _ in range(2):
        document = build_document(options, [mb, fo, *sgd], ["breast_cancer"])
    assert calls == [("sgd", 1.0, (100, 101, 102)), ("sgd", 2.0, (100, 101, 102))]
    (problem,) = document["problems"]
    arm = problem["arms"][-1]
    assert (arm["name"], arm["note"]) == ("sgd", "2^-3")
    assert arm["runs"][0]["end_epochs"] == 2.0
    assert arm["tuning"]["gaps"]["0.25"] == "inf"
    assert problem["horizons"][0]["gap"] == pytest.approx(0.1 - 0.0663940698)


def test_the_plan_names_problems_and_the_library_defaults(capsys):
    reproduce(Options("pblbfgs_convex", dry_run=True))
    plan = capsys.readouterr().out
    assert "synthetic (7000 x 50)" in plan and "at most 200 epochs" in plan
    assert DEFAULTS in {arm.name for arm in CONVEX_ARMS}
    assert "library defaults" in plan
