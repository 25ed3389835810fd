"""The table after an update: which rows move, by how much, and at what cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim_jax.row_sparse import (
    lookup,
    row_wise_adagrad,
    sparse_adagrad,
    sparse_row_wise_adagrad,
    sparse_sgd,
    sparse_update,
    unique_rows,
    update_unique_rows,
)
from tests.optim_jax.row_sparse.reference import (
    OPTIONS,
    RULES,
    RowLoop,
    random_case,
    summed,
)

SHAPES = [(40, 5, 64), (1000, 16, 300), (3, 1, 50)]


def _loop(kind, table, lr):
    if kind == "sgd":
        return RowLoop(kind, table, lr)
    options = {**OPTIONS, "initial": OPTIONS["initial_accumulator_value"]}
    del options["initial_accumulator_value"]
    return RowLoop(kind, table, lr, **options)


def _compiled(rule):
    return jax.jit(lambda *args: sparse_update(rule, *args))


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_a_loop_over_rows(kind, shape):
    rows, width, length = shape
    rule = RULES[kind](0.3)
    step = _compiled(rule)
    for seed in range(4):
        table, _, _ = random_case(seed, rows=rows, width=width, length=length)
        loop = _loop(kind, table, 0.3)
        ours, state = jnp.asarray(table), rule.init(table)
        for batch in range(3):
            _, ids, values = random_case(
                10 * seed + batch,
                rows=rows,
                width=width,
                length=length,
                distinct=1 + 7 * seed,
            )
            ours, state = step(ours, state, ids, values)
            loop.update(ids, values)
        np.testing.assert_allclose(ours, loop.table, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(state.accumulator, loop.accumulator, rtol=2e-5)
        assert state.count == 3


@pytest.mark.parametrize("kind", RULES)
def test_what_no_id_names_keeps_its_bits(kind):
    rule = RULES[kind](0.3)
    table, ids, values = random_case(3, rows=200, width=4, length=60)
    table[7] = np.nan  # not even an addition of zero
    ids[ids == 7] = 8
    state = rule.init(table)
    noise = np.random.default_rng(0).random(state.accumulator.shape)
    state = state._replace(accumulator=jnp.asarray(noise, jnp.float32))
    after, after_state = _compiled(rule)(table, state, ids, values)
    untouched = ~summed(ids, values, 200)[1]
    assert 100 < untouched.sum() < 200
    before = jax.tree.map(np.asarray, (table, state.accumulator))
    changed = jax.tree.map(np.asarray, (after, after_state.accumulator))
    for old, new in zip(before, changed, strict=True):
        if old.size:
            np.testing.assert_array_equal(
                old[untouched].view(np.uint32), new[untouched].view(np.uint32)
            )


def test_row_wise_is_dense_row_wise_on_touched_rows():
    rule, dense = sparse_row_wise_adagrad(0.3), row_wise_adagrad(0.3)
    table, _, _ = random_case(0, rows=50, width=8, length=30)
    weights = jnp.asarray(table)
    state, dense_state = rule.init(table), dense.init(weights)
    step, dense_step = _compiled(rule), jax.jit(dense.update)
    for seed in range(3):
        _, ids, values = random_case(seed, rows=50, width=8, length=30)
        table, state = step(table, state, ids, values)
        gradient = jnp.zeros((50, 8)).at[ids].add(values, mode="drop")
        updates, dense_state = dense_step(gradient, dense_state)
        weights = optax.apply_updates(weights, updates)
    np.testing.assert_allclose(table, weights, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(state.accumulator, dense_state.accumulator, rtol=1e-6)


@pytest.mark.parametrize("lr", [0.125, 0.3])
def test_sgd_is_dense_sgd(lr):
    table, ids, values = random_case(1, rows=60, width=8, length=100)
    rule = sparse_sgd(lr)
    after, _ = _compiled(rule)(table, rule.init(table), ids, values)
    gradient = np.zeros((63, 8), np.float32)
    np.add.at(gradient, ids, values)  # in the order of occurrence
    expected = table + np.float32(-lr) * gradient[:60]
    np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("kind", RULES)
def test_the_order_of_ids_does_not_matter(kind):
    rule = RULES[kind](0.3)
    table, ids, values = random_case(5, rows=50, width=4, length=80)
    order = np.random.default_rng(0).permutation(80)
    step = _compiled(rule)
    one, one_state = step(table, rule.init(table), ids, values)
    other, other_state = step(table, rule.init(table), ids[order], values[order])
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        one_state.accumulator, other_state.accumulator, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("kind", RULES)
def test_the_same_arguments_give_the_same_bits(kind):
    rule = RULES[kind](0.3)
    table, ids, values = random_case(6, rows=3000, width=16, length=20_000, distinct=99)
    step = _compiled(rule)
    runs = [step(table, rule.init(table), ids, values) for _ in range(4)]
    for run in runs[1:]:
        jax.tree.map(np.testing.assert_array_equal, run, runs[0])


@pytest.mark.parametrize("kind", RULES)
def test_unique_rows_take_the_short_way(kind):
    rule = RULES[kind](0.3)
    table, ids, values = random_case(7, rows=50, width=4, length=80)
    rows, inverse = unique_rows(ids, 50, 80)
    sums = jnp.zeros_like(values).at[inverse].add(values, mode="drop")
    short = update_unique_rows(rule, table, rule.init(table), rows, sums)
    long = sparse_update(rule, table, rule.init(table), ids, values)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), short, long)


@pytest.mark.parametrize("bad", [50, 51, 2**31 - 1, -1, -50])
def test_out_of_range_ids_touch_nothing(bad):
    rule = sparse_row_wise_adagrad(0.3)
    table, _, _ = random_case(8, rows=50, width=4, length=2)
    values = jnp.full((2, 4), 1e6)
    ids = jnp.asarray([bad, bad], jnp.int32)
    after, state = _compiled(rule)(table, rule.init(table), ids, values)
    np.testing.assert_array_equal(after, table)
    np.testing.assert_array_equal(state.accumulator, 0.0)
    assert state.count == 1


def test_non_finite_gradients_stay_in_their_row_and_padding_is_ignored():
    rule, table = sparse_row_wise_adagrad(0.3), jnp.ones((4, 2))
    values = jnp.asarray([[np.nan, 1.0], [1.0, 1.0], [np.inf, np.nan]])
    ids = jnp.asarray([2, 0, 4])
    after, _ = sparse_update(rule, table, rule.init(table), ids, values)
    np.testing.assert_array_equal(np.isfinite(after).all(axis=1), [1, 1, 0, 1])


def test_fused_tables_are_updated_like_single_ones():
    rule = sparse_row_wise_adagrad(0.3)
    sizes, bases = (5, 30, 12), (0, 5, 35)
    cases = [random_case(s, rows=n, width=4, length=40) for s, n in enumerate(sizes)]
    fused = np.concatenate([table for table, _, _ in cases])
    # The padding of a table must leave the fused one, not reach the next table.
    ids = [
        np.where(ids < n, ids + base, len(fused))
        for (_, ids, _), n, base in zip(cases, sizes, bases, strict=True)
    ]
    values = np.concatenate([values for _, _, values in cases])
    after, state = sparse_update(
        rule, fused, rule.init(fused), np.concatenate(ids), values
    )
    for (table, ids, values), n, base in zip(cases, sizes, bases, strict=True):
        alone = sparse_update(rule, table, rule.init(table), ids, values)
        np.testing.assert_allclose(after[base : base + n], alone[0], rtol=1e-6)
        np.testing.assert_allclose(
            state.accumulator[base : base + n], alone[1].accumulator, rtol=1e-6
        )


@pytest.mark.parametrize("kind", ["sgd", "row_wise"])
def test_micro_batches_are_one_batch_when_concatenated(kind):
    rule = RULES[kind](0.3)
    table, ids, values = random_case(9, rows=30, width=4, length=60)
    whole = sparse_update(rule, table, rule.init(table), ids, values)
    parts = [(ids[k::3], values[k::3]) for k in range(3)]
    ids, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    joined = sparse_update(rule, table, rule.init(table), ids, values)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        whole,
        joined,
    )


def test_lengths_padded_to_buckets_compile_once_each():
    rule = sparse_row_wise_adagrad(0.3)
    traces = []

    @jax.jit
    def step(table, state, ids, values):
        traces.append(ids.shape)
        return sparse_update(rule, table, state, ids, values)

    rng = np.random.default_rng(0)
    table, _, _ = random_case(0, rows=90, width=4, length=1)
    state, loop = rule.init(table), RowLoop("row_wise", table, 0.3)
    for _ in range(100):
        length = int(rng.integers(1, 65))
        bucket = max(8, 1 << (length - 1).bit_length())
        ids, values = np.full(bucket, 90, np.int32), np.ones((bucket, 4), np.float32)
        ids[:length] = rng.integers(0, 90, size=length)
        values[:length] = rng.normal(size=(length, 4))
        table, state = step(table, state, ids, values)
        loop.update(ids, values)
    assert len(traces) == len({8, 16, 32, 64})
    np.testing.assert_allclose(table, loop.table, rtol=1e-4, atol=1e-5)


def test_half_precision_tables_keep_float32_statistics():
    rule = sparse_row_wise_adagrad(0.3)
    table, ids, values = random_case(2, rows=20, width=4, length=40)
    half = jnp.asarray(table, jnp.bfloat16)
    after, state = sparse_update(rule, half, rule.init(half), ids, values)
    full, full_state = sparse_update(rule, table, rule.init(table), ids, values)
    assert after.dtype == jnp.bfloat16 and state.accumulator.dtype == jnp.float32
    np.testing.assert_array_equal(state.accumulator, full_state.accumulator)
    np.testing.assert_allclose(after.astype(jnp.float32), full, rtol=2e-2, atol=2e-2)


def test_tables_of_other_ranks_and_without_ids():
    rule = sparse_row_wise_adagrad(0.5, eps=0.0)
    weights, ids = jnp.zeros(3), jnp.asarray([2, 2])
    after, _ = sparse_update(rule, weights, rule.init(weights), ids, jnp.ones(2))
    np.testing.assert_array_equal(after, [0.0, 0.0, -0.5])
    nothing = jnp.zeros((0,), jnp.int32)
    after, state = sparse_update(
        rule, weights, rule.init(weights), nothing, jnp.zeros(0)
    )
    np.testing.assert_array_equal(after, weights)
    assert state.count == 1


def test_double_precision(x64):
    rule = sparse_row_wise_adagrad(0.3, eps=1e-9, lr_decay=0.1)
    table, ids, values = random_case(4, rows=20, width=4, length=30)
    loop = RowLoop("row_wise", table, 0.3, eps=1e-9, lr_decay=0.1)
    table = jnp.asarray(table, jnp.float64)
    after, state = sparse_update(rule, table, rule.init(table), ids, values)
    loop.update(ids, values)
    np.testing.assert_allclose(after, loop.table, rtol=1e-14)
    assert state.accumulator.dtype == jnp.float64


# Refusals.


TABLE = jnp.zeros((5, 2))


@pytest.mark.parametrize(
    ("ids", "values", "error", "message"),
    [
        ([0.0], np.ones((1, 2)), TypeError, "ids must be integers, got float64"),
        ([True], np.ones((1, 2)), TypeError, "ids must be integers, got bool"),
        ([[0]], np.ones((1, 1, 2)), ValueError, r"ids must be a vector, got shape"),
        ([0], np.ones((2, 2)), ValueError, r"shape \(1, 2\), one row of the table"),
        ([0], np.ones((1, 3)), ValueError, r"for each of the ids, got \(1, 3\)"),
        ([0], np.ones((1, 2), int), TypeError, "values must be real floating-point"),
    ],
)
def test_bad_ids_and_values_are_refused(ids, values, error, message):
    rule = sparse_sgd(0.1)
    with pytest.raises(error, match=message):
        sparse_update(rule, TABLE, rule.init(TABLE), ids, values)


def test_a_state_of_another_rule_is_refused():
    state = sparse_adagrad(0.1).init(TABLE)
    message = r"state.accumulator must have shape \(5,\).*got \(5, 2\)"
    with pytest.raises(ValueError, match=message):
        sparse_update(
            sparse_row_wise_adagrad(0.1), TABLE, state, jnp.zeros(1, int), TABLE[:1]
        )


def test_a_table_at_the_end_of_int32_is_refused_without_being_made():
    rule = sparse_sgd(0.1)

    def shapes(rows):
        table = jax.ShapeDtypeStruct((rows, 1), jnp.float32)
        ids = jax.ShapeDtypeStruct((8,), jnp.int32)
        values = jax.ShapeDtypeStruct((8, 1), jnp.float32)
        state = jax.eval_shape(rule.init, table)
        return jax.eval_shape(
            lambda *args: sparse_update(rule, *args), table, state, ids, values
        )

    assert shapes(2**31 - 8)[0].shape == (2**31 - 8, 1)
    with pytest.raises(ValueError, match="2147483641 rows and 8 ids.*split the table"):
        shapes(2**31 - 7)


def test_looking_up_and_updating_trains():
    rule = sparse_row_wise_adagrad(0.5)
    table = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)), jnp.float32)
    ids, targets = jnp.arange(20) % 7, jnp.arange(20.0) % 7 / 7
    state = rule.init(table)

    def loss(rows):
        return jnp.mean(jnp.square(jnp.sum(rows, axis=1) - targets))

    @jax.jit
    def step(table, state):
        value, gradient = jax.value_and_grad(loss)(lookup(table, ids))
        return value, *sparse_update(rule, table, state, ids, gradient)

    first, *held = step(table, state)
    for _ in range(50):
        value, *held = step(*held)
    assert value < 1e-3 * first
