"""One training step: accumulate micro-batches, then apply the optimizer once.

Two compiled functions serve every batch size: `accumulate` adds the weighted gradient
of one micro-batch of fixed shape, `apply` divides by the weight and updates. Because
sums are weighted by the micro-batch's token weight, k micro-batches give the gradient
of the one large batch, not a mean of means.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.optimizers import Optimizer
from experiments.training.state import GradientSum, TrainState, zero_gradient_sum
from models import Model

Accumulate = Callable[..., GradientSum]
Apply = Callable[..., tuple[TrainState, GradientSum, dict[str, Any]]]


def build_accumulate(model: Model) -> Accumulate:
    """`(state, sums, batch, micro_index) -> sums`."""

    def weighted_objective(params, batch, key):
        objective, aux = model.loss(params, batch, key=key, train=True)
        weight = jax.lax.stop_gradient(aux["weight"])
        return weight * objective, aux

    def accumulate(
        state: TrainState,
        sums: GradientSum,
        batch: Mapping[str, jax.Array],
        micro_index: jax.Array,
    ) -> GradientSum:
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), micro_index)
        gradient_of = jax.value_and_grad(weighted_objective, has_aux=True)
        (objective, aux), gradients = gradient_of(state.params, batch, key)
        return GradientSum(
            gradients=jax.tree.map(jnp.add, sums.gradients, gradients),
            objective=sums.objective + objective,
            loss=sums.loss + aux["weight"] * aux["loss"],
            weight=sums.weight + aux["weight"],
        )

    return accumulate


def _squared_norms(tree: Any) -> jax.Array:
    """Squared Euclidean norm of each leaf, float32 (number of leaves,)."""
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
    return jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in leaves])


def build_apply(optimizer: Optimizer, *, skip_nonfinite: bool) -> Apply:
    """`(state, sums) -> (state, empty sums, metrics)`.

    `metrics["healthy"]` is false when the loss or a leaf's gradient norm is not
    finite, and `metrics["leaf_squared_norms"]` tells which leaf, in tree order. With
    `skip_nonfinite` such a step leaves parameters and optimizer state as they were.
    """
    update = optax.with_extra_args_support(optimizer.transformation).update

    def apply(
        state: TrainState, sums: GradientSum
    ) -> tuple[TrainState, GradientSum, dict[str, Any]]:
        weight = jnp.maximum(sums.weight, 1e-30)
        loss = sums.loss / weight
        gradients = jax.tree.map(
            lambda total, param: (total / weight).astype(param.dtype),
            sums.gradients,
            state.params,
        )
        squared_norms = _squared_norms(gradients)
        healthy = jnp.isfinite(loss) & jnp.all(jnp.isfinite(squared_norms))
        updates, opt_state = update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if skip_nonfinite:
            params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(healthy, new, old),
                (params, opt_state),
                (state.params, state.opt_state),
            )
        metrics = {
            "healthy": healthy,
            "leaf_squared_norms": squared_norms,
            "loss": loss,
            "objective": sums.objective / weight,
            "grad_norm": jnp.sqrt(jnp.sum(squared_norms)),
            "update_norm": jnp.sqrt(jnp.sum(_squared_norms(updates))),
            "param_norm": jnp.sqrt(jnp.sum(_squared_norms(params))),
            "lr": jnp.asarray(optimizer.schedule(state.step), jnp.float32),
        }
        state = state._replace(
            step=optax.safe_increment(state.step), params=params, opt_state=opt_state
        )
        return state, zero_gradient_sum(state.params), metrics

    return apply
