"""Hidden matrices to one transformation, all other leaves to another."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from optim_jax.steepest_descent.spectral import check_leaves, hidden_axes
from optim_jax.trees.matrices import check_stated, is_absent
from optim_jax.typing import MatrixAxesTree, Params, Updates
from optim_jax.validation import require_params


def route_hidden(
    name: str,
    matrix_axes: MatrixAxesTree,
    hidden: Callable[[Any], optax.GradientTransformation],
    other: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Updates the hidden matrices by one transformation and the rest by another.

    Args:
      name: of the method, for messages.
      matrix_axes: what each leaf is: a tree, or a function from params to it. A
        function sees the whole tree, whatever the parts are given.
      hidden: from the tree of `MatrixAxes` of hidden leaves to their transformation.
      other: the transformation of all other leaves.

    Returns:
      `optax.partition` with the labels `hidden` and `other`, whose `update` needs
      params.

    Raises:
      ValueError: `matrix_axes` is None; at `init`, what `axes_of_leaves` and
        `check_leaves` raise.
    """
    check_stated(name, matrix_axes)
    hidden(matrix_axes)  # its arguments are checked now, not at the first step

    def partition(params: Any) -> optax.GradientTransformationExtraArgs:
        leaves, structure = jax.tree.flatten(params, is_leaf=is_absent)
        axes = hidden_axes(name, params, matrix_axes)
        labels = [
            leaf if is_absent(leaf) else "other" if of_leaf is None else "hidden"
            for leaf, of_leaf in zip(leaves, axes, strict=True)
        ]
        return optax.partition(
            {"hidden": hidden(structure.unflatten(axes)), "other": other},
            structure.unflatten(labels),
        )

    def init(params: Params) -> Any:
        check_leaves(name, params, hidden_axes(name, params, matrix_axes))
        return partition(params).init(params)

    def update(
        updates: Updates, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, Any]:
        require_params(name, params)
        return partition(params).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)
