"""Fixed synthetic parameter trees with the shapes of small Llamas.

Shape legend: v vocabulary, d width, k key-value width, f feed-forward width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.typing import MatrixAxes


@dataclasses.dataclass(frozen=True)
class TreeShape:
    """Sizes of a Llama-like tree with untied embedding and head."""

    vocabulary: int
    width: int
    key_value_width: int
    feed_forward_width: int
    layers: int


TREES = {
    "tiny": TreeShape(64, 32, 16, 96, 1),  # 16 thousand parameters, for tests
    "small": TreeShape(1024, 128, 64, 352, 1),  # 450 thousand, for compile-time facts
    "5M": TreeShape(4096, 256, 128, 704, 4),
    "25M": TreeShape(7168, 512, 256, 1408, 6),
}


def leaf_shapes(tree: TreeShape) -> dict[str, Any]:
    """Shapes by name; projections are (input, output) matrices."""
    d, k, f = tree.width, tree.key_value_width, tree.feed_forward_width
    layer = {
        "attention_norm": (d,),
        "query": (d, d),
        "key": (d, k),
        "value": (d, k),
        "output": (d, d),
        "feed_forward_norm": (d,),
        "gate": (d, f),
        "up": (d, f),
        "down": (f, d),
    }
    return {
        "embedding": (tree.vocabulary, d),
        "layers": {f"layer_{i}": dict(layer) for i in range(tree.layers)},
        "final_norm": (d,),
        "head": (d, tree.vocabulary),
    }


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple)


def matrix_axes(tree: TreeShape) -> Any:
    """States for every leaf which kind of matrix it is, for matrix methods."""

    def axes(path: Any, shape: tuple[int, ...]) -> MatrixAxes:
        if len(shape) == 1:
            return MatrixAxes("norm")
        name = path[-1].key
        return MatrixAxes(name if name in ("embedding", "head") else "hidden")

    return jax.tree.map_with_path(axes, leaf_shapes(tree), is_leaf=_is_shape)


def _normal_leaves(tree: TreeShape, seed: int, scale: float, norm_mean: float) -> Any:
    rng = np.random.default_rng(seed)

    def leaf(shape: tuple[int, ...]) -> jax.Array:
        mean = norm_mean if len(shape) == 1 else 0.0
        return jnp.asarray(
            mean + scale * rng.standard_normal(shape, dtype=np.float32), jnp.float32
        )

    return jax.tree.map(leaf, leaf_shapes(tree), is_leaf=_is_shape)


def make_params(tree: TreeShape) -> Any:
    """Float32 parameters: matrices ~ N(0, 0.02^2), norms around one."""
    return _normal_leaves(tree, seed=0, scale=0.02, norm_mean=1.0)


def make_grads(tree: TreeShape) -> Any:
    """Float32 gradients ~ N(0, 0.001^2), the same at every call."""
    return _normal_leaves(tree, seed=1, scale=1e-3, norm_mean=0.0)


def parameter_count(params: Any) -> int:
    """Number of scalars in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
