"""One training step: accumulate micro-batches, then apply the optimizer once.

Two compiled functions serve every batch size: `accumulate` adds the weighted gradient
of one micro-batch of fixed shape, `apply` divides by the weight and updates. Because
sums are weighted by the micro-batch's token weight, k micro-batches give the gradient
of the one large batch, not a mean of means. Steps that measure the noise scale put
`measurement.accumulate` in the place of `accumulate`; methods that search along the
loss have the two functions of `search_step`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.optimizers import Optimizer
from experiments.training.state import GradientSum, TrainState
from models import Model
from optim_jax.noise_scale import (
    BatchSizeController,
    NoiseScale,
    schedule_by_samples,
)

# (rows trained on, rows of a step) -> learning rate, in graph
Rate = Callable[[jax.Array, jax.Array], jax.Array]

Accumulate = Callable[..., GradientSum]
Apply = Callable[..., tuple[TrainState, GradientSum, dict[str, Any]]]
# (state, sums, mean gradients, batch size) -> (updates, optimizer state, metrics)
Update = Callable[..., tuple[Any, Any, dict[str, Any]]]


def weighted_objective(model: Model) -> Callable[..., tuple[jax.Array, Any]]:
    """`(params, batch, key) -> weight * objective, aux`, to be differentiated.

    Summed over micro-batches and divided by the sum of weights it is the mean over all
    tokens.
    """

    def objective(params, batch, key):
        mean, aux = model.loss(params, batch, key=key, train=True)
        return jax.lax.stop_gradient(aux["weight"]) * mean, aux

    return objective


def build_accumulate(model: Model) -> Accumulate:
    """`(state, sums, batch, micro_index) -> sums`."""
    gradient_of = jax.value_and_grad(weighted_objective(model), has_aux=True)

    def accumulate(
        state: TrainState,
        sums: GradientSum,
        batch: Mapping[str, jax.Array],
        micro_index: jax.Array,
    ) -> GradientSum:
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), micro_index)
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


def by_schedule(schedule: optax.Schedule, size: int, lr_power: float) -> Rate:
    """The schedule read by samples, times `(batch / size)^lr_power`.

    Args:
      schedule: rate as a function of steps of `size` rows.
      size: rows of the first step.
      lr_power: 0.5 follows the standard deviation of the gradient.
    """
    by_samples = schedule_by_samples(schedule, size)

    def rate(samples: jax.Array, batch_size: jax.Array) -> jax.Array:
        return by_samples(samples) * (batch_size / size) ** lr_power

    return rate


def build_apply(
    optimizer: Optimizer,
    rate: Rate,
    *,
    controller: BatchSizeController | None = None,
    skip_nonfinite: bool,
) -> Apply:
    """`build_apply_of` an optimizer that needs gradients and a learning rate."""

    def update(
        state: TrainState, sums: GradientSum, gradients: Any, batch_size: jax.Array
    ) -> tuple[Any, Any, dict[str, Any]]:
        del sums
        learning_rate = jnp.asarray(rate(state.samples, batch_size), jnp.float32)
        updates, opt_state = optimizer.at_rate(learning_rate).update(
            gradients, state.opt_state, state.params
        )
        return updates, opt_state, {"lr": learning_rate}

    return build_apply_of(update, controller=controller, skip_nonfinite=skip_nonfinite)


def build_apply_of(
    update: Update,
    *,
    controller: BatchSizeController | None = None,
    skip_nonfinite: bool,
) -> Apply:
    """`(state, sums, rows, batch_size, measurement) -> (state, empty sums, metrics)`.

    `update` is the optimizer's part; what it measures joins the metrics. `rows` were
    trained on in this step, `batch_size` is what decides the rate: the two differ in
    the last step of a run. `measurement` is what `controller` reads in steps that
    measure, and is ignored in others.

    `metrics["healthy"]` is false when the loss or a leaf's gradient norm is not
    finite, and `metrics["leaf_squared_norms"]` tells which leaf, in tree order. With
    `skip_nonfinite` such a step leaves parameters and optimizer state as they were.
    """

    def apply(
        state: TrainState,
        sums: GradientSum,
        rows: jax.Array,
        batch_size: jax.Array,
        measurement: NoiseScale | None,
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
        updates, opt_state, more = update(state, sums, gradients, batch_size)
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
            **more,
        }
        if controller is not None:
            batch = controller.update(state.batch, measurement, state.step)
            state = state._replace(batch=batch)
        state = state._replace(
            step=optax.safe_increment(state.step),
            samples=state.samples + rows,
            params=params,
            opt_state=opt_state,
        )
        return state, jax.tree.map(jnp.zeros_like, sums), metrics

    return apply
