"""Momentum on finished directions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim_jax.preconditioning.preconditioners import Momentum


class MomentumState(NamedTuple):
    """The buffer, like the params and at least float32."""

    momentum: Any


def scale_by_momentum(options: Momentum) -> optax.GradientTransformationExtraArgs:
    r"""Momentum whose buffer starts at zero.

    With a direction P, momentum :math:`\mu` and dampening :math:`\tau`,

    .. math::

      M_t = \mu M_{t-1} + (1 - \tau) P_t,

    and the update is :math:`M_t`, or :math:`(1 - \tau) P_t + \mu M_t` with Nesterov's
    look ahead. A leaf for which `finite_leaves` is false keeps its buffer.
    """
    momentum, weight = options.momentum, 1.0 - options.dampening

    def init(params: optax.Params) -> MomentumState:
        def zeros(leaf: jax.Array) -> jax.Array:
            dtype = jnp.promote_types(jnp.result_type(leaf), jnp.float32)
            return jnp.zeros_like(leaf, dtype)

        return MomentumState(jax.tree.map(zeros, params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: Any = None,
        *,
        finite_leaves: dict[str, jax.Array] | None = None,
        **_: Any,
    ) -> tuple[optax.Updates, MomentumState]:
        del params

        def advance(path: Any, buffer: jax.Array, direction: Any) -> Any:
            if direction is None:
                return buffer
            new = (momentum * buffer + weight * direction).astype(buffer.dtype)
            if finite_leaves is None:
                return new
            return jnp.where(finite_leaves[jax.tree_util.keystr(path)], new, buffer)

        def read(direction: Any, buffer: jax.Array) -> Any:
            if direction is None:
                return None
            if options.nesterov:
                buffer = weight * direction + momentum * buffer
            return buffer.astype(direction.dtype)

        buffers = jax.tree.map_with_path(advance, state.momentum, updates)
        updates = jax.tree.map(
            read, updates, buffers, is_leaf=lambda node: node is None
        )
        return updates, MomentumState(buffers)

    return optax.GradientTransformationExtraArgs(init, update)
