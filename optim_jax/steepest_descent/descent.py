"""A step against a direction, with decoupled weight decay."""

from typing import Any

import optax

from optim_jax.steepest_descent.precision import check_real_leaves, in_single_precision
from optim_jax.typing import Params, ScalarOrSchedule, Updates
from optim_jax.validation import check_nonnegative, require_params
from optim_jax.weight_decay import add_decay

Mask = Any  # tree or prefix of bools, or params -> such a tree


def descend(
    name: str,
    direction: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    mask: Mask,
) -> optax.GradientTransformationExtraArgs:
    r"""The update :math:`-\gamma_t (p_t + \lambda x_t)` of a direction p.

    The decay is in the chain whatever its value, so that the state does not depend on
    it. Half-precision leaves are rounded once, at the end.

    Args:
      name: of the method, for messages.
      direction: gives the ascent direction p.
      learning_rate: :math:`\gamma`, a number or schedule >= 0.
      weight_decay: :math:`\lambda`, a number or schedule >= 0.
      mask: which leaves are decayed.

    Raises:
      ValueError: an argument is out of range.
    """
    check_nonnegative(learning_rate=learning_rate, weight_decay=weight_decay)
    chain = in_single_precision(
        optax.chain(
            direction,
            add_decay(weight_decay, mask),
            optax.scale_by_learning_rate(learning_rate),  # type: ignore[arg-type]
        )
    )

    def init(params: Params) -> Any:
        check_real_leaves(name, params)
        return chain.init(params)

    def update(
        updates: Updates, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, Any]:
        require_params(name, params)
        return chain.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)
