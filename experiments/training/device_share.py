"""What one device does in a training step with embedding tables.

Inside `shard_map` where there are several; a share of a batch then has a leading axis
of one, as it was cut out of the batch of all devices.
"""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.sharding.table_exchange import DistributedTables
from experiments.training.sparse_state import RowGradients, SparseGradientSum
from models import Batch, Model
from optim_jax.row_sparse import RowRule, RowSparseState


def share_gradients(
    model: Model,
    tables: DistributedTables,
    params: dict[str, Any],
    batch: Batch,
    key: jax.Array | None,
) -> SparseGradientSum:
    """Gradients of this device's samples.

    Args:
      model: with `row_ids` and `loss_from_rows`.
      tables: where rows lie.
      params: `dense`, and this device's part of `rows`.
      batch: this device's share.
      key: of a model that draws; every device makes another one of it.

    Returns:
      Dense gradients and scalars summed over all devices; rows of this device's
      samples with a leading axis of one.
    """
    spread, axis = tables.devices > 1, tables.axis
    if spread:
        batch = jax.tree.map(lambda leaf: leaf[0], batch)
        if key is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
    ids = model.row_ids(batch)
    rows = tables.lookup(params["rows"], ids)

    def objective(rows: Any, dense: Any) -> tuple[jax.Array, Any]:
        mean, aux = model.loss_from_rows(rows, dense, batch, key=key, train=True)
        return jax.lax.stop_gradient(aux["weight"]) * mean, aux

    (total, aux), (of_rows, of_dense) = jax.value_and_grad(
        objective, argnums=(0, 1), has_aux=True
    )(rows, params["dense"])
    sums = (of_dense, total, aux["weight"] * aux["loss"], aux["weight"])
    if spread:
        sums = jax.lax.psum(sums, axis)
    slots = jax.tree.map(lambda leaf: leaf[None], RowGradients(ids, of_rows))
    return SparseGradientSum(sums[0], slots, *sums[1:])


def share_row_update(
    tables: DistributedTables,
    rule: RowRule,
    buffers: Any,
    states: Any,
    rows: RowGradients,
    weight: jax.Array,
    keep: jax.Array | None,
) -> tuple[Any, Any]:
    """One step of a rule on this device's part of the tables.

    Args:
      tables: where rows lie.
      rule: of the tables.
      buffers: of this device.
      states: of this device.
      rows: sums of `weight * gradient` over this device's samples.
      weight: what to divide them by.
      keep: bool (); False leaves every row and every count as it is. None is True.

    Returns:
      The new buffers and states.
    """
    ids = jax.tree.map(lambda leaf: leaf.reshape(-1), rows.ids)
    values = jax.tree.map(
        lambda leaf: leaf.reshape(-1, leaf.shape[-1]) / weight, rows.values
    )
    if keep is None:
        return tables.update(rule, buffers, states, ids, values)
    # An id out of every range is padding: no row is then touched.
    beyond = jnp.iinfo(jnp.int32).max
    ids = jax.tree.map(lambda leaf: jnp.where(keep, leaf, beyond), ids)
    new, new_states = tables.update(rule, buffers, states, ids, values)

    def counted(state: RowSparseState, old: RowSparseState) -> RowSparseState:
        return state._replace(count=jnp.where(keep, state.count, old.count))

    return new, jax.tree.map(
        counted,
        new_states,
        states,
        is_leaf=lambda node: isinstance(node, RowSparseState),
    )
