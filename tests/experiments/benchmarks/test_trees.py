import jax
import pytest

import optim_jax
from experiments.benchmarks.trees import (
    TREES,
    leaf_shapes,
    make_grads,
    make_params,
    matrix_axes,
)


def _count(tree):
    shapes = jax.tree.leaves(leaf_shapes(tree), is_leaf=lambda x: isinstance(x, tuple))
    return sum(shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in shapes)


# Counted by hand from the widths: embedding and head, projections, norms.
@pytest.mark.parametrize(
    "size, parameters", [("tiny", 16_480), ("5M", 5_048_576), ("25M", 25_041_408)]
)
def test_sizes_are_fixed(size, parameters):
    assert _count(TREES[size]) == parameters


def test_trees_are_the_same_at_every_call():
    first, second = make_grads(TREES["tiny"]), make_grads(TREES["tiny"])
    jax.tree.map(lambda a, b: (a == b).all() or pytest.fail("differs"), first, second)


def test_axes_state_every_leaf():
    params = make_params(TREES["tiny"])
    axes = matrix_axes(TREES["tiny"])
    kinds = jax.tree.map(
        lambda leaf, stated: (leaf.ndim, stated.kind),
        params,
        axes,
        is_leaf=lambda x: isinstance(x, optim_jax.MatrixAxes),
    )
    assert kinds["embedding"] == (2, "embedding")
    assert kinds["head"] == (2, "head")
    assert kinds["final_norm"] == (1, "norm")
    layer = kinds["layers"]["layer_0"]
    assert layer["down"] == layer["query"] == (2, "hidden")
    assert layer["attention_norm"] == (1, "norm")
