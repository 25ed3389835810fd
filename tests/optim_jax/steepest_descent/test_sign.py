import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim_jax
from tests.optim_jax.steepest_descent.trees import assert_trees_close, draw, walk


def test_sign_sgd_is_that_of_optax():
    ours, _ = walk(optim_jax.sign_sgd(0.1))
    theirs, _ = walk(optax.sign_sgd(0.1))
    assert_trees_close(ours, theirs, 0.0)


def test_the_sign_attains_the_dual_norm(x64):
    gradients = draw(1, "float64")
    tx = optim_jax.scale_by_signum(0.0)
    directions, _ = tx.update(gradients, tx.init(gradients))
    inner = float(optax.tree.vdot(gradients, directions))
    dual = sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(gradients))
    assert inner == pytest.approx(float(dual), rel=1e-14)
    assert max(float(jnp.abs(p).max()) for p in jax.tree.leaves(directions)) == 1.0


def test_the_sign_of_zero_is_zero():
    tx = optim_jax.sign_sgd(0.5)
    gradients = jnp.asarray([-2.0, 0.0, 1e-30])
    updates, _ = tx.update(gradients, tx.init(gradients), gradients)
    np.testing.assert_array_equal(updates, [0.5, 0.0, -0.5])


def test_signum_is_written_out():
    tx = optim_jax.signum(0.1, 0.75, weight_decay=0.5)
    params = x = np.array([1.0, -2.0, 0.5])
    m, state = np.zeros(3), tx.init(jnp.asarray(params, jnp.float32))
    for gradient in ([1.0, -1.0, 0.1], [-4.0, 1.0, 0.0], [0.5, 0.5, -9.0]):
        m = 0.75 * m + 0.25 * np.array(gradient)
        x = x - 0.1 * (np.sign(m) + 0.5 * x)
        updates, state = tx.update(
            jnp.asarray(gradient), state, jnp.asarray(params, jnp.float32)
        )
        params = params + np.asarray(updates)
        np.testing.assert_allclose(params, x, rtol=1e-6)
    np.testing.assert_allclose(state[0].momentum, m, rtol=1e-6)


def test_signum_is_the_sign_of_an_average():
    # Optax's trace is b1 m + g: the sign is the same.
    chain = optax.chain(
        optax.trace(0.9), optax.scale_by_sign(), optax.scale_by_learning_rate(0.1)
    )
    ours, _ = walk(optim_jax.signum(0.1, 0.9), steps=4)
    theirs, _ = walk(chain, steps=4)
    assert_trees_close(ours, theirs, 0.0)


def test_without_momentum_signum_is_sign_sgd_without_a_buffer():
    ours, state = walk(optim_jax.signum(0.1, 0.0, weight_decay=0.1))
    theirs, _ = walk(optim_jax.sign_sgd(0.1, weight_decay=0.1))
    assert_trees_close(ours, theirs, 0.0)
    assert not jax.tree.leaves(state)


def test_a_traced_zero_keeps_the_buffer_and_gives_the_same():
    ours, state = walk(optim_jax.signum(0.1, jnp.asarray(0.0)))
    theirs, _ = walk(optim_jax.signum(0.1, 0.0))
    assert_trees_close(ours, theirs, 0.0)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(draw(0)))


def test_the_state_does_not_depend_on_the_decay():
    params = draw(0)
    states = [
        optim_jax.signum(0.1, weight_decay=decay).init(params) for decay in (0.0, 0.1)
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_masked_leaves_do_not_decay():
    mask = {name: name == "square" for name in draw(0)}
    decayed, _ = walk(optim_jax.sign_sgd(0.1, weight_decay=0.5, mask=mask), steps=1)
    plain, _ = walk(optim_jax.sign_sgd(0.1), steps=1)
    expected = plain[0] | {"square": plain[0]["square"] - 0.05 * draw(0)["square"]}
    assert_trees_close(decayed[0], expected, 1e-6)


def test_dtype_of_the_average():
    params = draw(0, "bfloat16")
    for mu_dtype, expected in ((None, jnp.float32), ("bfloat16", jnp.bfloat16)):
        state = optim_jax.scale_by_signum(mu_dtype=mu_dtype).init(params)
        assert all(leaf.dtype == expected for leaf in jax.tree.leaves(state))


def test_a_leaf_without_a_gradient_keeps_its_average():
    tx = optim_jax.scale_by_signum(0.9)
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    _, state = tx.update({"a": jnp.ones(2), "b": jnp.ones(2)}, tx.init(params))
    updates, after = tx.update({"a": None, "b": -jnp.ones(2)}, state)
    assert updates["a"] is None
    np.testing.assert_array_equal(after.momentum["a"], state.momentum["a"])
    assert not np.array_equal(after.momentum["b"], state.momentum["b"])


@pytest.mark.parametrize("factory", [optim_jax.sign_sgd, optim_jax.signum])
def test_complex_leaves_are_named(factory):
    params = {"layer": {"phase": jnp.ones(2, jnp.complex64)}}
    with pytest.raises(ValueError, match="leaf 'layer/phase' is complex64"):
        factory(0.1).init(params)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: optim_jax.signum(0.1, 1.0), r"b1 must be in \[0, 1\), got 1.0"),
        (lambda: optim_jax.signum(0.1, lambda t: 0.9), "b1 must be a number"),
        (lambda: optim_jax.sign_sgd(-0.1), "learning_rate must be finite and >= 0"),
        (
            lambda: optim_jax.signum(0.1, weight_decay=-0.1),
            "weight_decay must be finite and >= 0",
        ),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
