"""Adam's finished updates, with bias corrections that are exact in float32."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optim_jax.averaging.precision import (
    is_absent,
    next_count,
    scalar_at,
    scalar_dtype,
    scalar_like,
    widen,
)
from optim_jax.averaging.recursion import Scalar
from optim_jax.typing import Params, ScalarOrSchedule, Updates
from optim_jax.validation import as_static

ReadUpdate = Callable[[optax.OptState], Updates]


def adam_base(
    learning_rate: ScalarOrSchedule,
    b1: float | jax.Array,
    b2: float | jax.Array,
    eps: float | jax.Array,
    mu_dtype: Any = None,
) -> tuple[optax.GradientTransformation, ReadUpdate | None]:
    r"""Adam's update :math:`-\gamma_t \hat m_t / (\sqrt{\hat v_t} + \epsilon)`.

    The recursion of `optax.adam`. It differs in how 1 - b^t is computed: taken as a
    difference in float32, it is off by 6e-5 of itself at the first step for
    b2 = 0.999, which shows in a replay of the authors' trajectories. Scalars are
    gathered first, so that a parameter costs one division.

    Args:
      learning_rate: float, array or schedule of the 0-based step.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      mu_dtype: dtype of the first moment; None means that of the params.

    Returns:
      A transformation with an `optax.ScaleByAdamState`, and a function that reads the
      update of a step from the state after it; None where `mu_dtype` rounds the first
      moment in the state.
    """
    rate, eps = as_static("learning_rate", learning_rate), as_static("eps", eps)
    b1, b2 = as_static("b1", b1), as_static("b2", b2)

    def init(params: Params) -> optax.ScaleByAdamState:
        return optax.ScaleByAdamState(
            count=jnp.zeros([], jnp.int32),
            mu=optax.tree.zeros_like(params, dtype=mu_dtype),
            nu=optax.tree.zeros_like(params),
        )

    def read_update(state: Any) -> Updates:
        dtype, count = scalar_dtype(state.nu), jnp.asarray(state.count)
        rate_now = scalar_at(rate, count - 1, dtype)
        eps_now = scalar_at(eps, count, dtype)
        scale = -rate_now / _correction(b1, count, dtype)
        root_scale = 1.0 / _correction(b2, count, dtype)

        def direction(m: jax.Array, v: jax.Array) -> jax.Array:
            a, b, e = (scalar_like(s, v) for s in (scale, root_scale, eps_now))
            return a * m / (jnp.sqrt(b * v) + e)

        return jax.tree.map(direction, state.mu, state.nu)

    def update(
        updates: Updates, state: Any, params: Params | None = None
    ) -> tuple[Updates, optax.ScaleByAdamState]:
        del params
        dtype = scalar_dtype(state.nu)
        b1_now, b2_now = (scalar_at(b, state.count, dtype) for b in (b1, b2))
        mu = _moment(updates, state.mu, b1_now, order=1)
        nu = _moment(updates, state.nu, b2_now, order=2)
        moved = optax.ScaleByAdamState(next_count(state.count), mu, nu)
        directions = jax.tree.map(
            lambda u, g: g if is_absent(g) else u, read_update(moved), updates
        )
        return directions, moved._replace(mu=optax.tree.cast(mu, mu_dtype))

    transformation = optax.GradientTransformation(init, update)
    return transformation, (read_update if mu_dtype is None else None)


def _moment(updates: Updates, moments: Params, decay: Scalar, order: int) -> Params:
    """Moves a moment by the gradients; one without a gradient stays."""

    def move(moment: jax.Array, gradient: Any) -> jax.Array:
        if is_absent(gradient):
            return moment
        # Half precision is widened before it is squared or decayed.
        moment = widen(moment)
        powered = gradient.astype(jnp.promote_types(gradient.dtype, moment.dtype))
        if order == 2:
            powered = (powered * jnp.conj(powered)).real
        b = scalar_like(decay, moment)
        return (1.0 - b) * powered + b * moment

    return jax.tree.map(move, moments, updates)


def _correction(decay: Scalar, count: jax.Array, dtype: Any) -> Scalar:
    """1 - decay^count without cancellation, for count >= 1."""
    if isinstance(decay, float):
        if decay == 0.0:
            return 1.0
        return -jnp.expm1(count.astype(dtype) * math.log(decay))
    return -jnp.expm1(count.astype(dtype) * jnp.log(jnp.asarray(decay, dtype)))
