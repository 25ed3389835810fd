"""Which leaves of a gradient count in a noise scale, and as what.

A leaf counts if the mask lets it and, under the spectral geometry, if it is `hidden`.
Everything here is Python on shapes, done before any arithmetic.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optim_jax.trees.matrices import (
    check_entry,
    check_stated,
    is_absent,
    matrix_shape,
)
from optim_jax.trees.paths import leaf_name
from optim_jax.typing import MatrixAxes
from optim_jax.validation import check_choice, check_constant, check_nonnegative

GEOMETRIES = ("l2", "sign", "spectral")
SIDES = ("min", "row", "col", "tightest")
METHODS = ("eigh", "matmul")


@dataclasses.dataclass(frozen=True)
class LeafLayout:
    """What one leaf is.

    Attributes:
      name: "/"-joined name.
      path: key path.
      shape: shape of the gradient, without a draw axis.
      dtype: of its statistics; None for a leaf that is not a real number (an integer
        one, which is ignored).
      counts: whether it contributes to the noise scale.
      axes: its matrix axes, for the leaves that count under `spectral`.
      sides: Gram matrices kept of it: of `row`, of `col`, or of both.
    """

    name: str
    path: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: Any
    counts: bool
    axes: MatrixAxes | None = None
    sides: tuple[str, ...] = ()

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Sizes of the axes that enumerate matrices."""
        assert self.axes is not None
        return tuple(self.shape[axis] for axis in self.axes.batch_axes)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows (product of the reduction axes) and columns of one matrix."""
        assert self.axes is not None
        return matrix_shape(self.shape, self.axes)

    def gram_shape(self, side: str) -> tuple[int, ...]:
        """Shape of the Gram matrices of one side."""
        size = self.matrix_shape[side == "col"]
        return (*self.batch_shape, size, size)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The leaves of a tree of gradients in the order of `jax.tree.leaves`.

    Attributes:
      geometry: `"l2"`, `"sign"` or `"spectral"`.
      side: `"min"`, `"row"`, `"col"` or `"tightest"`; read under `spectral` only.
      structure: structure of the tree.
      leaves: one entry per leaf.
    """

    geometry: str
    side: str
    structure: Any
    leaves: tuple[LeafLayout, ...]

    @property
    def dtype(self) -> Any:
        """The widest dtype of the statistics."""
        return jnp.result_type(
            *(leaf.dtype for leaf in self.leaves if leaf.dtype is not None)
        )

    def flatten(self, tree: Any) -> list[Any]:
        """What a tree of this structure holds at each leaf, absent nodes included."""
        return self.structure.flatten_up_to(tree)

    def unflatten(self, values: Any) -> Any:
        """A tree with one value per leaf; None becomes an `optax.MaskedNode`."""
        return self.structure.unflatten(
            [optax.MaskedNode() if value is None else value for value in values]
        )

    def block_weights(self, weights: Any) -> list[Any]:
        """Multiplier of the dual norm of each leaf that counts, None of the others.

        Args:
          weights: tree of numbers >= 0 or a prefix of one; None for all ones.

        Raises:
          ValueError: a weight is missing or out of range.
        """
        if weights is None:
            return [1.0 if leaf.counts else None for leaf in self.leaves]
        entries = _prefix_entries(weights)
        found = []
        for leaf in self.leaves:
            weight = None
            if leaf.counts:
                weight = _prefix_entry("block_weights", entries, leaf.path, leaf.name)
                argument = f"block_weights of leaf {leaf.name!r}"
                check_constant(argument, weight)
                check_nonnegative(**{argument: weight})
            found.append(weight)
        return found


def layout_of(
    tree: Any, geometry: str, matrix_axes: Any, side: str, mask: Any
) -> Layout:
    """Reads from a tree of gradients what each leaf is.

    Args:
      tree: gradients, or anything with their shapes and dtypes; `None` and
        `optax.MaskedNode` in place of a subtree have no leaves.
      geometry: `"l2"`, `"sign"` or `"spectral"`.
      matrix_axes: tree with one `MatrixAxes` per leaf (None is allowed for leaves of
        rank 0 and 1), or a function from `tree` to it; read under `spectral` only.
      side: which Gram matrix stands for the noise of a matrix under `spectral`.
      mask: tree of bools or a prefix of one, or a function from `tree` to it; None
        lets every leaf count.

    Returns:
      The layout.

    Raises:
      ValueError: an argument is not allowed, a leaf is complex, a leaf of rank 2 or
        more has no axes under `spectral`, axes do not fit their leaf, or no leaf
        counts.
    """
    check_choice("geometry", geometry, GEOMETRIES)
    check_choice("side", side, SIDES)
    pairs, structure = jax.tree.flatten_with_path(tree)
    admitted = _admitted(tree, mask, pairs)
    axes = [None] * len(pairs)
    if geometry == "spectral":
        axes = _axes_entries(tree, matrix_axes)
    leaves = tuple(
        _leaf_layout(path, leaf, geometry, side, is_admitted, leaf_axes)
        for (path, leaf), is_admitted, leaf_axes in zip(
            pairs, admitted, axes, strict=True
        )
    )
    if not any(leaf.counts for leaf in leaves):
        which = "hidden leaf" if geometry == "spectral" else "leaf"
        raise ValueError(
            f"no leaf counts in the {geometry} noise scale: the gradients have no "
            f"{which} of real numbers that the mask lets through"
        )
    return Layout(geometry, side, structure, leaves)


