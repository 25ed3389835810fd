"""Unusual leaves and unusual gradients."""

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.contract.problem import (
    assert_close,
    assert_finite,
    at,
    compiled_step,
    kinds,
    make_gradients,
    make_params,
    reference,
    stepper,
    walk_eagerly,
)


def _with_placeholders(tree):
    """The tree among leaves that are absent, masked out or of size zero."""
    return {
        **tree,
        "absent": None,
        "masked": optax.MaskedNode(),
        "zero_size": jnp.zeros((0, 3)),
        "nested": {"nothing": {}, "nobody": ()},
    }


def test_placeholders_change_nothing(row):
    points = walk_eagerly(row, row.make(), select=_with_placeholders)
    for point in points[1:]:
        assert jax.tree.structure(point[:2]) == jax.tree.structure(points[0][:2])
        assert jax.tree.structure(point.updates) == jax.tree.structure(point.params)
        assert_finite(point)
    kept = {name: points[-1].params[name] for name in make_params()}
    assert_close(kept, reference(row)[2].params, row.rtol)


def test_empty_tree(row):
    points = walk_eagerly(row, row.make(), select=lambda tree: {})
    assert points[-1].params == points[-1].updates == {}
    states = [jax.tree.structure(point.state) for point in points]
    assert states[0] == states[-1]


def test_bare_array(row):
    tx, params, gradients = row.make(), make_params(), make_gradients()
    out = jax.eval_shape(
        stepper(row, tx),
        params["scale"],
        tx.init(params["scale"]),
        gradients["scale"][0],
    )
    assert out.updates.shape == () and out.updates.dtype == jnp.float32


@pytest.mark.parametrize("magnitude", [0.0, 1e-12, 1e12])
def test_extreme_gradients_stay_finite(row, magnitude):
    point = reference(row)[0]
    gradients = jax.tree.map(lambda leaf: magnitude * leaf, make_gradients())
    for index in range(3):
        point = compiled_step(row)(*point[:2], at(gradients, index))
        assert_finite(point)


def test_zero_then_ordinary_gradients(row):
    # Statistics that start at zero must not poison what follows.
    point = reference(row)[0]
    zeros = jax.tree.map(jnp.zeros_like, point.params)
    for grads in (zeros, at(make_gradients(), 0), zeros):
        point = compiled_step(row)(*point[:2], grads)
    assert_finite(point)


def test_half_precision_params(row):
    points = reference(row, jnp.bfloat16)
    for point in points[1:]:
        assert_finite(point)
        for leaf in jax.tree.leaves((point.params, point.updates)):
            assert leaf.dtype == jnp.bfloat16
        assert kinds(point.state) == kinds(points[0].state)
    # Within a few roundings of the float32 run.
    assert_close(points[-1].params, reference(row)[-1].params, rtol=4e-2)


def test_half_precision_statistics_are_float32(row):
    for path, leaf in jax.tree.leaves_with_path(reference(row, jnp.bfloat16)[-1].state):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert leaf.dtype == jnp.float32, jax.tree_util.keystr(path)


def test_every_leaf_keeps_its_dtype_in_a_mixed_tree(row):
    tx = row.make()

    def mix(tree):
        return {**tree, "scale": tree["scale"].astype(jnp.bfloat16)}

    params, grads = mix(make_params()), mix(at(make_gradients(), 0))
    state = tx.init(params)
    out = jax.eval_shape(stepper(row, tx), params, state, grads)
    assert kinds(out.updates) == kinds(params)
    assert kinds(out.state) == kinds(state)


def test_integer_leaf_is_an_error(row):
    params = {**make_params(), "table": {"rows": jnp.arange(3)}}
    with pytest.raises(ValueError, match="table.*rows"):
        row.make().init(params)
