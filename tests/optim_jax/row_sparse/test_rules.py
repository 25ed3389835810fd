import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.row_sparse import (
    row_wise_adagrad,
    sparse_adagrad,
    sparse_row_wise_adagrad,
    sparse_sgd,
    sparse_update,
)

ADAGRADS = [sparse_adagrad, sparse_row_wise_adagrad]
ONE_ROW = jnp.asarray([0], jnp.int32)


@pytest.mark.parametrize("case", ["rws_basic", "rws_decay_init"])
def test_row_wise_adagrad_gives_the_numbers_of_the_original(golden_dir, case):
    stem = golden_dir / "dlrm" / case
    config = json.loads(stem.with_suffix(".json").read_text())
    arrays = np.load(stem.with_suffix(".npz"), allow_pickle=False)
    names = ("eps", "lr_decay", "initial_accumulator_value")
    options = {name: config[name] for name in names}
    rule = sparse_row_wise_adagrad(config["lr"], **options)
    dense = row_wise_adagrad(config["lr"], **options)
    table = weights = jnp.asarray(arrays["w/step0"])
    state, dense_state = rule.init(table), dense.init(weights)
    for step in range(1, config["steps"] + 1):
        ids, values = arrays[f"in/rows_{step}"], arrays[f"in/vals_{step}"]
        table, state = sparse_update(rule, table, state, ids, values)
        gradient = jnp.zeros_like(weights).at[ids].add(values)
        updates, dense_state = dense.update(gradient, dense_state)
        weights = weights + updates
        for found in ((table, state.accumulator), (weights, dense_state.accumulator)):
            for actual, name in zip(found, ("w", "acc"), strict=True):
                expected = arrays[f"{name}/step{step}"]
                np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def _one_row(rule, gradients, weights=(0.0, 0.0)):
    """Updates a table of one row, which is looked up once per step."""
    table = jnp.asarray([weights], jnp.float32)
    state = rule.init(table)
    for gradient in gradients:
        value = jnp.asarray([gradient], jnp.float32)
        table, state = sparse_update(rule, table, state, ONE_ROW, value)
    return table[0], state


def test_sgd_by_hand():
    table, state = _one_row(sparse_sgd(0.5), [[1.0, -2.0], [4.0, 0.0]])
    np.testing.assert_array_equal(table, [-2.5, 1.0])
    assert state.accumulator.shape == (0,) and state.count == 2


def test_adagrad_by_hand():
    # Epsilon outside the root; the second rate is 0.5 / (1 + 1 * 0.25) = 0.4.
    rule = sparse_adagrad(0.5, eps=1.0, lr_decay=0.25, initial_accumulator_value=7.0)
    table, state = _one_row(rule, [[3.0, -3.0], [0.0, 3.0]])
    np.testing.assert_allclose(state.accumulator, [[16.0, 25.0]])
    expected = [-0.5 * 3.0 / 5.0, 0.5 * 3.0 / 5.0 - 0.4 * 3.0 / 6.0]
    np.testing.assert_allclose(table, expected, rtol=1e-6)


def test_row_wise_adagrad_by_hand():
    rule = sparse_row_wise_adagrad(
        0.5, eps=1.0, lr_decay=0.25, initial_accumulator_value=4.0
    )
    table, state = _one_row(rule, [[1.0, -3.0], [8.0, 12.0]])
    # Means of squares 5 and 104: roots 3 and sqrt(113).
    np.testing.assert_allclose(state.accumulator, [113.0])
    root = np.sqrt(113.0) + 1.0
    expected = [-0.5 / 4.0 - 0.4 * 8.0 / root, 0.5 * 3.0 / 4.0 - 0.4 * 12.0 / root]
    np.testing.assert_allclose(table, expected, rtol=1e-6)


def test_duplicates_are_summed_before_they_are_squared():
    rule, table = sparse_row_wise_adagrad(0.1), jnp.zeros((3, 2))
    ids, values = jnp.asarray([1, 1]), jnp.asarray([[3.0, 0.0], [-3.0, 4.0]])
    _, state = sparse_update(rule, table, rule.init(table), ids, values)
    np.testing.assert_array_equal(state.accumulator, [0.0, 8.0, 0.0])


@pytest.mark.parametrize("factory", ADAGRADS)
@pytest.mark.parametrize("eps", [1e-10, 0.0])
def test_a_gradient_of_zero_moves_nothing(factory, eps):
    rule = factory(0.1, eps=eps)
    table, state = _one_row(rule, [[0.0, 0.0], [1e-30, 0.0]], weights=(2.0, -1.0))
    np.testing.assert_array_equal(table, [2.0, -1.0])
    np.testing.assert_array_equal(state.accumulator, jnp.zeros_like(state.accumulator))


