"""Which leaves are matrices, and a leaf seen as a stack of matrices.

Shape legend: B = product of the batch axes, M = product of the reduction (input) axes,
N = product of the output axes.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optim_jax.trees.paths import compile_rules, first_match, leaf_name
from optim_jax.typing import MatrixAxes

MATRIX_KINDS = ("hidden", "embedding", "head")
VECTOR_KINDS = ("norm", "bias")


def matrix_axes_from_rules(
    rules: Iterable[tuple[str, MatrixAxes]],
) -> Callable[[Any], Any]:
    """States which leaves are matrices by rules over the names of the leaves.

    For example::

      matrix_axes = matrix_axes_from_rules([
          (r"embedding$", MatrixAxes("embedding")),
          (r"norm/scale$", MatrixAxes("norm")),
          (r"kernel$", MatrixAxes("hidden")),
      ])
      axes = matrix_axes(params)

    Args:
      rules: pairs (regular expression, `MatrixAxes`). The expression is searched in
        the "/"-joined name of the leaf; the first match wins.

    Returns:
      A function from params (arrays or shapes) to a tree of the same structure with
      one `MatrixAxes` per leaf. A leaf of rank 0 or 1 that no rule matches is a
      `bias`. Calling it raises a `ValueError` that names the leaf for a leaf of rank
      2 or more that no rule matches, and for axes that do not fit the leaf.

    Raises:
      ValueError: a rule is not a pair of a valid expression and a `MatrixAxes`.
    """
    compiled = compile_rules(rules)
    for pattern, axes in compiled:
        if not isinstance(axes, MatrixAxes):
            raise ValueError(
                f"rule {pattern.pattern!r} must give a MatrixAxes, got {axes!r}"
            )
        if axes.kind not in MATRIX_KINDS + VECTOR_KINDS:
            raise ValueError(
                f"rule {pattern.pattern!r} has kind {axes.kind!r}; allowed are "
                f"{', '.join(MATRIX_KINDS + VECTOR_KINDS)}"
            )

    def axes_of_leaf(path: tuple[Any, ...], leaf: Any) -> MatrixAxes:
        name = leaf_name(path)
        axes = first_match(compiled, name)
        if axes is None:
            if len(leaf.shape) >= 2:
                raise ValueError(
                    f"no rule matches leaf {name!r} of shape {tuple(leaf.shape)}; "
                    "every leaf of rank 2 or more needs one"
                )
            return MatrixAxes("bias")
        check_axes(name, leaf.shape, axes)
        return axes

    def matrix_axes(params: Any) -> Any:
        return jax.tree.map_with_path(axes_of_leaf, params)

    return matrix_axes


def check_stated(name: str, matrix_axes: Any) -> None:
    """Refuses a method of matrices that was not told which leaves are some."""
    if matrix_axes is None:
        raise ValueError(
            f"{name} needs matrix_axes: a tree with one MatrixAxes per leaf, or a "
            "function from the parameters to it; got None"
        )


def axes_of_leaves(name: str, tree: Any, matrix_axes: Any) -> list[MatrixAxes | None]:
    """Reads what is stated about each leaf of a tree.

    Args:
      name: of the method, for messages.
      tree: arrays or shapes; `None` or `optax.MaskedNode` may stand for a subtree, and
        what the axes hold there is not read.
      matrix_axes: tree with one `MatrixAxes` per leaf (None is allowed for leaves of
        rank 0 and 1), or a function from `tree` to it.

    Returns:
      What is stated, in the order of `jax.tree.leaves(tree, is_leaf=is_absent)`; None
      for absent subtrees.

    Raises:
      ValueError: `matrix_axes` is None or has another structure, a leaf of rank 2 or
        more has no entry, or an entry does not fit its leaf.
    """
    check_stated(name, matrix_axes)
    nodes, structure = jax.tree.flatten_with_path(tree, is_leaf=is_absent)
    if all(is_absent(node) for _, node in nodes):
        return [None] * len(nodes)
    stated = matrix_axes(tree) if callable(matrix_axes) else matrix_axes
    try:
        entries = structure.flatten_up_to(stated)
    except ValueError as error:
        raise ValueError(
            f"matrix_axes of {name} does not have the structure of the parameters: "
            f"{error}"
        ) from error
    found = []
    for (path, node), axes in zip(nodes, entries, strict=True):
        if is_absent(node):
            found.append(None)
        else:
            check_entry(leaf_name(path), tuple(jnp.shape(node)), axes)
            found.append(axes)
    return found


def is_absent(node: Any) -> bool:
    """Whether a node stands for a subtree without leaves."""
    return node is None or isinstance(node, optax.MaskedNode)


def check_entry(name: str, shape: tuple[int, ...], axes: Any) -> None:
    """Checks what is stated about one leaf; axes are read of `hidden` leaves only.

    Raises:
      ValueError: it is not a `MatrixAxes` that fits, or missing for a matrix.
    """
    if axes is None:
        if len(shape) >= 2:
            raise ValueError(
                f"leaf {name!r} of shape {shape} has no matrix_axes; every leaf of "
                "rank 2 or more needs a MatrixAxes"
            )
        return
    kinds = MATRIX_KINDS + VECTOR_KINDS
    if not isinstance(axes, MatrixAxes) or axes.kind not in kinds:
        raise ValueError(
            f"matrix_axes of leaf {name!r} must be a MatrixAxes of the kind "
            f"{', '.join(kinds)}, got {axes!r}"
        )
    if axes.kind == "hidden":
        check_axes(name, shape, axes)


def check_axes(name: str, shape: tuple[int, ...], axes: MatrixAxes) -> None:
    """Checks that the axes of a matrix leaf cover each of its axes once.

    Args:
      name: name of the leaf, for the message.
      shape: shape of the leaf.
      axes: its axes; those of a `norm` or `bias` leaf are not looked at.

    Raises:
      ValueError: an axis is missing, doubled or out of range.
    """
    if axes.kind in VECTOR_KINDS:
        return
    stated = axes.batch_axes + axes.reduction_axes + axes.output_axes
    if sorted(axis % len(shape) if shape else axis for axis in stated) != list(
        range(len(shape))
    ) or any(not -len(shape) <= axis < len(shape) for axis in stated):
        raise ValueError(
            f"{axes} does not cover every axis of leaf {name!r} of shape "
            f"{tuple(shape)} exactly once"
        )
    if not axes.reduction_axes or not axes.output_axes:
        raise ValueError(
            f"{axes} of leaf {name!r} needs at least one reduction axis and one "
            "output axis"
        )


def matrix_shape(shape: tuple[int, ...], axes: MatrixAxes) -> tuple[int, int]:
    """Sizes (M, N) of the input and the output side of the matrices of a leaf."""
    return (
        math.prod(shape[axis] for axis in axes.reduction_axes),
        math.prod(shape[axis] for axis in axes.output_axes),
    )


def as_matrices(leaf: jax.Array, axes: MatrixAxes) -> jax.Array:
    """Views a leaf as a stack of matrices.

    Args:
      leaf: array of any rank that `axes` fits.
      axes: its axes; the kind must be `hidden`, `embedding` or `head`.

    Returns:
      Array (B, M, N): input side first, as a Flax kernel is stored.
    """
    grouped_bmn = jnp.transpose(leaf, _grouped_order(leaf.ndim, axes))
    b, m = len(axes.batch_axes), len(axes.reduction_axes)
    shape = grouped_bmn.shape
    return grouped_bmn.reshape(
        math.prod(shape[:b]), math.prod(shape[b : b + m]), math.prod(shape[b + m :])
    )


def from_matrices(
    matrices_bmn: jax.Array, shape: tuple[int, ...], axes: MatrixAxes
) -> jax.Array:
    """Turns a stack of matrices back into a leaf; the inverse of `as_matrices`.

    Args:
      matrices_bmn: array (B, M, N).
      shape: shape of the leaf.
      axes: the axes that `as_matrices` was given.

    Returns:
      Array of the given shape.
    """
    order = _grouped_order(len(shape), axes)
    grouped = matrices_bmn.reshape([shape[axis] for axis in order])
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return jnp.transpose(grouped, inverse)


def _grouped_order(rank: int, axes: MatrixAxes) -> tuple[int, ...]:
    """Permutation that brings batch, reduction and output axes together."""
    stated = axes.batch_axes + axes.reduction_axes + axes.output_axes
    return tuple(axis % rank for axis in stated)
