"""Which leaves count, and what is refused before any arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import dtypes

from optim_jax import MatrixAxes, matrix_axes_from_rules
from optim_jax.noise_scale.layout import layout_of, layout_of_draws
from tests.optim_jax.noise_scale.numpy_estimates import AXES, SHAPES

PARAMS = {name: jnp.ones(shape) for name, shape in SHAPES.items()}


def resolve(tree, geometry="sign", matrix_axes=None, side="min", mask=None):
    return layout_of(tree, geometry, matrix_axes, side, mask)


def counted(layout):
    return [leaf.name for leaf in layout.leaves if leaf.counts]


@pytest.mark.parametrize("geometry", ["l2", "sign"])
def test_every_real_leaf_counts_by_default(geometry):
    assert counted(resolve(PARAMS, geometry)) == sorted(SHAPES)


def test_hidden_leaves_count_under_the_spectral_geometry():
    layout = resolve(PARAMS, "spectral", AXES)
    assert counted(layout) == ["layers", "square", "tall", "torch", "wide"]
    shapes = {leaf.name: leaf for leaf in layout.leaves}
    assert shapes["torch"].matrix_shape == (6, 5)  # rows are the reduction axes
    assert shapes["layers"].batch_shape == (2,)
    assert shapes["layers"].matrix_shape == (3, 4)


def test_embedding_and_head_do_not_count_and_their_axes_are_not_read():
    nonsense = {"reduction_axes": (7,), "output_axes": ()}
    axes = {
        "embed": MatrixAxes("embedding", **nonsense),
        "head": MatrixAxes("head", **nonsense),
        "norm": MatrixAxes("norm", **nonsense),
        "kernel": MatrixAxes("hidden"),
    }
    params = {name: jnp.ones((3, 3)) for name in axes}
    assert counted(resolve(params, "spectral", axes)) == ["kernel"]


@pytest.mark.parametrize(
    ("side", "wide", "tall", "square"),
    [
        ("min", ("row",), ("col",), ("row",)),
        ("row", ("row",), ("row",), ("row",)),
        ("col", ("col",), ("col",), ("col",)),
        ("tightest", ("row", "col"), ("row", "col"), ("row", "col")),
    ],
)
def test_sides(side, wide, tall, square):
    layout = resolve(PARAMS, "spectral", AXES, side)
    sides = {leaf.name: leaf.sides for leaf in layout.leaves}
    assert (sides["wide"], sides["tall"], sides["square"]) == (wide, tall, square)


def test_axes_may_be_a_function_and_see_one_draw():
    rules = matrix_axes_from_rules([("w", MatrixAxes("hidden"))])
    stacked = {"w": jnp.ones((5, 2, 3)), "b": jnp.ones((5, 3))}
    layout, draws = layout_of_draws(stacked, "spectral", rules, "min", None)
    assert draws == 5 and counted(layout) == ["w"]
    assert layout.leaves[1].matrix_shape == (2, 3)


def test_missing_subtrees_stay_and_the_axes_there_are_not_read():
    tree = {"a": None, "b": optax.MaskedNode(), "w": jnp.ones((2, 2))}
    anything = {"a": {"x": 1}, "b": "not axes", "w": MatrixAxes("hidden")}
    assert counted(resolve(tree, "spectral", anything)) == ["w"]
    mask = {"a": False, "b": True, "w": True}
    assert counted(resolve(tree, mask=mask)) == ["w"]


@pytest.mark.parametrize(
    "mask",
    [
        {"block": {"w": True, "b": True}, "head": False},
        {"block": True, "head": False},
        {"block": np.bool_(True), "head": False},
        lambda params: jax.tree.map_with_path(
            lambda path, _: "block" in str(path[0]), params
        ),
    ],
    ids=["tree", "prefix", "numpy", "function"],
)
def test_mask_is_a_tree_a_prefix_or_a_function(mask):
    tree = {"block": {"w": jnp.ones(2), "b": jnp.ones(2)}, "head": jnp.ones(2)}
    assert counted(resolve(tree, mask=mask)) == ["block/b", "block/w"]


def test_mask_acts_beside_the_axes():
    layout = resolve(
        PARAMS, "spectral", AXES, mask={**dict.fromkeys(SHAPES, False), "wide": True}
    )
    assert counted(layout) == ["wide"]


def test_masked_leaf_needs_no_axes():
    tree = {"w": jnp.ones((2, 2)), "table": jnp.ones((2, 2))}
    axes = {"w": MatrixAxes("hidden"), "table": None}
    mask = {"w": True, "table": False}
    assert counted(resolve(tree, "spectral", axes, mask=mask)) == ["w"]


@pytest.mark.parametrize(
    "ignored",
    [
        jnp.ones(2, jnp.int32),
        jnp.ones(2, bool),
        np.zeros(2, dtypes.float0),
        jax.random.key(0),
    ],
    ids=["integer", "boolean", "float0", "key"],
)
def test_leaves_that_are_no_real_numbers_are_ignored(ignored):
    layout = resolve({"a": jnp.ones(2), "other": ignored})
    assert counted(layout) == ["a"] and layout.leaves[1].dtype is None


def test_one_array_is_a_tree():
    assert counted(resolve(jnp.ones((2, 3)), "spectral", MatrixAxes("hidden"))) == [""]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"geometry": "l1"}, "geometry must be one of l2, sign, spectral, got 'l1'"),
        ({"side": "left"}, "side must be one of col, min, row, tightest, got 'left'"),
        ({"geometry": "spectral"}, "geometry='spectral' needs matrix_axes"),
        (
            {"geometry": "spectral", "matrix_axes": {"a": MatrixAxes("hidden")}},
            "matrix_axes does not have the structure of the gradients",
        ),
        (
            {"geometry": "spectral", "matrix_axes": {"w": None, "b": None}},
            r"leaf 'w' of shape \(2, 3\) has no matrix_axes",
        ),
        (
            {"geometry": "spectral", "matrix_axes": {"w": (0, 1), "b": None}},
            "matrix_axes of leaf 'w' must be a MatrixAxes of the kind .* got",
        ),
        (
            {
                "geometry": "spectral",
                "matrix_axes": {"w": MatrixAxes("conv"), "b": None},
            },
            "matrix_axes of leaf 'w' must be a MatrixAxes of the kind .*'conv'",
        ),
        (
            {
                "geometry": "spectral",
                "matrix_axes": {"w": MatrixAxes("hidden", (), (0,), (0,)), "b": None},
            },
            "does not cover every axis of leaf 'w'",
        ),
        (
            {
                "geometry": "spectral",
                "matrix_axes": {"w": MatrixAxes("hidden"), "b": MatrixAxes("hidden")},
            },
            "does not cover every axis of leaf 'b'",
        ),
        (
            {
                "geometry": "spectral",
                "matrix_axes": {"w": MatrixAxes("head"), "b": None},
            },
            "no leaf counts in the spectral noise scale: .* no hidden leaf",
        ),
        ({"mask": False}, "no leaf counts in the sign noise scale"),
        ({"mask": {"w": True}}, "mask has no entry for leaf 'b'"),
        ({"mask": {"w": 1.0, "b": True}}, "mask must hold bools, got 1.0"),
    ],
)
def test_bad_layouts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        resolve({"b": jnp.ones(3), "w": jnp.ones((2, 3))}, **arguments)


def test_complex_leaf_is_refused_by_name():
    tree = {"a": jnp.ones(2), "z": jnp.ones(2, jnp.complex64)}
    with pytest.raises(
        ValueError, match="real gradients only, but leaf 'z' is complex"
    ):
        resolve(tree)


def test_tree_without_real_leaves_is_refused():
    with pytest.raises(ValueError, match="no leaf counts"):
        resolve({"steps": jnp.ones(3, jnp.int32)})


@pytest.mark.parametrize("other", [jnp.ones((3, 2)), jnp.ones(())])
def test_leaves_with_other_numbers_of_draws_are_refused_by_name(other):
    with pytest.raises(ValueError, match="but leaf 'b' has the shape"):
        layout_of_draws({"a": jnp.ones((2, 3)), "b": other}, "sign", None, "min", None)


def test_block_weights_are_a_prefix_tree_of_numbers():
    layout = resolve(
        {"block": {"w": jnp.ones(2), "b": jnp.ones(2, jnp.int32)}, "head": jnp.ones(2)}
    )
    assert layout.block_weights({"block": 2.0, "head": 3.0}) == [None, 2.0, 3.0]
    assert layout.block_weights(2.0) == [None, 2.0, 2.0]
    assert layout.block_weights(None) == [None, 1.0, 1.0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"block": 1.0}, "block_weights has no entry for leaf 'head'"),
        (
            {"block": -1.0, "head": 1.0},
            "block_weights of leaf 'block/w' must be finite and >= 0, got -1.0",
        ),
        (
            {"block": lambda step: 1.0, "head": 1.0},
            "block_weights of leaf 'block/w' must be a number",
        ),
    ],
)
def test_bad_block_weights_are_refused(weights, message):
    layout = resolve({"block": {"w": jnp.ones(2)}, "head": jnp.ones(2)})
    with pytest.raises(ValueError, match=message):
        layout.block_weights(weights)
