import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optim_jax.row_sparse import dense_adagrad, row_wise_adagrad


def _walk(tx, params, gradients):
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(gradient, state)
        params = optax.apply_updates(params, updates)
    return params, state


def _draw(shape, steps=3):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(steps + 1)]


def test_dense_adagrad_is_that_of_optax_with_its_epsilon_in_the_root():
    # With epsilon zero the two rules are one.
    params, *gradients = _draw((4, 3))
    ours, _ = _walk(
        dense_adagrad(0.1, eps=0.0, initial_accumulator_value=0.1), params, gradients
    )
    theirs, _ = _walk(
        optax.adagrad(0.1, initial_accumulator_value=0.1, eps=0.0), params, gradients
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_row_wise_is_element_wise_on_gradients_of_equal_size():
    params, *gradients = _draw((6, 1))
    wide = [jnp.concatenate([g, -g], axis=1) for g in gradients]
    options = {"eps": 1e-3, "lr_decay": 0.3, "initial_accumulator_value": 0.2}
    start = jnp.zeros((6, 2))
    rows, state = _walk(row_wise_adagrad(0.1, **options), start, wide)
    entries, dense_state = _walk(dense_adagrad(0.1, **options), start, wide)
    # Updates of the size of the rate nearly cancel in some weights.
    np.testing.assert_allclose(rows, entries, rtol=1e-6, atol=1e-7 * 0.1)
    np.testing.assert_allclose(
        state.accumulator[:, None] + jnp.zeros((6, 2)), dense_state.accumulator, 1e-6
    )


def test_a_vector_has_one_number_per_row():
    params, *gradients = _draw((5,))
    rows, state = _walk(row_wise_adagrad(0.1), params, gradients)
    entries, _ = _walk(dense_adagrad(0.1), params, gradients)
    np.testing.assert_array_equal(rows, entries)
    assert state.accumulator.shape == (5,)


def test_the_mean_is_taken_over_all_axes_but_the_first():
    params, *gradients = _draw((3, 2, 4))
    rows, state = _walk(row_wise_adagrad(0.1), params, gradients)
    flat = [g.reshape(3, 8) for g in gradients]
    matrix, _ = _walk(row_wise_adagrad(0.1), params.reshape(3, 8), flat)
    np.testing.assert_allclose(rows.reshape(3, 8), matrix, rtol=1e-6)
    assert state.accumulator.shape == (3,)


def test_rows_without_entries_and_leaves_without_gradients():
    tx = row_wise_adagrad(0.1)
    params = {"narrow": jnp.zeros((3, 0)), "idle": jnp.ones((2, 2)), "w": jnp.ones(2)}
    gradients = {"narrow": jnp.zeros((3, 0)), "idle": None, "w": jnp.ones(2)}
    updates, state = tx.update(gradients, tx.init(params))
    assert updates["idle"] is None and updates["narrow"].shape == (3, 0)
    np.testing.assert_array_equal(state.accumulator["idle"], 0.0)
    np.testing.assert_array_equal(state.accumulator["narrow"], 0.0)
    np.testing.assert_array_equal(state.accumulator["w"], 1.0)


def test_a_scalar_has_no_rows():
    params = {"layer": {"scale": jnp.ones(())}, "table": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="leaf 'layer/scale' is a scalar.*partition"):
        row_wise_adagrad(0.1).init(params)
    dense_adagrad(0.1).init(params)


@pytest.mark.parametrize("factory", [dense_adagrad, row_wise_adagrad])
def test_bad_leaves_and_arguments_are_refused(factory):
    with pytest.raises(ValueError, match="leaf 'phase' is complex64"):
        factory(0.1).init({"phase": jnp.ones((2, 2), jnp.complex64)})
    with pytest.raises(ValueError, match="learning_rate must be finite and >= 0"):
        factory(-1.0)
    with pytest.raises(ValueError, match="lr_decay must be finite and >= 0, got -0.5"):
        factory(0.1, lr_decay=-0.5)
    with pytest.raises(TypeError, match="weight_decay"):
        factory(0.1, weight_decay=0.1)


def test_the_accumulator_lies_where_the_rows_lie():
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(AxisType.Auto,) * 2)
    table = jax.device_put(
        jnp.ones((8, 4)), NamedSharding(mesh, PartitionSpec("rows", "columns"))
    )
    by_row = row_wise_adagrad(0.1).init(table).accumulator
    assert by_row.sharding.spec == PartitionSpec("rows")
    by_entry = dense_adagrad(0.1).init(table).accumulator
    assert by_entry.sharding.is_equivalent_to(table.sharding, 2)
