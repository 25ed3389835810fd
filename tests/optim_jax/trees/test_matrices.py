import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim_jax import MatrixAxes, matrix_axes_from_rules
from optim_jax.trees.matrices import (
    as_matrices,
    axes_of_leaves,
    check_axes,
    from_matrices,
    matrix_shape,
)

STACKED = MatrixAxes("hidden", (0,), (1,), (2,))


@pytest.fixture
def params():
    shapes = {
        "embedding": (7, 4),
        "blocks": {"kernel": (3, 4, 5), "norm": {"scale": (3, 4)}, "bias": (5,)},
        "gain": (),
    }
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def test_first_rule_wins_and_vectors_default_to_bias(params):
    axes = matrix_axes_from_rules(
        [
            (r"^embedding$", MatrixAxes("embedding")),
            (r"norm/scale$", MatrixAxes("norm")),
            (r"kernel$", STACKED),
            (r"kernel", MatrixAxes("head")),
        ]
    )(params)
    assert axes == {
        "embedding": MatrixAxes("embedding"),
        "blocks": {
            "kernel": STACKED,
            "norm": {"scale": MatrixAxes("norm")},
            "bias": MatrixAxes("bias"),
        },
        "gain": MatrixAxes("bias"),
    }


def test_unmatched_matrix_is_named(params):
    axes = matrix_axes_from_rules([(r"embedding|scale", MatrixAxes("norm"))])
    with pytest.raises(ValueError, match=r"no rule matches leaf 'blocks/kernel' of"):
        axes(params)


@pytest.mark.parametrize(
    "axes",
    [
        MatrixAxes("hidden"),  # an axis of the leaf is missing
        MatrixAxes("hidden", (0,), (1,), (1,)),  # one is named twice
        MatrixAxes("hidden", (0,), (1,), (3,)),  # one does not exist
        MatrixAxes("hidden", (0, 1), (2,), ()),  # one side is empty
    ],
)
def test_axes_that_do_not_fit_are_named(axes):
    with pytest.raises(ValueError, match="leaf 'blocks/kernel'"):
        check_axes("blocks/kernel", (3, 4, 5), axes)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("kernel", "hidden")], "rule 'kernel' must give a MatrixAxes, got 'hidden'"),
        ([("kernel", MatrixAxes("conv"))], "kind 'conv'; allowed are hidden, emb"),
    ],
)
def test_bad_rules_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        matrix_axes_from_rules(rules)


def test_default_axes_are_a_stack_of_one():
    leaf = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(as_matrices(leaf, MatrixAxes("hidden")), leaf[None])


@pytest.mark.parametrize(
    ("shape", "axes", "stack"),
    [
        ((3, 4, 5), STACKED, (3, 4, 5)),
        ((4, 5, 3), MatrixAxes("hidden", (2,), (0,), (1,)), (3, 4, 5)),
        ((3, 3, 4, 5), MatrixAxes("hidden", (), (0, 1, 2), (3,)), (1, 36, 5)),
        ((2, 6, 3, 4), MatrixAxes("hidden", (0,), (-1, -2), (1,)), (2, 12, 6)),
    ],
)
def test_view_and_back(shape, axes, stack):
    leaf = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
    matrices = as_matrices(leaf, axes)
    assert matrices.shape == stack
    np.testing.assert_array_equal(from_matrices(matrices, shape, axes), leaf)


def test_a_batch_index_is_one_matrix():
    leaf = jnp.arange(24.0).reshape(3, 4, 2)
    axes = MatrixAxes("hidden", (2,), (1,), (0,))
    matrices = as_matrices(leaf, axes)
    np.testing.assert_array_equal(matrices[1], leaf[:, :, 1].T)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((4, 5), MatrixAxes("hidden")),
        ((3, 4, 5), STACKED),
        ((2, 2, 5, 3), MatrixAxes("hidden", (-1,), (0, 1), (2,))),
    ],
)
def test_sides_of_the_matrices(shape, axes):
    assert matrix_shape(shape, axes) == (4, 5)
    assert as_matrices(jnp.ones(shape), axes).shape[1:] == (4, 5)


HIDDEN = MatrixAxes("hidden")


def test_axes_come_in_the_order_of_the_leaves(params):
    axes = {
        "embedding": MatrixAxes("embedding"),
        "blocks": {"kernel": STACKED, "norm": {"scale": HIDDEN}, "bias": None},
        "gain": None,
    }
    expected = [None, STACKED, HIDDEN, MatrixAxes("embedding"), None]
    assert axes_of_leaves("Muon", params, axes) == expected
    assert axes_of_leaves("Muon", params, lambda tree: axes) == expected


def test_absent_subtrees_have_no_axes_and_theirs_are_not_read(params):
    axes = {"embedding": {"any": "thing"}, "blocks": 1, "gain": None}
    tree = params | {"embedding": None, "blocks": optax.MaskedNode()}
    assert axes_of_leaves("Muon", tree, axes) == [None, None, None]


def test_a_tree_without_leaves_needs_no_axes():
    for tree in ({}, (), None, {"a": None}):
        assert not any(axes_of_leaves("Muon", tree, {"other": "structure"}))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (None, "Muon needs matrix_axes: a tree with one MatrixAxes per leaf"),
        ({"a": HIDDEN}, "matrix_axes of Muon does not have the structure"),
        ({"a": {"w": None, "b": None}}, r"leaf 'a/w' of shape \(2, 3\) has no"),
        ({"a": {"w": "hidden", "b": None}}, "leaf 'a/w' must be a MatrixAxes"),
        ({"a": {"w": HIDDEN, "b": HIDDEN}}, "does not cover every axis of leaf 'a/b'"),
    ],
)
def test_axes_that_do_not_fit_the_tree_are_named(axes, message):
    with pytest.raises(ValueError, match=message):
        axes_of_leaves("Muon", {"a": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}}, axes)