@pytest.mark.parametrize("factory", ADAGRADS)
def test_decay_counts_update_calls_not_visits_of_a_row(factory):
    rule, table = factory(1.0, eps=0.0, lr_decay=0.5), jnp.zeros((2, 1))
    state, value = rule.init(table), jnp.ones((1, 1))
    table, state = sparse_update(rule, table, state, ONE_ROW, value)
    nothing = jnp.asarray([2], jnp.int32)
    table, state = sparse_update(rule, table, state, nothing, value)
    table, state = sparse_update(rule, table, state, ONE_ROW + 1, value)
    # First visits have g / sqrt(s) = 1: the rates are 1 and 1 / (1 + 2 * 0.5).
    np.testing.assert_allclose(table, [[-1.0], [-0.5]])
    assert state.count == 3


def test_a_schedule_is_read_at_the_number_of_earlier_updates():
    def halving(count):
        return 0.5**count

    table, _ = _one_row(sparse_sgd(halving), [[1.0, 0.0], [1.0, 0.0], [1.0, 8.0]])
    np.testing.assert_allclose(table, [-1.75, -2.0])
    rule = sparse_row_wise_adagrad(halving, lr_decay=1.0, initial_accumulator_value=1.0)
    table, _ = _one_row(rule, [[0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(table, -0.25 / np.sqrt(2.0), rtol=1e-6)


@pytest.mark.parametrize("factory", [sparse_sgd, *ADAGRADS])
def test_a_traced_learning_rate_compiles_once(factory):
    traces = []

    @jax.jit
    def step(lr, table):
        traces.append(lr)
        rule = factory(lr)
        return sparse_update(rule, table, rule.init(table), ONE_ROW, table[:1])[0]

    table = jnp.ones((3, 2))
    fast, slow = step(0.5, table), step(0.25, table)
    np.testing.assert_allclose(1.0 - fast, 2.0 * (1.0 - slow), rtol=1e-6)
    assert len(traces) == 1


def test_state_is_arrays_beside_the_table():
    table = jnp.zeros((7, 3), jnp.bfloat16)
    shapes = {sparse_sgd: (0,), sparse_adagrad: (7, 3), sparse_row_wise_adagrad: (7,)}
    for factory, shape in shapes.items():
        state = factory(0.1).init(table)
        assert state.accumulator.shape == shape
        assert state.accumulator.dtype == jnp.float32
        assert state.count.dtype == jnp.int32 and state.count.shape == ()
        abstract = factory(0.1).init(jax.ShapeDtypeStruct((7, 3), jnp.bfloat16))
        assert abstract.accumulator.shape == shape


@pytest.mark.parametrize("factory", ADAGRADS)
def test_the_counter_saturates(factory):
    rule, table = factory(0.1, lr_decay=1.0), jnp.ones((1, 2))
    state = rule.init(table)
    state = state._replace(count=jnp.asarray(2**31 - 1, jnp.int32))
    table, state = sparse_update(rule, table, state, ONE_ROW, table)
    assert state.count == 2**31 - 1 and np.all(np.isfinite(table))


@pytest.mark.parametrize("factory", ADAGRADS)
def test_weight_decay_does_not_exist(factory):
    with pytest.raises(TypeError, match="weight_decay"):
        factory(0.1, weight_decay=0.0)


@pytest.mark.parametrize("factory", ADAGRADS)
@pytest.mark.parametrize("name", ["eps", "lr_decay", "initial_accumulator_value"])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_bad_constants_are_refused(factory, name, value):
    with pytest.raises(
        ValueError, match=f"{name} must be finite and >= 0, got {value}"
    ):
        factory(0.1, **{name: value})


@pytest.mark.parametrize("factory", [sparse_sgd, *ADAGRADS])
def test_bad_rates_and_tables_are_refused(factory):
    with pytest.raises(ValueError, match="lr must be finite and >= 0, got -0.1"):
        factory(-0.1)
    with pytest.raises(TypeError, match="a real floating-point table, got int32"):
        factory(0.1).init(jnp.zeros((2, 2), jnp.int32))
    with pytest.raises(ValueError, match="the rows of a table, got a scalar"):
        factory(0.1).init(jnp.zeros(()))


@pytest.mark.parametrize("factory", ADAGRADS)
def test_only_the_learning_rate_may_be_a_schedule(factory):
    with pytest.raises(ValueError, match="eps must be a number, got the schedule"):
        factory(0.1, eps=lambda count: 1e-8)
