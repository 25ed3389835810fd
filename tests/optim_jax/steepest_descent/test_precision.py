import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim_jax.steepest_descent.precision import check_real_leaves, in_single_precision


def test_single_precision_is_not_touched():
    params = {"a": jnp.asarray([1.0, 2.0]), "none": None, "masked": optax.MaskedNode()}
    inner, wrapped = optax.adamw(0.1), in_single_precision(optax.adamw(0.1))
    expected = inner.update(params, inner.init(params), params)
    found = wrapped.update(params, wrapped.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_half_precision_is_rounded_once():
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=8), jnp.bfloat16)
    gradients = jnp.asarray(rng.normal(size=8), jnp.bfloat16)
    inner, wrapped = optax.adamw(0.1), in_single_precision(optax.adamw(0.1))
    wide = params.astype(jnp.float32)
    expected, _ = inner.update(gradients.astype(jnp.float32), inner.init(wide), wide)
    found, state = wrapped.update(gradients, wrapped.init(params), params)
    np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))
    assert all(leaf.dtype != jnp.bfloat16 for leaf in jax.tree.leaves(state))


def test_shapes_are_enough_to_start():
    shapes = {"a": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}
    state = in_single_precision(optax.adam(0.1)).init(shapes)
    assert state[0].mu["a"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("dtype", "message"),
    [(jnp.int32, "'a/b' is int32"), (jnp.complex64, "'a/b' is complex64")],
)
def test_leaves_that_are_not_real_are_named(dtype, message):
    with pytest.raises(ValueError, match=message):
        check_real_leaves("Signum", {"a": {"b": jnp.ones(2, dtype)}, "c": jnp.ones(2)})
