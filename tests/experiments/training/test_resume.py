import json
import math

import pytest

from experiments.training.resume import require_same_trajectory, trajectory_diff

SAVED = {
    "optimizer": {"learning_rate": 0.001, "name": "adamw"},
    "mesh": {"data": 4},
    "data": {"seq_len": 64, "prefetch": 8},
    "dims": (1, 2),
    "target": -math.inf,
    "unknown": math.nan,
}


def test_equal_after_a_round_trip_through_json():
    assert trajectory_diff(json.loads(json.dumps(SAVED)), SAVED, ()) == []


def test_one_line_per_field_in_order():
    current = SAVED | {
        "optimizer": {"learning_rate": 0.002, "name": "lion"},
        "dims": (1, 3),
    }
    assert trajectory_diff(SAVED, current, ()) == [
        "optimizer.learning_rate: 0.001 -> 0.002",
        "optimizer.name: 'adamw' -> 'lion'",
        "dims: [1, 2] -> [1, 3]",
    ]


def test_fields_that_only_one_side_has():
    assert trajectory_diff({"a": 1, "b": 2}, {"b": 2, "c": {"d": 3}}, ()) == [
        "a: 1 -> (absent)",
        "c.d: (absent) -> 3",
    ]


def test_free_names_are_fields_or_whole_groups_but_not_beginnings_of_words():
    current = SAVED | {
        "mesh": {"data": 8},
        "data": {"seq_len": 64, "prefetch": 2},
    }
    assert trajectory_diff(SAVED, current, ("mesh", "data.prefetch")) == []
    assert trajectory_diff({"meshes": 1}, {"meshes": 2}, ("mesh",)) != []


@pytest.mark.parametrize(
    ("before", "after", "equal"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0.0, False, False),
        ("1", 1, False),
        ([], (), True),
        ([{"a": (1,)}], [{"a": [1]}], True),
        ({}, {}, True),
        (None, 0, False),
    ],
)
def test_what_counts_as_equal(before, after, equal):
    assert (trajectory_diff({"x": before}, {"x": after}, ()) == []) is equal


def test_the_error_lists_the_differences_and_what_is_free():
    with pytest.raises(ValueError) as error:
        require_same_trajectory({"seed": 0, "a": 1}, {"seed": 1, "a": 1}, ("mesh",))
    message = str(error.value)
    assert "  seed: 0 -> 1\n" in message
    assert "Free to change: mesh." in message
    assert "a: 1" not in message
    require_same_trajectory({"seed": 0}, {"seed": 0}, ())
