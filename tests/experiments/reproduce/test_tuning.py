import math

import pytest

from experiments.reproduce.tuning import (
    Arm,
    Trial,
    best_trial,
    edge_extension,
    is_interior,
    require_separate_seeds,
    tune,
)


def bowl(optimum):
    """A loss that is lowest at `optimum`, on a logarithmic axis."""
    return lambda rate: 1.0 + math.log2(rate / optimum) ** 2


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ({1.0: 3.0, 2.0: 2.0, 4.0: 1.0}, (8.0, "high")),
        ({1.0: 1.0, 2.0: 2.0, 4.0: 3.0}, (0.5, "low")),
        ({1.0: 3.0, 2.0: 1.0, 4.0: 2.0}, (None, "interior")),
        ({1.0: 3.0, 2.0: 2.0, 4.0: math.inf}, (None, "interior")),
        ({1.0: 3.0, 2.0: 2.0, 4.0: math.nan}, (None, "interior")),
        ({1.0: math.inf, 2.0: math.inf}, (0.5, "low")),
        ({1.0: 3.0}, (0.5, "low")),
    ],
)
def test_a_grid_grows_where_its_best_lies_at_an_edge(losses, expected):
    assert edge_extension(losses, 2.0) == expected


@pytest.mark.parametrize("factor", [1.0, 0.5, math.nan])
def test_the_grid_factor_must_exceed_one(factor):
    with pytest.raises(ValueError, match=f"factor must be > 1, got {factor}"):
        edge_extension({1.0: 1.0}, factor)


def test_diverged_trials_come_last_and_ties_go_to_the_smallest_rate():
    a, b, c = (Trial("a", 0, rate) for rate in (1.0, 2.0, 4.0))
    assert best_trial({a: math.nan, b: 2.0, c: math.inf}) == b
    assert best_trial({c: math.inf, b: math.nan, a: math.inf}) == a
    assert best_trial({c: 1.0, b: 1.0}) == b


class Recorder:
    """Evaluates trials by a function of arm, variant and rate, and counts them."""

    def __init__(self, functions):
        self.functions = functions
        self.rounds = []

    def __call__(self, trials):
        self.rounds.append(list(trials))
        return {
            trial: self.functions[trial.arm, trial.variant](trial.learning_rate)
            for trial in trials
        }


def test_arms_extend_their_best_variant_until_it_is_interior():
    arms = (Arm("near", "", ({}, {})), Arm("far", "", ({}, {})))
    evaluate = Recorder(
        {
            ("near", 0): bowl(2.0),
            ("near", 1): lambda rate: 9.0,
            ("far", 0): lambda rate: 9.0,
            ("far", 1): bowl(16.0),
        }
    )
    losses = tune(arms, (1.0, 2.0, 4.0), evaluate, factor=2.0, extensions=5)
    # The first round goes to the evaluation together, so that it can run in parallel.
    assert [len(trials) for trials in evaluate.rounds] == [12, 1, 1, 1]
    assert len(losses["near"]) == 6
    assert {t.learning_rate for t in losses["far"] if t.variant == 1} == {
        1.0,
        2.0,
        4.0,
        8.0,
        16.0,
        32.0,
    }
    assert best_trial(losses["far"]) == Trial("far", 1, 16.0)
    assert is_interior(losses["far"], 2.0) and is_interior(losses["near"], 2.0)


def test_every_arm_has_the_same_allowance_and_an_edge_is_reported():
    arms = (Arm("a", "", ({},)), Arm("b", "", ({},)))
    evaluate = Recorder({("a", 0): bowl(2.0), ("b", 0): bowl(1e6)})
    losses = tune(arms, (1.0, 2.0, 4.0), evaluate, extensions=2)
    assert max(t.learning_rate for t in losses["b"]) == 16.0
    assert len(losses["b"]) == 5
    assert not is_interior(losses["b"], 2.0)


def test_equalised_arms_end_with_the_same_number_of_configurations():
    arms = (Arm("a", "", ({},)), Arm("b", "", ({},)))
    evaluate = Recorder({("a", 0): bowl(2.0), ("b", 0): bowl(8.0)})
    losses = tune(arms, (1.0, 2.0, 4.0), evaluate, extensions=4, equalise=True)
    assert len(losses["a"]) == len(losses["b"]) == 5
    assert all(is_interior(found, 2.0) for found in losses.values())
    # Padding stays beside the optimum: nearer edge first, then the other one.
    assert sorted(t.learning_rate for t in losses["a"]) == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_unequal_numbers_of_variants_are_refused():
    arms = (Arm("a", "", ({},)), Arm("b", "", ({}, {})))
    with pytest.raises(ValueError, match="same number .* got {'a': 1, 'b': 2}"):
        tune(arms, (1.0,), Recorder({}))


@pytest.mark.parametrize(
    ("tuning", "reporting", "message"),
    [
        ((0, 1), (1, 2), r"must not be among the reporting seeds, got \[1\]"),
        ((), (1,), "tuning seeds must name at least one"),
        ((0,), (), "reporting seeds must name at least one"),
        ((0,), (1, 1), r"reporting seeds must differ, got \[1, 1\]"),
    ],
)
def test_tuning_and_reporting_seeds_stay_apart(tuning, reporting, message):
    with pytest.raises(ValueError, match=message):
        require_separate_seeds(tuning, reporting)
