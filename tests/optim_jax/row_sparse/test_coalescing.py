import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.row_sparse.coalescing import (
    LARGEST_INDEX,
    check_index_range,
    coalesce,
    last_occurrence,
    row_numbers,
)

ROWS = 1000


def _last(ids, num_rows):
    """By a dictionary."""
    last = {row: position for position, row in enumerate(ids)}
    return [last[row] if row < num_rows else len(ids) for row in ids]


@pytest.mark.parametrize("seed", range(3))
def test_last_occurrence_is_that_of_a_dictionary(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, ROWS + 50, size=700).astype(np.int32)
    found = jax.jit(last_occurrence, static_argnums=1)(ids, ROWS)
    np.testing.assert_array_equal(found, _last(ids.tolist(), ROWS))


@pytest.mark.parametrize("step", [1, 2**16, 514229, 2**20])
def test_regular_ids_are_told_apart(step):
    # Progressions such as these collide under a plain product with a constant.
    ids = (np.arange(1500, dtype=np.int64) * step) % LARGEST_INDEX
    rows = jnp.asarray(np.concatenate([ids, ids[:10]]).astype(np.int32))
    found = jax.jit(last_occurrence, static_argnums=1)(rows, LARGEST_INDEX)
    np.testing.assert_array_equal(found, _last(rows.tolist(), LARGEST_INDEX))


@pytest.mark.parametrize("ids", [[], [0], [5, 5, 5], [9, 9], [2**31 - 1]])
def test_last_occurrence_of_few_ids(ids):
    found = last_occurrence(jnp.asarray(ids, jnp.int32), 9)
    np.testing.assert_array_equal(found, _last(ids, 9))


def test_rows_are_distinct_and_sums_complete():
    rng = np.random.default_rng(1)
    ids = jnp.asarray(rng.integers(0, 60, size=200), jnp.int32)
    values = jnp.asarray(rng.integers(-9, 9, size=(200, 3)), jnp.float32)
    rows, sums = coalesce(ids, values, 50)
    assert len(np.unique(rows)) == 200
    dense = np.zeros((60, 3))
    np.add.at(dense, np.asarray(ids), np.asarray(values))
    kept = np.asarray(rows) < 50
    assert set(np.asarray(rows)[kept]) == {row for row in ids.tolist() if row < 50}
    np.testing.assert_array_equal(sums[kept], dense[np.asarray(rows)[kept]])
    np.testing.assert_array_equal(sums[~kept], 0.0)


def test_sums_are_taken_in_the_order_of_occurrence():
    values = jnp.asarray([1.0, 1e8, -1e8, 3.0], jnp.float32)
    rows, sums = coalesce(jnp.asarray([4, 4, 4, 4], jnp.int32), values, 9)
    one = np.float32
    expected = ((one(1.0) + one(1e8)) + one(-1e8)) + one(3.0)
    np.testing.assert_array_equal(rows, [9, 10, 11, 4])
    assert sums[3] == expected == 3.0


@pytest.mark.parametrize(
    "ids",
    [
        np.array([3, -1, 9, 10, 2**40, -(2**40)], np.int64),
        np.array([3, 200, 9, 10, 250, 99], np.uint8),
        np.array([3, 2**32 - 1, 9, 10, 2**31, 2**31 + 5], np.uint32),
        [3, -1, 9, 10, 11, -9],
    ],
    ids=["int64", "uint8", "uint32", "list"],
)
def test_out_of_range_is_one_number(ids):
    np.testing.assert_array_equal(row_numbers("ids", ids, 10), [3, 10, 9, 10, 10, 10])
    if getattr(ids, "itemsize", 8) < 8:
        traced = jax.jit(lambda ids: row_numbers("ids", ids, 10))(ids)
        np.testing.assert_array_equal(traced, [3, 10, 9, 10, 10, 10])


def test_narrow_ids_of_a_long_table():
    ids = jnp.asarray([-128, -1, 0, 127], jnp.int8)
    np.testing.assert_array_equal(row_numbers("ids", ids, 300), [300, 300, 0, 127])


@pytest.mark.parametrize(
    ("ids", "dtype"), [([1.0], "float64"), (jnp.asarray([True]), "bool")]
)
def test_ids_must_be_integers(ids, dtype):
    with pytest.raises(TypeError, match=f"ids must be integers, got {dtype}"):
        row_numbers("ids", ids, 3)


def test_padding_must_fit_into_int32():
    check_index_range(2**31 - 8, 8)
    with pytest.raises(ValueError, match="2147483641 rows and 8 ids.*split the table"):
        check_index_range(2**31 - 7, 8)
