"""Leaves with non-finite gradients skip the step; directions are float32 or wider."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optim_jax.preconditioning.transformation import finite_by_path


def widened_and_finite(
    inner: optax.GradientTransformationExtraArgs, *, skip_nonfinite: bool
) -> optax.GradientTransformationExtraArgs:
    """Runs a chain on gradients of at least float32, and skips non-finite leaves.

    The members of the chain learn from `finite_leaves`, a dict from path to a scalar
    bool, which leaves to leave alone; the update of these leaves is exactly zero. The
    updates have the dtype of the gradients.

    Args:
      inner: a chain whose stateful members understand `finite_leaves`.
      skip_nonfinite: whether to look for non-finite gradients at all.
    """

    def update(
        updates: optax.Updates, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        def widen(leaf: jax.Array) -> jax.Array:
            return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))

        gradients = jax.tree.map(widen, updates)
        if not skip_nonfinite:
            directions, state = inner.update(gradients, state, params, **extra_args)
            return jax.tree.map(
                lambda d, g: d.astype(g.dtype), directions, updates
            ), state
        finite = finite_by_path(
            {
                jax.tree_util.keystr(path): leaf
                for path, leaf in jax.tree.leaves_with_path(updates)
            }
        )
        directions, state = inner.update(
            gradients, state, params, finite_leaves=finite, **extra_args
        )

        def guard(path: Any, direction: jax.Array, gradient: jax.Array) -> jax.Array:
            kept = finite[jax.tree_util.keystr(path)]
            return jnp.where(kept, direction, 0.0).astype(gradient.dtype)

        return jax.tree.map_with_path(guard, directions, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
