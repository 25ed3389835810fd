"""Equal shapes make one stack, and a sharded stack gives what one device gives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optim_jax
from optim_jax import MatrixAxes
from optim_jax.steepest_descent.matrix_stacks import map_matrices
from tests.optim_jax.steepest_descent.trees import (
    AXES,
    HIDDEN,
    assert_trees_close,
    draw,
    walk,
)

LEAVES = [draw(0)[name] for name in HIDDEN]
OF_LEAVES = [AXES[name] for name in HIDDEN]


def _mesh(shape=(8,), kind=AxisType.Auto):
    names = ("data", "model")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def test_matrices_of_equal_shape_are_one_wide_stack():
    seen = []

    def function(stack):
        seen.append(stack.shape)
        return 2.0 * stack

    found = map_matrices(function, LEAVES, OF_LEAVES)
    # Two wide ones and a tall one; the convolution kernel is 24 by 5.
    assert seen == [(1, 6, 6), (3, 4, 9), (3, 5, 7), (1, 5, 24)]
    for result, leaf in zip(found, LEAVES, strict=True):
        np.testing.assert_array_equal(result, 2.0 * leaf)


def test_results_are_those_of_each_leaf_alone():
    def direction(stack):
        return stack / jnp.linalg.norm(stack, axis=(1, 2), keepdims=True)

    together = map_matrices(direction, LEAVES, OF_LEAVES)
    for found, leaf, axes in zip(together, LEAVES, OF_LEAVES, strict=True):
        alone = map_matrices(direction, [leaf], [axes])[0]
        np.testing.assert_array_equal(found, alone)


def test_different_dtypes_are_not_mixed():
    leaves = [jnp.ones((2, 3)), jnp.ones((2, 3), jnp.bfloat16)]
    found = map_matrices(lambda x: x, leaves, [MatrixAxes("hidden")] * 2)
    assert [x.dtype for x in found] == [jnp.float32, jnp.bfloat16]


def test_no_leaves_no_work():
    assert map_matrices(lambda x: 1 / 0, [], []) == []


METHODS = {
    "muon": lambda mesh: optim_jax.muon(0.1, AXES, mesh=mesh),
    "specsgd": lambda mesh: optim_jax.specsgd(0.1, AXES, mesh=mesh),
    "polar": lambda mesh: optim_jax.scale_by_spectral(
        AXES, b1=0.9, method="polar", mesh=mesh
    ),
}


def _sharded_walk(tx, shardings):
    params = jax.device_put(draw(0), shardings)
    state, update = tx.init(params), jax.jit(tx.update)
    history = []
    for step in (1, 2, 3):
        gradients = jax.device_put(draw(step), shardings)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        history.append(jax.tree.map(np.asarray, updates))
    return history


@pytest.mark.parametrize("shape", [(8,), (2, 4)])
@pytest.mark.parametrize("method", METHODS)
def test_eight_devices_are_one(method, shape):
    mesh = _mesh(shape)
    expected, _ = walk(METHODS[method](None))
    found = _sharded_walk(METHODS[method](mesh), NamedSharding(mesh, P()))
    assert_trees_close(found, expected, 1e-5)


def test_sharded_parameters(x64):
    mesh = _mesh((2, 4))
    specs = dict.fromkeys(AXES, P()) | {
        "square": P("data"),
        "convolution": P(None, "data"),
    }
    specs |= {"wide": P("model"), "layers": P()}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    expected, _ = walk(METHODS["muon"](None))
    found = _sharded_walk(METHODS["muon"](mesh), shardings)
    assert_trees_close(found, expected, 1e-5)


def test_explicit_axes():
    mesh = _mesh((8,), AxisType.Explicit)
    tx = METHODS["muon"](mesh)
    shapes = {name: leaf.ndim for name, leaf in draw(0).items()}
    specs = {name: P(*[None] * rank) for name, rank in shapes.items()}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    expected, _ = walk(METHODS["muon"](None))
    with jax.set_mesh(mesh):
        found = _sharded_walk(tx, shardings)
    assert_trees_close(found, expected, 1e-5)


def test_each_device_iterates_its_share():
    # Sixteen matrices of one shape: two for each of eight devices.
    axes = {f"w{i}": MatrixAxes("hidden") for i in range(16)}
    mesh = _mesh()
    tx = optim_jax.scale_by_spectral(axes, method="newton_schulz", mesh=mesh)
    rng = np.random.default_rng(0)
    gradients = {name: jnp.asarray(rng.normal(size=(4, 6)), "float32") for name in axes}
    gradients = jax.device_put(gradients, NamedSharding(mesh, P()))
    text = jax.jit(tx.update).lower(gradients, tx.init(gradients)).compile().as_text()
    # Gram matrices of one device's loop over its two, none of all sixteen.
    assert "f32[4,4]" in text and "f32[16,4,4]" not in text
    assert "known_trip_count" not in text or '"n":"16"' not in text
    collectives = re.findall(
        r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
        r"(?:-start)?\(",
        text,
    )
    assert collectives == ["all-gather"]
