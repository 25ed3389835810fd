"""The weight c = 1 - mu_x that the newest z gets in the average x."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.averaging.precision import next_count, scalar_at
from optim_jax.averaging.recursion import Scalar
from optim_jax.typing import ScalarOrSchedule
from optim_jax.validation import as_static

# GPAState -> (c of this step, new weight_sum, new lr_max)
AverageWeight = Callable[[Any], tuple[Scalar, jax.Array, jax.Array]]


def exponential_weight(mu_x: ScalarOrSchedule) -> AverageWeight:
    """Weight of the newest z in an exponential average: 1 - mu_x."""
    mu_x = as_static("mu_x", mu_x)

    def weight(state: Any) -> tuple[Scalar, jax.Array, jax.Array]:
        c = 1.0 - scalar_at(mu_x, state.count, state.mu_y.dtype)
        return c, state.weight_sum, state.lr_max

    return weight


def running_mean_weight(
    learning_rate: ScalarOrSchedule,
    weight_pow: ScalarOrSchedule,
    weight_lr_power: ScalarOrSchedule,
    use_max_lr: bool,
) -> AverageWeight:
    """Weight of the newest z in the weighted mean of Schedule-Free."""

    def weight(state: Any) -> tuple[Scalar, jax.Array, jax.Array]:
        dtype = state.weight_sum.dtype
        learning_rate_now = jnp.asarray(
            scalar_at(learning_rate, state.count, dtype), dtype
        )
        lr_max = jnp.maximum(state.lr_max, learning_rate_now)
        step = next_count(state.count).astype(dtype)
        power = jnp.asarray(scalar_at(weight_pow, state.count, dtype), dtype)
        lr_power = jnp.asarray(scalar_at(weight_lr_power, state.count, dtype), dtype)
        newest = step**power * (lr_max if use_max_lr else learning_rate_now) ** lr_power
        weight_sum = state.weight_sum + newest
        c = jnp.where(
            weight_sum > 0, newest / jnp.where(weight_sum > 0, weight_sum, 1.0), 0.0
        )
        return c, weight_sum, lr_max

    return weight
