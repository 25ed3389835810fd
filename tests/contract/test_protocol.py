"""`init` and `update` as Optax defines them: arguments, types, counters."""

import jax
import jax.numpy as jnp
import numpy as np
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
    params_like,
    reference,
    stepper,
)


def _types(tree):
    """Shape, dtype and weak type of every leaf: what scan and jit compare."""
    return jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type),
        jax.eval_shape(lambda: tree),
    )


def test_is_a_transformation_with_extra_args(row):
    tx = row.make()
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    params, state, grads = (
        make_params(),
        tx.init(make_params()),
        at(make_gradients(), 0),
    )

    def update(**unknown):
        return tx.update(grads, state, params, **row.extra_args, **unknown)

    known, with_unknown = (
        jax.eval_shape(update),
        jax.eval_shape(lambda: update(an_argument_that_nobody_knows=jnp.ones(3))),
    )
    assert jax.tree.structure(known) == jax.tree.structure(with_unknown)


def test_init_jitted_is_init(row):
    tx, params = row.make(), make_params()
    eager, jitted = tx.init(params), jax.jit(tx.init)(params)
    assert _types(eager) == _types(jitted)
    assert_close(jitted, eager, rtol=0.0)
    abstract = jax.eval_shape(tx.init, params)
    assert kinds(abstract) == kinds(eager)


def test_init_reads_values_only_where_said(row):
    tx = row.make()
    one, other = (jax.tree.leaves(tx.init(make_params(seed=s))) for s in (0, 7))
    same = all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert same != row.init_needs_values
    if not row.init_needs_values:
        shapes = jax.eval_shape(make_params)
        assert _types(jax.tree.leaves(tx.init(shapes))) == _types(one)


def test_update_without_params(row):
    start = reference(row)[0]
    grads, update = at(make_gradients(), 0), row.make().update
    if row.needs_params:
        with pytest.raises(ValueError, match="params"):
            update(grads, start.state, **row.extra_args)
    else:
        updates, _ = update(grads, start.state, **row.extra_args)
        assert_close(updates, reference(row)[1].updates, row.rtol)


def test_state_is_arrays_of_stable_type(row):
    points = reference(row)
    for leaf in jax.tree.leaves(points[0].state):
        assert isinstance(leaf, jax.Array), leaf
    for point in points[1:]:
        assert _types(point.state) == _types(points[0].state)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_types_are_stable_with_64_bits_enabled(row, dtype, x64):
    # Here a stray float64 constant widens what it touches. Tracing is enough.
    tx = row.make()
    params, grads = make_params(dtype), at(make_gradients(dtype), 0)
    start = jax.eval_shape(tx.init, params)
    point = jax.eval_shape(stepper(row, tx), params, start, grads)
    assert kinds(point.updates) == kinds(params)
    assert kinds(point.state) == kinds(start)
    if dtype != "float64":
        assert all(leaf.dtype != np.float64 for leaf in jax.tree.leaves(start))


def test_updates_have_the_type_of_params(row):
    point = reference(row)[1]
    assert kinds(point.updates) == kinds(point.params)


def test_counters_saturate(row):
    last = jnp.iinfo(jnp.int32).max

    def exhaust(leaf):
        return jnp.full_like(leaf, last) if leaf.dtype == jnp.int32 else leaf

    point = reference(row)[-1]
    state = jax.tree.map(exhaust, point.state)
    after = compiled_step(row)(point.params, state, at(make_gradients(), 0))
    assert_finite(after)
    for leaf in jax.tree.leaves(after.state):
        assert not jnp.issubdtype(leaf.dtype, jnp.signedinteger) or np.all(leaf >= 0)


def test_map_params_pairs_every_buffer_with_its_parameter(row):
    # How users lay partition specs over a state.
    params, state = reference(row)[0][:2]
    leaves, treedef = jax.tree.flatten(params)
    labels = treedef.unflatten(range(1, len(leaves) + 1))
    marked = optax.tree_utils.tree_map_params(
        row.make(),
        lambda leaf, label: jnp.full(leaf.shape, label),
        state,
        labels,
        transform_non_params=lambda node: jax.tree.map(jnp.zeros_like, node),
    )
    expected = jax.tree.map(
        lambda leaf, label: jnp.full(leaf.shape, label), params, labels
    )
    pairs = params_like(marked, expected)
    assert all(np.array_equal(mark, label) for mark, label in pairs)
    if row.buffers is not None:
        assert len(pairs) == row.buffers * len(leaves)
