import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.embeddings import (
    check_bags,
    lengths_from_offsets,
    offsets_from_lengths,
    segments_from_offsets,
)

# lengths, offsets, the bag of each id
CASES = [
    ([2, 0, 3], [0, 2, 2], [0, 0, 2, 2, 2]),
    ([0, 0, 1], [0, 0, 0], [2]),
    ([3, 0], [0, 3], [0, 0, 0]),
    ([1], [0], [0]),
    ([0, 0], [0, 0], []),
    ([], [], []),
]


@pytest.mark.parametrize(("lengths", "offsets", "segments"), CASES)
def test_forms_of_a_bag(lengths, offsets, segments):
    count = len(segments)
    found = offsets_from_lengths(lengths, count)
    assert found.tolist() == offsets and found.dtype == np.int64
    back = lengths_from_offsets(offsets, count)
    assert back.tolist() == lengths and back.dtype == np.int64
    if offsets:
        assert segments_from_offsets(np.asarray(offsets), count).tolist() == segments


@pytest.mark.parametrize(("lengths", "offsets", "segments"), CASES[:-1])
def test_forms_of_a_bag_inside_jit(lengths, offsets, segments):
    count = len(segments)
    found = jax.jit(offsets_from_lengths)(jnp.asarray(lengths))
    assert found.tolist() == offsets and found.dtype == jnp.int32
    back = jax.jit(lengths_from_offsets, static_argnums=1)(jnp.asarray(offsets), count)
    assert back.tolist() == lengths and back.dtype == jnp.int32
    bag = jax.jit(segments_from_offsets, static_argnums=1)(jnp.asarray(offsets), count)
    assert bag.tolist() == segments


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: offsets_from_lengths([1, -2, -3]),
            "lengths must be >= 0, got -2 for bag 1",
        ),
        (
            lambda: offsets_from_lengths([1, 2], 4),
            "lengths must sum to the number of ids 4, got 3",
        ),
        (lambda: offsets_from_lengths([[1]]), r"lengths must be a vector, .*\(1, 1\)"),
        (
            lambda: lengths_from_offsets([1, 2], 4),
            "offsets of table must start at 0, got 1",
        ),
        (
            lambda: lengths_from_offsets([0, 3, 2], 4),
            "must not decrease, got 2 for bag 2 after 3",
        ),
        (
            lambda: lengths_from_offsets(jnp.asarray([0, 5]), 4),
            "at most the number of ids 4, got 5",
        ),
        (lambda: lengths_from_offsets([], 4), "name no bag for 4 ids"),
        (
            lambda: check_bags(3, [[0]], [0]),
            r"ids of table must be a vector, got shape",
        ),
        (
            lambda: check_bags(3, [0, 1, 3], [0, 1, 1], "table 'shop'"),
            r"ids of table 'shop' must be in \[0, 3\), got 3 at place 2 \(bag 2\)",
        ),
        (
            lambda: check_bags(3, [0, -1, 3], [0, 1, 2]),
            r"in \[0, 3\), got -1 at place 1 \(bag 1\)",
        ),
        (
            lambda: check_bags(3, jnp.asarray([0, 7]), None),
            r"in \[0, 3\), got 7 at place 1 \(bag 1\)",
        ),
        (lambda: check_bags(3, [0], [[0]]), "offsets of table must be a vector"),
    ],
)
def test_bad_bags_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: offsets_from_lengths([1.0]), "lengths must be integers, got float64"),
        (lambda: lengths_from_offsets(jnp.ones(2), 4), "offsets of table must be int"),
        (lambda: check_bags(3, [0.0], [0]), "ids must be integers, got float64"),
        (lambda: check_bags(3, [True], [0]), "ids must be integers, got bool"),
        (lambda: check_bags(3, [0], [False]), "offsets of table must be integers"),
    ],
)
def test_only_integers(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_what_is_not_known_is_not_checked():
    def read(ids, offsets):
        ids, offsets = check_bags(3, ids, offsets)
        return ids + offsets[0]

    assert jax.jit(read)(jnp.asarray([5, -1]), jnp.asarray([1, 0])).tolist() == [6, 0]
    # The bag is not named where offsets are unknown, the id still is.
    read = jax.jit(lambda offsets: check_bags(3, [5], offsets)[1])
    with pytest.raises(ValueError, match="got 5 at place 0") as error:
        read(jnp.asarray([0]))
    assert "bag" not in str(error.value)
