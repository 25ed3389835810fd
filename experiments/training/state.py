"""What a run carries from step to step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from models import Model
from optim_jax.noise_scale import BatchSizeController, BatchSizeState


class TrainState(NamedTuple):
    """Everything on the devices that a checkpoint must hold.

    `params` are always the parameters that gradients are taken at (the sequence y of
    an averaging method); evaluation derives x from them and `opt_state`.
    """

    step: jax.Array  # int32 (), updates applied so far
    samples: jax.Array  # int32 (), rows trained on so far
    params: Any
    opt_state: Any
    key: jax.Array  # typed PRNG key; step t uses fold_in(key, t), so it never changes
    batch: BatchSizeState | None = None  # of the batch-size controller, if there is one


class GradientSum(NamedTuple):
    """Weighted sums over the micro-batches of one step."""

    gradients: Any  # sum of weight * gradient, like the params, float32 or wider
    objective: jax.Array  # float32 (), sum of weight * objective
    loss: jax.Array  # float32 (), sum of weight * loss
    weight: jax.Array  # float32 (), sum of weights


def init_state(
    model: Model,
    transformation: optax.GradientTransformation,
    seed: int,
    controller: BatchSizeController | None = None,
) -> Callable[[], TrainState]:
    """A jit-able function that makes the state of step 0."""

    def init() -> TrainState:
        init_key, run_key = jax.random.split(jax.random.key(seed))
        params = model.init(init_key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            samples=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=transformation.init(params),
            key=run_key,
            batch=None if controller is None else controller.init(),
        )

    return init


def zero_gradient_sum(params: Any) -> GradientSum:
    """An empty accumulation."""
    zero = jnp.zeros((), jnp.float32)

    def zeros(leaf):
        return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))

    return GradientSum(jax.tree.map(zeros, params), zero, zero, zero)