def layout_of_draws(
    stacked: Any, geometry: str, matrix_axes: Any, side: str, mask: Any
) -> tuple[Layout, int]:
    """Reads the layout of gradients stacked along axis 0, and their number.

    Args:
      stacked: leaves (n, ...), all with the same n.
      geometry: as in `layout_of`.
      matrix_axes: as in `layout_of`; refers to the leaves without axis 0.
      side: as in `layout_of`.
      mask: as in `layout_of`; refers to the leaves without axis 0.

    Returns:
      The layout of one gradient, and n.

    Raises:
      ValueError: a leaf has another number of draws, or no axis for them.
    """
    draws = None
    for path, leaf in jax.tree.leaves_with_path(stacked):
        shape = jnp.shape(leaf)
        if draws is None and shape:
            draws = shape[0]
        if not shape or shape[0] != draws:
            raise ValueError(
                f"every leaf must stack the same number of draws along axis 0, but "
                f"leaf {leaf_name(path)!r} has the shape {shape} where the first leaf "
                f"has {draws} draws"
            )
    one_draw = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], jnp.result_type(leaf)),
        stacked,
    )
    return layout_of(one_draw, geometry, matrix_axes, side, mask), draws or 0


def _leaf_layout(
    path: tuple[Any, ...],
    leaf: Any,
    geometry: str,
    side: str,
    admitted: bool,
    axes: Any,
) -> LeafLayout:
    name, shape, dtype = leaf_name(path), tuple(jnp.shape(leaf)), jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(
            f"noise scales are defined for real gradients only, but leaf {name!r} is "
            f"{dtype}"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        return LeafLayout(name, path, shape, None, counts=False)
    dtype = jnp.promote_types(dtype, jnp.float32)
    if geometry != "spectral" or not admitted:
        return LeafLayout(name, path, shape, dtype, counts=admitted)
    check_entry(name, shape, axes)
    if axes is None or axes.kind != "hidden":
        return LeafLayout(name, path, shape, dtype, counts=False)
    return LeafLayout(
        name, path, shape, dtype, True, axes, _sides(side, *matrix_shape(shape, axes))
    )


def _sides(side: str, rows: int, columns: int) -> tuple[str, ...]:
    if side == "min":
        return ("row",) if rows <= columns else ("col",)
    return ("row", "col") if side == "tightest" else (side,)


def _axes_entries(tree: Any, matrix_axes: Any) -> list[Any]:
    """What the axes tree holds at each leaf; at absent nodes it is not read."""
    check_stated("geometry='spectral'", matrix_axes)
    stated = matrix_axes(tree) if callable(matrix_axes) else matrix_axes
    nodes, structure = jax.tree.flatten(tree, is_leaf=is_absent)
    try:
        entries = structure.flatten_up_to(stated)
    except ValueError as error:
        raise ValueError(
            f"matrix_axes does not have the structure of the gradients: {error}"
        ) from error
    return [
        entry for node, entry in zip(nodes, entries, strict=True) if not is_absent(node)
    ]


def _admitted(tree: Any, mask: Any, pairs: list[Any]) -> list[bool]:
    """Whether the mask lets each leaf count."""
    if mask is None:
        return [True] * len(pairs)
    stated = mask(tree) if callable(mask) else mask
    entries = _prefix_entries(stated)
    for value in entries.values():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"mask must hold bools, got {value!r}")
    return [
        bool(_prefix_entry("mask", entries, path, leaf_name(path))) for path, _ in pairs
    ]


def _prefix_entries(prefix: Any) -> dict[tuple[Any, ...], Any]:
    return dict(jax.tree.leaves_with_path(prefix))


def _prefix_entry(
    argument: str,
    entries: dict[tuple[Any, ...], Any],
    path: tuple[Any, ...],
    name: str,
) -> Any:
    """The entry of a prefix tree that covers a leaf.

    Raises:
      ValueError: none does.
    """
    for length in range(len(path) + 1):
        if path[:length] in entries:
            return entries[path[:length]]
    raise ValueError(f"{argument} has no entry for leaf {name!r}")
