"""The step of a method that searches along the loss: it must see its rows again.

Micro-batches come as in any other step. `accumulate` adds up their gradient and keeps
their rows, one slot for each; `apply` hands the rows to the optimizer, which evaluates
as many of them at once as a micro-batch has. Both see the same function: the mean over
rows of `row_objective`, weighted so that it is the mean over tokens, with one key for
every row of a step.

A row of w tokens to predict counts w / w̄ times, w̄ the mean over the rows of the step:
one where rows are full, less where a row is padded. The mean over rows is then the
trainer's objective for any rows.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.config import TrainConfig
from experiments.optimizers import Optimizer, RowObjective
from experiments.sharding import BATCH_AXES
from experiments.training.state import GradientSum, TrainState, zero_gradient_sum
from experiments.training.step import Accumulate, Apply, build_apply_of
from models import Model
from models.layers.activation_sharding import shard_activation
from optim_jax import LBFGSMemory

# Fields of the optimizer's record, and their names in the log.
_LOGGED = {
    "alpha": "step_length",
    "alpha0": "first_trial",
    "backtracks": "backtracks",
    "ls_failed": "search_failed",
    "ratio": "sample_ratio",
    "b": "recommended_batch",
    "pair": "pair",
    "memory_count": "pairs_stored",
    "reset": "memory_reset",
    "grad_evals": "gradient_rows",
    "fn_evals": "loss_rows",
    "jvp_evals": "jvp_rows",
    "work": "work",
}


class Rows(NamedTuple):
    """The rows of a step as its optimizer gets them, one entry a row throughout.

    Attributes:
      batch: arrays by name, as the model takes them.
      share: float32, weight of the row over the mean weight of a row.
      key: data of the key of the row's random layers.
    """

    batch: Mapping[str, jax.Array]
    share: jax.Array
    key: jax.Array


class SearchSum(NamedTuple):
    """A `GradientSum`, and the micro-batches behind it."""

    gradients: Any
    objective: jax.Array
    loss: jax.Array
    weight: jax.Array
    batches: Mapping[str, jax.Array]  # leaves [slots, rows, ...]
    row_weights: jax.Array  # float32 [slots, rows], tokens that count


def row_objective(model: Model, micro_size: int) -> RowObjective:
    """What the optimizer evaluates: one loss a row, of `Rows`."""
    values = _row_values(model)

    def losses(params: Any, rows: Rows) -> jax.Array:
        keys = jax.random.wrap_key_data(rows.key)
        objectives, _ = values(params, rows.batch, keys)
        return rows.share * objectives

    return RowObjective(losses, rows_at_once=micro_size)


def _row_values(model: Model) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """`(params, batch, keys) -> (objectives, aux)`, of single rows."""

    def value(params, row, key):
        batch = jax.tree.map(lambda leaf: leaf[None], row)
        return model.loss(params, batch, key=key, train=True)

    def values(params, batch, keys):
        # Rows looked up by number have lost their layout.
        batch = jax.tree.map(
            lambda leaf: shard_activation(leaf, BATCH_AXES, *[None] * (leaf.ndim - 1)),
            batch,
        )
        return jax.vmap(value, (None, 0, 0))(params, batch, keys)

    return values


def _row_keys(state: TrainState, micro_index: jax.Array, rows: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), micro_index)
    return jax.random.split(key, rows)


def build_search_accumulate(model: Model) -> Accumulate:
    """`(state, sums, batch, micro_index) -> sums`."""
    values = _row_values(model)

    def total(params, batch, keys):
        objectives, aux = values(params, batch, keys)
        weights = jax.lax.stop_gradient(aux["weight"])
        return jnp.sum(weights * objectives), aux

    gradient_of = jax.value_and_grad(total, has_aux=True)

    def accumulate(
        state: TrainState,
        sums: SearchSum,
        batch: Mapping[str, jax.Array],
        micro_index: jax.Array,
    ) -> SearchSum:
        keys = _row_keys(state, micro_index, sums.row_weights.shape[1])
        (objective, aux), gradients = gradient_of(state.params, dict(batch), keys)
        weights = aux["weight"]
        return SearchSum(
            gradients=jax.tree.map(jnp.add, sums.gradients, gradients),
            objective=sums.objective + objective,
            loss=sums.loss + jnp.sum(weights * aux["loss"]),
            weight=sums.weight + jnp.sum(weights),
            batches=jax.tree.map(
                lambda slots, rows: slots.at[micro_index].set(rows),
                sums.batches,
                dict(batch),
            ),
            row_weights=sums.row_weights.at[micro_index].set(weights),
        )

    return accumulate


def build_search_apply(optimizer: Optimizer, *, skip_nonfinite: bool) -> Apply:
    """`(state, sums, rows, batch_size, measurement) -> (state, empty sums, metrics)`.

    The metrics are those of any step but for the learning rate, and in
    `metrics["search"]` what the line search found.
    """

    def update(
        state: TrainState, sums: SearchSum, gradients: Any, batch_size: jax.Array
    ) -> tuple[Any, Any, dict[str, Any]]:
        # Not the gradients of the parameters' dtype: pairs are small differences.
        del gradients, batch_size
        weight = jnp.maximum(sums.weight, 1e-30)
        updates, opt_state = optimizer.transformation.update(
            jax.tree.map(lambda total: total / weight, sums.gradients),
            state.opt_state,
            state.params,
            batch=rows_of_step(state, sums, weight),
            value=sums.objective / weight,
        )
        return updates, opt_state, {"search": _record(opt_state.info)}

    return build_apply_of(update, skip_nonfinite=skip_nonfinite)


def rows_of_step(state: TrainState, sums: SearchSum, weight: jax.Array) -> Rows:
    """The rows of a step, `weight` the sum of their weights."""
    slots, rows = sums.row_weights.shape
    keys = jax.vmap(lambda slot: _row_keys(state, slot, rows))(jnp.arange(slots))

    def joined(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(slots * rows, *leaf.shape[2:])

    return Rows(
        batch=jax.tree.map(joined, dict(sums.batches)),
        share=joined(sums.row_weights) * (slots * rows) / weight,
        key=joined(jax.random.key_data(keys)),
    )


def _record(info: Any) -> dict[str, jax.Array]:
    return {
        name: jnp.asarray(getattr(info, field), jnp.float32)
        for field, name in _LOGGED.items()
    }


def search_metrics(record: Mapping[str, jax.Array]) -> dict[str, float]:
    """What the log says of a line search, by metric name.

    The ratio of the sample test is left out where it is infinite, the rows showing
    nothing but noise.
    """
    read = jax.device_get(dict(record))
    return {
        f"optim/{name}": float(value)
        for name, value in read.items()
        if np.isfinite(value)
    }


def zero_search_sum(
    params: Any, micro_batch: Mapping[str, Any], slots: int
) -> SearchSum:
    """An empty accumulation with room for `slots` micro-batches like this one."""
    rows = jax.tree.leaves(micro_batch)[0].shape[0]
    return SearchSum(
        *zero_gradient_sum(params),
        batches=jax.tree.map(
            lambda leaf: jnp.zeros((slots, *leaf.shape), leaf.dtype), dict(micro_batch)
        ),
        row_weights=jnp.zeros((slots, rows), jnp.float32),
    )


def search_sum_sharding(sums: SearchSum, of_gradients: Any, mesh: Mesh) -> SearchSum:
    """Rows lie as in their micro-batches, gradients as told, the rest everywhere."""
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    return SearchSum(
        *GradientSum(of_gradients, whole, whole, whole),
        batches=jax.tree.map(lambda _: split, sums.batches),
        row_weights=split,
    )


def with_split_memory(shardings: Any, of_params: Any, mesh: Mesh) -> Any:
    """The shardings of a state with every stored pair split as the parameters are."""

    def stacked(sharding: NamedSharding) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(None, *sharding.spec))

    pairs = jax.tree.map(stacked, of_params)

    def is_memory(node: Any) -> bool:
        return isinstance(node, LBFGSMemory)

    return jax.tree.map(
        lambda node: node._replace(s=pairs, y=pairs) if is_memory(node) else node,
        shardings,
        is_leaf=is_memory,
    )


def require_searchable(config: TrainConfig, optimizer: Optimizer) -> None:
    """Refuses a line search over batches that change their size, or have one row.

    Raises:
      ValueError: names the fields to change.
    """
    if not optimizer.searches:
        return
    name, batch = config.optimizer.name, config.batch
    if batch.grows or batch.path:
        raise ValueError(
            f"optimizer.name={name} trains on batches of one size: leave out "
            "batch.adaptive, batch.path and batch.seesaw (optim/recommended_batch in "
            "the log says what size it would like)"
        )
    if batch.size < 2:
        raise ValueError(
            f"batch.size must be >= 2 with optimizer.name={name}, which estimates a "
            f"variance over the rows of a batch, got {batch.size}"
        )
