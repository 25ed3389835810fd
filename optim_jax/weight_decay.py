"""Weight decay as a term of the update, shared by several methods."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim_jax.typing import ScalarOrSchedule
from optim_jax.validation import (
    check_choice,
    check_nonnegative,
    check_value,
    require_params,
)

WeightDecayType = Literal["l2", "decoupled", "corrected", "independent"]
WEIGHT_DECAY_TYPES = ("l2", "decoupled", "corrected", "independent")


class DecayState(NamedTuple):
    """Counts the steps of a scheduled coefficient."""

    count: jax.Array


def decay_coefficient(
    kind: str,
    weight_decay: ScalarOrSchedule,
    learning_rate: ScalarOrSchedule,
    peak_lr: Any,
) -> ScalarOrSchedule:
    r"""Coefficient a of the term a W that is added to a direction.

    The update is then multiplied by :math:`-\eta_t`, so that a step shrinks W by

    * `l2`, `decoupled`: :math:`1 - \eta_t \lambda` (for `l2` the term belongs before
      the direction, to the gradient);
    * `corrected`: :math:`1 - \eta_t^2 \lambda / \eta_{max}`;
    * `independent`: :math:`1 - \eta_t \lambda / \eta_{max}`.

    Args:
      kind: one of the four.
      weight_decay: decay :math:`\lambda \ge 0`, or a schedule of the 0-based step.
      learning_rate: rate :math:`\eta_t`, or a schedule of the 0-based step.
      peak_lr: :math:`\eta_{max} > 0`; None takes a learning rate that is one number.

    Returns:
      The coefficient, a schedule where one of its parts is.

    Raises:
      ValueError: an argument is out of range, or `peak_lr` is needed.
    """
    check_choice("weight_decay_type", kind, WEIGHT_DECAY_TYPES)
    check_nonnegative(weight_decay=weight_decay)
    if kind in ("l2", "decoupled"):
        return weight_decay
    if peak_lr is None:
        if callable(learning_rate) or isinstance(learning_rate, jax.Array):
            raise ValueError(
                f"weight_decay_type={kind!r} divides by the peak learning rate: give "
                "peak_lr when learning_rate is a schedule or changes between steps"
            )
        peak_lr = learning_rate
    check_value("peak_lr", peak_lr, "finite and > 0", lambda v: 0.0 < v < float("inf"))

    def coefficient(step: Any) -> Any:
        rate = learning_rate(step) if callable(learning_rate) else learning_rate
        decay = weight_decay(step) if callable(weight_decay) else weight_decay
        return decay / peak_lr * (rate if kind == "corrected" else 1.0)

    if callable(learning_rate) or callable(weight_decay):
        return coefficient
    return coefficient(None)


def add_decay(
    coefficient: ScalarOrSchedule, mask: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Adds a multiple of the parameters to the updates, in the updates' dtype.

    Args:
      coefficient: the multiple, or a schedule of the 0-based step.
      mask: which leaves: a tree or prefix of bools, or a function from params to one.

    Returns:
      A transformation whose `update` needs params.
    """

    def init(params: optax.Params) -> Any:
        del params
        if callable(coefficient):
            return DecayState(jnp.zeros([], jnp.int32))
        return optax.EmptyState()

    def update(
        updates: optax.Updates, state: Any, params: Any = None, **_: Any
    ) -> tuple[optax.Updates, Any]:
        require_params("weight decay", params)
        scale = coefficient
        if callable(coefficient):
            scale = coefficient(state.count)
            count = jnp.asarray(optax.safe_increment(state.count))
            state = DecayState(count)
        updates = jax.tree.map(
            lambda u, p: None if u is None else (u + scale * p).astype(u.dtype),
            updates,
            params,
            is_leaf=lambda node: node is None,
        )
        return updates, state

    transformation = optax.GradientTransformationExtraArgs(init, update)
    return transformation if mask is None else optax.masked(transformation, mask)
