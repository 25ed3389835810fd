"""L-BFGS for changing samples: gradients are compared on the samples steps share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim_jax.quasi_newton.curvature_pairs import (
    SKIPPED,
    check_curvature,
    push_pair,
)
from optim_jax.quasi_newton.hessian_products import FORMS, apply_inverse_hessian
from optim_jax.quasi_newton.memory import (
    LBFGSMemory,
    check_memory_dtype,
    check_memory_size,
    check_real_leaves,
    clear_memory,
    init_memory,
    tree_dot,
    wide_dtype,
)
from optim_jax.typing import Params, Updates
from optim_jax.validation import check_choice, require_params

# Pairs refused in a row after which the memory is cleared.
MOST_SKIPS = 5


class MultibatchLBFGSState(NamedTuple):
    """State of `scale_by_multibatch_lbfgs`.

    Attributes:
      memory: the stored pairs.
      params: parameters at the last update, at least float32.
      overlap_grad: gradient there over the samples shared with the next update.
      decrement: g'Hg of the last update, for s'Bs after an unmodified step.
      is_open: bool, whether the two fields above hold one end of a pair.
      status: int32, of the last pair: 0 skipped or none, 1 accepted, 2 damped.
      skips: int32, pairs skipped in a row.
    """

    memory: LBFGSMemory
    params: Any
    overlap_grad: Any
    decrement: jax.Array
    is_open: jax.Array
    status: jax.Array
    skips: jax.Array


def scale_by_multibatch_lbfgs(
    memory_size: int = 10,
    *,
    curvature: str = "relative",
    eps: float | jax.Array | None = None,
    damping: bool = False,
    scale_first: bool = True,
    form: str = "compact",
    memory_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies gradients by the L-BFGS inverse Hessian, on samples that may change.

    A pair is :math:`s = w_k - w_{k-1}`, from the parameters themselves, and

    .. math::

      y = \nabla F_O(w_k) - \nabla F_O(w_{k-1}),

    with one and the same sample O at both ends: all of the last sample, evaluated
    again, or what it shares with the next one. The difference of two gradients over
    different samples has noise for curvature, with which the direction may ascend.
    Each `update` closes the pair that the one before opened, stores it if it is good
    (see `push_pair`), and returns :math:`H_k g`, which ascends: chain
    `optax.scale_by_learning_rate` or a line search behind it.

    `update` takes three keyword arguments:

    * `overlap_grad_new`: :math:`\nabla F_{O_{k-1}}(w_k)`, which closes the pair.
    * `overlap_grad`: :math:`\nabla F_{O_k}(w_k)`, which opens the next.
    * `step_info`: the step length alpha if the parameters have changed by exactly
      :math:`-\alpha` times what the last `update` returned, so that :math:`s^\top B s =
      \alpha^2 g^\top H g` needs no solve; None if they may have changed otherwise.

    Both gradients are the updates themselves if not given: right for gradients over
    all data. With `curvature="none"` that is `optax.scale_by_lbfgs`, which also stores
    pairs of negative curvature.

    After five pairs refused in a row the memory is cleared: an approximation B that is
    far too large would refuse all that follow (not with `curvature="none"`, which
    refuses none for that).

    Args:
      memory_size: number m of pairs, >= 1.
      curvature: which pairs are stored: "relative", "absolute" or "none".
      eps: curvature that is asked for, > 0, and < 1 with `damping`; None means 0.01, or
        0.2 with `damping`.
      damping: mends a pair of too little curvature by `damp_pair`.
      scale_first: multiplies the gradient by min(1, 1 / norm) while there is no pair.
      form: "compact" or "two_loop", see `apply_inverse_hessian`.
      memory_dtype: dtype of the stored pairs; None means that of the params, and
        float32 for half-precision leaves.

    Returns:
      An `optax.GradientTransformationExtraArgs` whose `update` needs params. Its state
      is a `MultibatchLBFGSState` with 2 m + 2 numbers per parameter.

    Raises:
      ValueError: an argument is out of range; a leaf is an integer array.
      TypeError: a leaf is complex.

    References:
      Bollapragada, Mudigere, Nocedal, Shi, Tang, 2018, "A Progressive Batching L-BFGS
      Method for Machine Learning", https://arxiv.org/abs/1802.05374.
      Berahas, Nocedal, Takac, 2016, "A Multi-Batch L-BFGS Method for Machine Learning",
      https://arxiv.org/abs/1605.06049.
    """
    check_memory_size(memory_size)
    check_memory_dtype(memory_dtype)
    check_curvature(curvature, eps, damping)
    check_choice("form", form, FORMS)

    def init(params: Params) -> MultibatchLBFGSState:
        check_real_leaves("scale_by_multibatch_lbfgs", params)
        memory = init_memory(params, memory_size, memory_dtype=memory_dtype)
        return MultibatchLBFGSState(
            memory=memory,
            params=_zeros_like(params),
            overlap_grad=_zeros_like(params),
            decrement=jnp.zeros_like(memory.gamma),
            is_open=jnp.zeros_like(memory.head, bool),
            status=jnp.zeros_like(memory.head),
            skips=jnp.zeros_like(memory.head),
        )

    def update(
        updates: Updates,
        state: Any,
        params: Params | None = None,
        *,
        overlap_grad_new: Updates | None = None,
        overlap_grad: Updates | None = None,
        step_info: float | jax.Array | None = None,
        **_: Any,
    ) -> tuple[Updates, MultibatchLBFGSState]:
        require_params("scale_by_multibatch_lbfgs", params)
        closing = updates if overlap_grad_new is None else overlap_grad_new
        opening = updates if overlap_grad is None else overlap_grad
        params, opening, closing = (
            _like(state.params, tree) for tree in (params, opening, closing)
        )
        sbs = None
        if step_info is not None:
            step = jnp.asarray(step_info, state.decrement.dtype)
            sbs = step**2 * state.decrement
        memory, status = push_pair(
            state.memory,
            jax.tree.map(jnp.subtract, params, state.params),
            jax.tree.map(jnp.subtract, closing, state.overlap_grad),
            sbs=sbs,
            curvature=curvature,
            eps=eps,
            damping=damping,
            where=state.is_open,
        )
        is_skipped = state.is_open & (status == SKIPPED)
        skips = jnp.where(is_skipped, jnp.minimum(state.skips, MOST_SKIPS) + 1, 0)
        if curvature != "none":
            is_locked = skips >= MOST_SKIPS
            memory = _clear_where(is_locked, memory)
            skips = jnp.where(is_locked, 0, skips)
        direction = apply_inverse_hessian(memory, updates, form=form)
        decrement = tree_dot(updates, direction)
        if scale_first:
            direction = _cap_first(memory, updates, direction)
        return direction, MultibatchLBFGSState(
            memory=memory,
            params=params,
            overlap_grad=opening,
            decrement=decrement.astype(state.decrement.dtype),
            is_open=jnp.ones_like(state.is_open),
            status=status,
            skips=skips,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _clear_where(is_locked: jax.Array, memory: LBFGSMemory) -> LBFGSMemory:
    empty = clear_memory(memory)
    return jax.tree.map(lambda new, old: jnp.where(is_locked, new, old), empty, memory)


def _cap_first(memory: LBFGSMemory, updates: Any, direction: Any) -> Any:
    """Shortens a direction that no pair has scaled to a length of at most one."""
    norm = jnp.sqrt(tree_dot(updates, updates))
    factor = jnp.where((memory.count == 0) & (norm > 1), 1 / norm, 1)
    return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), direction)


def _zeros_like(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, wide_dtype(leaf)), params)


def _like(kept: Any, tree: Any) -> Any:
    """A tree in the dtypes in which the state keeps it."""
    return jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), kept, tree)
