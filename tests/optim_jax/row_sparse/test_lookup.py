import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.row_sparse import lookup, unique_rows

TABLE = jnp.arange(1.0, 11.0).reshape(5, 2)


def test_distinct_rows_ascend_and_padding_continues():
    ids = jnp.asarray([7, 2, 7, 9, 2, 2], jnp.int32)
    rows, inverse = unique_rows(ids, 9, 6)
    np.testing.assert_array_equal(rows, [2, 7, 9, 10, 11, 12])
    # 9 is out of range: it finds a padding entry.
    np.testing.assert_array_equal(inverse, [1, 0, 1, 2, 0, 0])
    assert rows.dtype == inverse.dtype == jnp.int32


@pytest.mark.parametrize("seed", range(4))
def test_against_numpy(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 400, size=300).astype(np.int32)
    expected = np.unique(ids[ids < 350])
    for size in (len(expected), 300, 340):
        rows, inverse = jax.jit(unique_rows, static_argnums=(1, 2))(ids, 350, size)
        padding = 350 + np.arange(size - len(expected))
        np.testing.assert_array_equal(rows, np.concatenate([expected, padding]))
        rows, inverse = np.asarray(rows), np.asarray(inverse)
        inside = ids < 350
        np.testing.assert_array_equal(rows[inverse[inside]], ids[inside])
        np.testing.assert_array_equal(inverse[~inside], len(expected))


def test_padding_never_shares_an_entry_with_a_row():
    # All entries are taken by rows: the inverse of padding is out of range.
    rows, inverse = unique_rows(np.array([4, 5, 0, 99]), 5, 2)
    np.testing.assert_array_equal(rows, [0, 4])
    np.testing.assert_array_equal(inverse, [1, 2, 0, 2])


def test_too_small_a_size_drops_the_largest():
    rows, inverse = unique_rows(np.array([3, 1, 2]), 5, 2)
    np.testing.assert_array_equal(rows, [1, 2])
    np.testing.assert_array_equal(inverse, [2, 0, 1])


@pytest.mark.parametrize("ids", [[], [8], [-1, 8, 2**40]])
def test_without_a_real_id(ids):
    rows, inverse = unique_rows(np.array(ids, np.int64), 8, 3)
    np.testing.assert_array_equal(rows, [8, 9, 10])
    np.testing.assert_array_equal(inverse, [0] * len(ids))
    np.testing.assert_array_equal(unique_rows(np.array(ids, np.int64), 8, 0)[0], [])


def test_at_the_end_of_int32():
    n = 2**31 - 4
    rows, inverse = unique_rows(jnp.asarray([n - 1, n, n - 1, 2**31 - 1]), n, 4)
    np.testing.assert_array_equal(rows, [n - 1, n, n + 1, n + 2])
    np.testing.assert_array_equal(inverse, [0, 1, 0, 1])
    rows, _ = unique_rows(jnp.asarray([n]), n, 4)
    assert rows[-1] == 2**31 - 1
    with pytest.raises(ValueError, match=r"2147483644 rows and 5 ids need padding"):
        unique_rows(jnp.asarray([n]), n, 5)


def test_lookup_reads_rows_of_any_shape():
    rows = jnp.asarray([[4, 0, 1], [1, 1, 2]])
    np.testing.assert_array_equal(lookup(TABLE, rows), TABLE[rows])
    assert lookup(TABLE.astype(jnp.bfloat16), rows).dtype == jnp.bfloat16


@pytest.mark.parametrize("row", [5, 6, 2**31 - 1, -1, -5, -(2**31)])
def test_out_of_range_reads_zeros(row):
    # Plain indexing would read the last row for the former, and wrap the latter.
    assert not np.any(jax.jit(lookup)(TABLE, jnp.asarray([row], jnp.int32)))


def test_the_gradient_of_a_lookup_by_unique_rows_is_coalesced():
    ids = jnp.asarray([3, 0, 3, 7], jnp.int32)
    rows, inverse = unique_rows(ids, 5, 4)
    weights = jnp.asarray([1.0, 10.0, 100.0, 1000.0])

    def loss(picked):
        bags = picked.at[inverse].get(mode="fill", fill_value=0)
        return jnp.sum(weights[:, None] * bags)

    gradient = jax.grad(loss)(lookup(TABLE, rows))
    np.testing.assert_array_equal(gradient[:, 0], [10.0, 101.0, 1000.0, 0.0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.5], 3, 1), TypeError, "ids must be integers, got float64"),
        ((np.zeros((2, 2), int), 3, 1), ValueError, r"a vector, got shape \(2, 2\)"),
        (([0], 3, -1), ValueError, "must be >= 0, got num_rows 3 and size -1"),
        (([0], -3, 1), ValueError, "must be >= 0, got num_rows -3 and size 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        unique_rows(*arguments)


def test_lookup_refuses_what_are_not_integers():
    with pytest.raises(TypeError, match="rows must be integers, got bool"):
        lookup(TABLE, jnp.asarray([True]))
