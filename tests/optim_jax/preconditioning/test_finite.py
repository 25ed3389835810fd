"""Non-finite gradients: what skips, what goes on, what is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim_jax

STEPS = 3


def _draw(seed):
    rng = np.random.default_rng(seed)
    return {
        "bad": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32),
        "good": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32),
    }


def _build(**options):
    return optim_jax.shampoo(
        0.1,
        weight_decay=0.1,
        max_preconditioner_dim=4,
        momentum=optim_jax.Momentum(0.9),
        **options,
    )


def _spoil(gradients, value):
    return gradients | {"bad": gradients["bad"].at[5, 3].set(value)}


def _blocks(state, tx, leaf):
    plan = optim_jax.scale_by_shampoo(max_preconditioner_dim=4, grafting="adam").plan(
        _draw(0)
    )
    return optim_jax.to_canonical_state(state, plan)[0]["params"][f"['{leaf}']"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_leaf_stays_as_it_is(value):
    tx = _build()
    step = jax.jit(tx.update)
    params, state = _draw(0), tx.init(_draw(0))
    for t in range(2):
        updates, state = step(_draw(1 + t), state, params)
        params = optax.apply_updates(params, updates)
    updates, after = step(_spoil(_draw(7), value), state, params)
    assert np.all(np.asarray(updates["bad"]) == 0.0)
    expected, clean = step(_draw(7), state, params)
    np.testing.assert_array_equal(updates["good"], expected["good"])
    momentum = optax.tree.get(after, "momentum")
    np.testing.assert_array_equal(
        momentum["bad"], optax.tree.get(state, "momentum")["bad"]
    )
    for number, block in _blocks(state, tx, "bad").items():
        same = _blocks(after, tx, "bad")[number]
        for name in ("factor", "mu", "graft"):
            jax.tree.map(np.testing.assert_array_equal, same[name], block[name])
    jax.tree.map(
        np.testing.assert_array_equal,
        _blocks(after, tx, "good"),
        _blocks(clean, tx, "good"),
    )
    facts = optim_jax.check_preconditioners(after)
    assert facts["skipped"] == 1 and int(after[0].count) == 3
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))


def test_a_step_with_two_bad_leaves_counts_once():
    tx = _build()
    gradients = jax.tree.map(lambda x: x * np.nan, _draw(1))
    updates, state = tx.update(gradients, tx.init(_draw(0)), _draw(0))
    assert optim_jax.check_preconditioners(state)["skipped"] == 1
    assert all(np.all(np.asarray(u) == 0.0) for u in jax.tree.leaves(updates))


def test_without_the_guard_the_number_gets_through():
    tx = _build(skip_nonfinite=False)
    updates, _ = tx.update(_spoil(_draw(1), np.nan), tx.init(_draw(0)), _draw(0))
    assert np.any(np.isnan(updates["bad"]))


def test_a_leaf_without_gradient_is_left_alone():
    tx = _build()
    state = tx.init(_draw(0))
    updates, after = tx.update(_draw(1) | {"bad": None}, state, _draw(0))
    assert updates["bad"] is None and updates["good"] is not None
    for number, block in _blocks(state, tx, "bad").items():
        same = _blocks(after, tx, "bad")[number]
        jax.tree.map(np.testing.assert_array_equal, same["factor"], block["factor"])
    assert optim_jax.check_preconditioners(after)["skipped"] == 0
    assert int(after[0].count) == 1
