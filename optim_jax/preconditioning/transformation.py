"""`scale_by_shampoo`: the preconditioned direction as an Optax transformation."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optim_jax.preconditioning.blocking import (
    leaf_of_slot,
    stack_blocks,
    unstack_blocks,
)
from optim_jax.preconditioning.direction import init_state, take_step
from optim_jax.preconditioning.layout import Layout, leaf_inputs, make_layout
from optim_jax.preconditioning.mesh import place_blocks
from optim_jax.preconditioning.options import (
    Hyperparameters,
    Options,
    warn_of_ungrafted_start,
)
from optim_jax.preconditioning.outcome import saturating_add
from optim_jax.preconditioning.plan import Plan
from optim_jax.preconditioning.state import ShampooState
from optim_jax.trees.mesh_axes import explicit_mesh, type_specs, with_auto_axes


class BlockGradientTransformation(optax.GradientTransformationExtraArgs):
    """An Optax transformation that can also say how it cuts a tree."""

    plan: Any  # params or shapes -> Plan


def build_transformation(
    options: Options,
    hyperparameters: Hyperparameters,
    matrix_axes: Any,
    param_specs: Any,
) -> BlockGradientTransformation:
    """Makes the transformation from checked options."""
    warning = warn_of_ungrafted_start(options, hyperparameters)
    if warning:
        warnings.warn(warning, stacklevel=4)

    def layout_of(tree: Any) -> Layout:
        return make_layout(leaf_inputs(tree, matrix_axes, param_specs), options)

    def init(params: optax.Params) -> ShampooState:
        _refuse_flattened(params, options)
        return init_state(layout_of(params), hyperparameters)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        finite_leaves: dict[str, jax.Array] | None = None,
        **_: Any,
    ) -> tuple[optax.Updates, ShampooState]:
        # Params have the dtype of the state, and a leaf where the gradient is None.
        layout = layout_of(updates if params is None else params)
        if not layout.leaves:
            return updates, state._replace(count=optax.safe_increment(state.count))
        given = {
            jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree.leaves_with_path(updates)
        }

        def run(state: Any, given: Any, finite_leaves: Any) -> Any:
            return update_leaves(layout, hyperparameters, state, given, finite_leaves)

        arguments = (state, given, finite_leaves)
        mesh = explicit_mesh(arguments)
        if mesh is not None:
            run = with_auto_axes(run, mesh, (type_specs(given), type_specs(state)))
        directions, state = run(*arguments)
        return jax.tree.map_with_path(
            lambda path, leaf: directions[jax.tree_util.keystr(path)], updates
        ), state

    transformation = BlockGradientTransformation(init, update)
    transformation.plan = lambda tree: Plan(layout_of(tree), hyperparameters)
    return transformation


def _refuse_flattened(params: Any, options: Options) -> None:
    leaves = jax.tree.leaves(params)
    bare = len(leaves) == 1 and leaves[0] is params
    if bare and params.ndim == 1 and params.size > options.max_preconditioner_dim:
        raise ValueError(
            f"the parameters are one bare vector of {params.size} entries, as "
            "optax.flatten makes it; Shampoo needs the leaves as they are: remove "
            "optax.flatten"
        )


def update_leaves(
    layout: Layout,
    hyperparameters: Hyperparameters,
    state: ShampooState,
    gradients: dict[str, jax.Array],
    finite_leaves: dict[str, jax.Array] | None,
) -> tuple[dict[str, jax.Array], ShampooState]:
    """One step on leaves by path.

    Args:
      layout: from `make_layout`.
      hyperparameters: numbers of this step.
      state: before the step.
      gradients: by path; a leaf of the layout that is missing is left alone.
      finite_leaves: by path, whether the gradient is finite, where that was decided
        before; None to decide it here if the options ask for it.

    Returns:
      Directions by path, and the state after the step.
    """
    options = layout.options
    if finite_leaves is None and options.skip_nonfinite:
        finite_leaves = finite_by_path(gradients)
    flags, arrays = [], []
    for leaf in layout.leaves:
        gradient = gradients.get(leaf.path)
        flag = jnp.asarray(gradient is not None)
        if gradient is not None and finite_leaves is not None:
            flag = finite_leaves[leaf.path]
            gradient = jnp.where(flag, gradient, 0.0)
        flags.append(flag)
        arrays.append(gradient)
    active = None
    if finite_leaves is not None or len(gradients) < len(layout.leaves):
        # One flag more for the slots of no block.
        table = jnp.stack([*flags, jnp.asarray(True)])
        active = {
            key: place_blocks(table[owners], options)
            for key, owners in leaf_of_slot(layout).items()
        }
    blocks = stack_blocks(layout, arrays)
    directions, state = take_step(layout, hyperparameters, state, blocks, active)
    if finite_leaves is not None:
        any_skipped = ~jnp.all(jnp.stack(list(finite_leaves.values())))
        skipped = saturating_add(state.health.skipped, any_skipped.astype(jnp.int32))
        state = state._replace(health=state.health._replace(skipped=skipped))
    if options.comm_dtype is not None:
        directions = {k: d.astype(options.comm_dtype) for k, d in directions.items()}
    results = {}
    for leaf, array in zip(
        layout.leaves, unstack_blocks(layout, directions), strict=True
    ):
        if leaf.path in gradients:
            results[leaf.path] = array.astype(gradients[leaf.path].dtype)
    return results, state


def finite_by_path(gradients: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Whether all entries of a leaf are finite, for every leaf."""
    return {path: jnp.all(jnp.isfinite(leaf)) for path, leaf in gradients.items()}
