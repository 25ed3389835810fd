"""Primal averaging of finished updates, kept as the displacement w = z - x."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim_jax.averaging.precision import (
    is_absent,
    next_count,
    scalar_at,
    scalar_dtype,
    scalar_like,
    wide_dtype,
)
from optim_jax.averaging.recursion import advance_displacement
from optim_jax.typing import Params, ScalarOrSchedule, Updates
from optim_jax.validation import (
    as_static,
    check_decay_rate,
    check_inexact_leaves,
    check_value,
)


class PrimalAveragingState(NamedTuple):
    """State of `scale_by_primal_averaging`.

    Attributes:
      count: int32 (), number of updates made.
      w: displacement z - x, like params; float32 for half-precision leaves.
      mu_y: (), the mu_y at which the current y lies; float32, or float64 as soon as one
        parameter leaf is.
    """

    count: jax.Array
    w: Params
    mu_y: jax.Array


def scale_by_primal_averaging(
    mu_x: ScalarOrSchedule = 0.9967, mu_y: ScalarOrSchedule = 0.7
) -> optax.GradientTransformationExtraArgs:
    r"""Generalized Primal Averaging of the updates that come in.

    The recursion of `gpa` in terms of :math:`w = z - x`, which starts at 0:

    .. math::

      \Delta y_t = \mu_y (1 - \mu_x) w_t + (1 - \mu_x \mu_y) u_t, \quad
      w_{t+1} = \mu_x (w_t + u_t),

    with :math:`x = y - (1 - \mu_y) w` and :math:`z = y + \mu_y w`. It needs neither
    params nor a division by mu_y. It takes *finished* updates and so stands last, after
    the learning rate and the sign::

      optax.chain(optax.adam(schedule), optim_jax.scale_by_primal_averaging())

    With mu_y = 0 the params follow the base's own trajectory and `gpa_eval_params`
    returns its exponential average with decay mu_x. This form and its use of a
    time-varying mu_y are derived here, not read in the paper.

    Args:
      mu_x: smoothing of x in [0, 1), or a schedule of the 0-based step.
      mu_y: how close y sits to x, in [0, 1], or a schedule of the 0-based step. When it
        changes, y moves and x stays.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `PrimalAveragingState`.

    Raises:
      ValueError: an argument is out of range.

    References:
      Defazio, Mishchenko, Raman, Shi, Xiao, 2025, https://arxiv.org/abs/2512.17131.
    """
    check_decay_rate("mu_x", mu_x)
    check_value("mu_y", mu_y, "in [0, 1]", lambda v: 0.0 <= v <= 1.0)
    mu_x, mu_y = as_static("mu_x", mu_x), as_static("mu_y", mu_y)

    def init(params: Params) -> PrimalAveragingState:
        check_inexact_leaves("scale_by_primal_averaging", params)
        dtype = scalar_dtype(params)
        count = jnp.zeros([], jnp.int32)
        return PrimalAveragingState(
            count=count,
            w=jax.tree.map(lambda p: jnp.zeros_like(p, wide_dtype(p)), params),
            mu_y=jnp.array(scalar_at(mu_y, count, dtype), dtype),
        )

    def update(
        updates: Updates,
        state: Any,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Updates, PrimalAveragingState]:
        del params, extra_args
        dtype = state.mu_y.dtype
        mu_x_now = scalar_at(mu_x, state.count, dtype)
        mu_y_now = scalar_at(mu_y, state.count, dtype)
        mu_y_old = mu_y if isinstance(mu_y, float) else state.mu_y

        def advance(w, u):
            if is_absent(u):
                return u, w
            scalars = (scalar_like(s, w) for s in (mu_x_now, mu_y_old, mu_y_now))
            increment, w = advance_displacement(w, u.astype(w.dtype), *scalars)
            return increment.astype(u.dtype), w

        leaves, treedef = jax.tree.flatten(state.w)
        pairs = [
            advance(*pair)
            for pair in zip(leaves, treedef.flatten_up_to(updates), strict=True)
        ]
        return treedef.unflatten([u for u, _ in pairs]), PrimalAveragingState(
            count=next_count(state.count),
            w=treedef.unflatten([w for _, w in pairs]),
            mu_y=state.mu_y
            if isinstance(mu_y, float)
            else jnp.asarray(mu_y_now, dtype),
        )

    return optax.GradientTransformationExtraArgs(init, update)
