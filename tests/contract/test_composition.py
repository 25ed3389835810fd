"""Inside Optax's own wrappers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.contract.problem import (
    assert_close,
    assert_identical,
    at,
    counted,
    kernel_only,
    kernel_reference,
    kinds,
    make_gradients,
    make_params,
    reference,
    stepper,
    walk,
    walk_eagerly,
)

KERNEL_MASK = {"dense": {"bias": False, "kernel": True}, "scale": False}


def test_chain(row):
    # A clip that does nothing: the state gains a level, the numbers stay.
    tx = optax.chain(optax.clip_by_global_norm(1e6), row.make())
    assert_close(walk_eagerly(row, tx)[-1].params, reference(row)[2].params, row.rtol)


def test_inject_hyperparams(row):
    tx = row.inject()
    step, traces = counted(stepper(row, tx))
    params = make_params()
    points = walk(jax.jit(step), params, jax.jit(tx.init)(params))
    for point, expected in zip(points[1:], reference(row)[1:], strict=True):
        assert_close(point.updates, expected.updates, row.rtol)
        assert_close(point.state.inner_state, expected.state, row.rtol)
    assert len(traces) == 1


def _assert_injected_types(row, hyperparam_dtype):
    tx = row.inject(hyperparam_dtype=hyperparam_dtype)
    params, grads = make_params(jnp.bfloat16), at(make_gradients(jnp.bfloat16), 0)
    state = jax.eval_shape(tx.init, params)
    point = jax.eval_shape(stepper(row, tx), params, state, grads)
    assert kinds(point.updates) == kinds(params)
    assert kinds(point.state) == kinds(state)


def test_inject_hyperparams_in_half_precision(row):
    # Left alone, Optax gives the hyperparameters the params' dtype.
    _assert_injected_types(row, None)


def test_inject_float32_hyperparams_over_half_precision(row):
    # What a user must ask for to keep a factor such as 0.9967 apart from 1.
    _assert_injected_types(row, jnp.float32)


def test_masked(row):
    tx = optax.masked(row.make(), KERNEL_MASK)
    first, second = walk_eagerly(row, tx)[1:]
    expected = kernel_reference(row)
    assert_close(kernel_only(second.params), expected.params, row.rtol)
    assert_identical(first.updates["scale"], make_gradients()["scale"][0])
    inner = jax.tree.leaves(second.state.inner_state)
    assert_close(inner, jax.tree.leaves(expected.state), row.rtol)


def test_partition(row):
    labels = jax.tree.map(lambda chosen: "ours" if chosen else "sgd", KERNEL_MASK)
    tx = optax.partition({"ours": row.make(), "sgd": optax.sgd(0.5)}, labels)
    first, second = walk_eagerly(row, tx)[1:]
    assert_close(kernel_only(second.params), kernel_reference(row).params, row.rtol)
    assert_close(first.updates["scale"], -0.5 * make_gradients()["scale"][0], row.rtol)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_multi_steps(row, dtype):
    tx = optax.MultiSteps(row.make(), every_k_schedule=2).gradient_transformation()
    step = jax.jit(stepper(row, tx))
    params, gradients = make_params(dtype), make_gradients(dtype)
    state = tx.init(params)
    for index in range(2):
        # Twice the same gradient: its mean is exact in every dtype.
        between = step(params, state, at(gradients, index))
        assert_identical(between.params, params)
        assert_identical(between.state.inner_opt_state, state.inner_opt_state)
        params, state, updates = step(*between[:2], at(gradients, index))
        expected = reference(row, dtype)[index + 1]
        rtol = row.rtol if dtype == jnp.float32 else 1e-2
        assert_close(updates, expected.updates, rtol)
        assert_close(state.inner_opt_state, expected.state, rtol)


def test_apply_if_finite_rejects_a_step_untouched(row):
    tx = optax.apply_if_finite(row.make(), max_consecutive_errors=3)
    step = jax.jit(stepper(row, tx))
    params, gradients = make_params(), make_gradients()
    first = step(params, tx.init(params), at(gradients, 0))
    rejected = first
    for bad in (np.nan, np.inf):
        spoiled = at(gradients, 1)
        spoiled["dense"]["bias"] = spoiled["dense"]["bias"].at[2].set(bad)
        rejected = step(*rejected[:2], spoiled)
        assert_identical(rejected.params, first.params)
        assert_identical(rejected.state.inner_state, first.state.inner_state)
    second = step(*rejected[:2], at(gradients, 1))
    assert_close(second.params, reference(row)[2].params, row.rtol)
    assert_close(second.state.inner_state, reference(row)[2].state, row.rtol)
