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


SMALL = {"square": (6, 6), "wide": (4, 9), "tall": (9, 4), "bias": (4,)}
SMALL_AXES = {name: AXES[name] for name in SMALL}
METHODS = {
    "muon": lambda mesh: optim_jax.muon(0.1, SMALL_AXES, mesh=mesh),
    "specsgd": lambda mesh: optim_jax.specsgd(0.1, SMALL_AXES, mesh=mesh),
    "polar": lambda mesh: optim_jax.scale_by_spectral(
        SMALL_AXES, b1=0.9, method="polar", mesh=mesh
    ),
}


def _check_sharded(method, mesh, specs):
    """Two steps on a mesh are those on one device, and stay where they are."""
    expected, _ = walk(METHODS[method](None), "float64", steps=2, shapes=SMALL)
    tx = METHODS[method](mesh)
    shardings = {name: NamedSharding(mesh, specs.get(name, P())) for name in SMALL}
    params = jax.device_put(draw(0, "float64", SMALL), shardings)
    state, update = tx.init(params), jax.jit(tx.update)
    for step, wanted in enumerate(expected):
        gradients = jax.device_put(draw(1 + step, "float64", SMALL), shardings)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        assert_trees_close(updates, wanted, 1e-10)
    for name, leaf in params.items():
        assert leaf.sharding.is_equivalent_to(shardings[name], leaf.ndim)


@pytest.mark.parametrize(
    ("method", "shape"),
    [("muon", (8,)), ("muon", (2, 4)), ("specsgd", (8,)), ("polar", (8,))],
)
def test_eight_devices_are_one(method, shape, x64):
    _check_sharded(method, _mesh(shape), {})


def test_sharded_parameters(x64):
    specs = {"square": P("data"), "wide": P("model"), "tall": P(None, "model")}
    _check_sharded("muon", _mesh((2, 4)), specs)


def test_explicit_axes(x64):
    specs = {name: P(*[None] * len(shape)) for name, shape in SMALL.items()}
    mesh = _mesh((2, 4), AxisType.Explicit)
    with jax.set_mesh(mesh):
        _check_sharded("muon", mesh, specs | {"square": P("data", None)})


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
