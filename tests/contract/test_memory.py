"""Buffers: how many the state holds, and that they may be given away."""

import jax
import numpy as np

from tests.contract.problem import (
    assert_close,
    at,
    make_gradients,
    make_params,
    reference,
    stepper,
)


def test_params_and_state_can_be_donated(row):
    # `init` is not jitted: a state that shares a buffer with params, or two of its
    # own fields that share one, cannot be donated.
    tx = row.make()
    step = jax.jit(stepper(row, tx), donate_argnums=(0, 1))
    params, gradients = make_params(), make_gradients()
    state = tx.init(params)
    first = step(params, state, at(gradients, 0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    second = step(*first[:2], at(gradients, 1))
    assert_close(second[:2], reference(row)[2][:2], row.rtol)


def test_no_buffer_is_held_twice(row):
    params = make_params()
    leaves = jax.tree.leaves((params, row.make().init(params)))
    held = [leaf.unsafe_buffer_pointer() for leaf in leaves]
    assert len(set(held)) == len(held)


def test_the_state_holds_the_promised_buffers(row):
    params, state = reference(row)[-1][:2]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    if row.buffers is not None:
        # A dozen scalars (counters, weights) come on top.
        assert 0 <= held - row.buffers * size <= 48, held / size
    assert np.isfinite(held)
