"""The grafting combinator: the direction of one method, the length of another."""

from typing import Any, NamedTuple

import jax
import optax

from optim_jax.preconditioning.blocking import stack_blocks, unstack_blocks
from optim_jax.preconditioning.direction import graft_norm
from optim_jax.preconditioning.transformation import BlockGradientTransformation
from optim_jax.trees.mesh_axes import explicit_mesh, type_specs, with_auto_axes
from optim_jax.validation import check_choice, check_value


class GraftState(NamedTuple):
    """States of the two methods."""

    direction: Any
    magnitude: Any


def graft(
    direction: optax.GradientTransformation,
    magnitude: optax.GradientTransformation,
    granularity: str = "block",
    eps: float = 1e-16,
) -> optax.GradientTransformationExtraArgs:
    r"""Gives the updates of one method the norms of another's (Agarwal et al., 2020).

    With d and m the updates of the two on the same gradients, the result is
    :math:`d \, \|m\|_F / (\|d\|_F + \epsilon)` per leaf or per block.

    `shampoo(grafting=...)` is the ready-made form: there both sides see the same
    filtered gradient, and the first steps are the magnitude's alone.

    Args:
      direction: what gives the direction; per block, what `scale_by_shampoo` or
        `scale_by_soap` returned.
      magnitude: what gives the norms.
      granularity: `"block"`, the blocks that the direction's method cuts, or `"leaf"`.
      eps: added to the norm of the direction, > 0.

    Raises:
      ValueError: an argument is out of range, or the direction has no blocks.
    """
    check_choice("granularity", granularity, ("block", "leaf"))
    check_value("eps", eps, "> 0", lambda v: v > 0.0)
    if granularity == "block" and not isinstance(
        direction, BlockGradientTransformation
    ):
        raise ValueError(
            "granularity='block' needs a direction made by scale_by_shampoo or "
            "scale_by_soap, which cut leaves into blocks; use granularity='leaf'"
        )
    first = optax.with_extra_args_support(direction)
    second = optax.with_extra_args_support(magnitude)

    def init(params: optax.Params) -> GraftState:
        return GraftState(first.init(params), second.init(params))

    def update(
        updates: optax.Updates, state: Any, params: Any = None, **extra: Any
    ) -> tuple[optax.Updates, GraftState]:
        d, d_state = first.update(updates, state.direction, params, **extra)
        m, m_state = second.update(updates, state.magnitude, params, **extra)
        if granularity == "leaf":
            grafted = jax.tree.map(
                lambda x, y: graft_norm(x[None], y[None], eps)[0].astype(x.dtype), d, m
            )
        else:
            assert isinstance(direction, BlockGradientTransformation)
            grafted = _graft_blocks(direction, d, m, eps)
        return grafted, GraftState(d_state, m_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _graft_blocks(
    transformation: BlockGradientTransformation,
    direction: Any,
    magnitude: Any,
    eps: float,
) -> Any:
    layout = transformation.plan(direction).layout
    leaves, structure = jax.tree.flatten(direction)

    def run(first: Any, second: Any) -> Any:
        first, second = stack_blocks(layout, first), stack_blocks(layout, second)
        stacks = {key: graft_norm(first[key], second[key], eps) for key in first}
        arrays = unstack_blocks(layout, stacks)
        pairs = zip(arrays, leaves, strict=True)
        return [array.astype(leaf.dtype) for array, leaf in pairs]

    mesh = explicit_mesh(leaves)
    if mesh is not None:
        run = with_auto_axes(run, mesh, type_specs(leaves))
    return jax.tree.unflatten(structure, run(leaves, jax.tree.leaves(magnitude)))
