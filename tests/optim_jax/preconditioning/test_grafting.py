"""The grafting combinator."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim_jax

OPTIONS = {"max_preconditioner_dim": 4, "target_dimensionality": 2}


def _draw(seed=0):
    return {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(4, 8)))}


@pytest.mark.parametrize("granularity", ["leaf", "block"])
def test_direction_of_one_and_length_of_the_other(granularity):
    direction = optim_jax.scale_by_shampoo(**OPTIONS)
    magnitude = optax.scale_by_adam()
    tx = optim_jax.graft(direction, magnitude, granularity)
    g = _draw()
    update = tx.update(g, tx.init(g))[0]["w"]
    d = direction.update(g, direction.init(g))[0]["w"]
    m = magnitude.update(g, magnitude.init(g))[0]["w"]
    blocks = [slice(0, 8)] if granularity == "leaf" else [slice(0, 4), slice(4, 8)]
    for columns in blocks:
        scale = jnp.linalg.norm(m[:, columns]) / jnp.linalg.norm(d[:, columns])
        np.testing.assert_allclose(update[:, columns], scale * d[:, columns], rtol=1e-5)


def test_any_two_methods_by_leaf():
    tx = optim_jax.graft(optax.scale_by_sign(), optax.identity(), "leaf")
    g = _draw()
    update = tx.update(g, tx.init(g))[0]["w"]
    np.testing.assert_allclose(
        jnp.linalg.norm(update), jnp.linalg.norm(g["w"]), rtol=1e-6
    )
    zero = {"w": jnp.zeros((4, 8))}
    assert np.all(np.asarray(tx.update(zero, tx.init(zero))[0]["w"]) == 0.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((optax.identity(), optax.identity()), "granularity='block' needs a direction"),
        ((optax.identity(), optax.identity(), "row"), "granularity must be one of"),
        ((optax.identity(), optax.identity(), "leaf", 0.0), "eps must be > 0"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        optim_jax.graft(*arguments)
