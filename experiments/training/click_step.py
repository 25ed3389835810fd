"""The two halves of a training step on clicks, as the loop calls them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.click_config import TableOptimizerConfig
from experiments.optimizers import Optimizer
from experiments.training.sparse_step import (
    SparseGradientSum,
    SparseState,
    SparseStep,
)
from experiments.training.state import TrainState
from experiments.training.step import Accumulate, Apply, Rate
from models import Batch
from optim_jax.row_sparse import (
    RowRule,
    sparse_adagrad,
    sparse_row_wise_adagrad,
    sparse_sgd,
)


def row_rule(config: TableOptimizerConfig, learning_rate: Any) -> RowRule:
    """The tables' rule at a learning rate, possibly traced."""
    if config.rule == "sgd":
        return sparse_sgd(learning_rate)
    rules = {"adagrad": sparse_adagrad, "row_wise_adagrad": sparse_row_wise_adagrad}
    return rules[config.rule](
        learning_rate,
        eps=config.eps,
        lr_decay=config.lr_decay,
        initial_accumulator_value=config.initial_accumulator_value,
    )


def build_click_accumulate(sparse: SparseStep) -> Accumulate:
    """`Setup.accumulate`: rows and their gradients go to the micro-batch's slot.

    Args:
      sparse: of the run.
    """
    return functools.partial(_accumulate, sparse)


def _accumulate(
    sparse: SparseStep,
    state: TrainState,
    sums: SparseGradientSum,
    batch: Batch,
    micro_index: jax.Array,
) -> SparseGradientSum:
    part = sparse.gradients(SparseState(state.params, state.opt_state), batch)

    def put(slots: jax.Array, leaf: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(
            slots, leaf[:, None], micro_index, axis=1
        )

    return SparseGradientSum(
        jax.tree.map(jnp.add, sums.dense, part.dense),
        jax.tree.map(put, sums.rows, part.rows),
        sums.objective + part.objective,
        sums.loss + part.loss,
        sums.weight + part.weight,
    )


def _squared_norms(leaves: Any) -> jax.Array:
    return jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(leaves)])


def build_click_apply(
    sparse: SparseStep,
    optimizer: Optimizer,
    rate_at: Rate,
    config: TableOptimizerConfig,
    *,
    peak: float,
    skip_nonfinite: bool,
) -> Apply:
    """`Setup.apply`: the dense part by its optimizer, the rows by their rule.

    Norms among the metrics are those of the dense part.

    Args:
      sparse: of the run.
      optimizer: of the dense part.
      rate_at: its learning rate; that of the tables keeps its ratio to it.
      config: of the tables.
      peak: learning rate of the dense part that `config.learning_rate` goes with.
      skip_nonfinite: leaves parameters and states as they were where something is not
        finite.
    """

    def apply(
        state: TrainState,
        sums: SparseGradientSum,
        rows: jax.Array,
        batch_size: jax.Array,
        measurement: None,
    ) -> tuple[TrainState, SparseGradientSum, dict[str, Any]]:
        del measurement
        weight = jnp.maximum(sums.weight, 1e-30)
        gradients = jax.tree.map(lambda total: total / weight, sums.dense)
        loss, squared_norms = sums.loss / weight, _squared_norms(gradients)
        of_rows = _squared_norms(sums.rows.values) / jnp.square(weight)
        healthy = jnp.isfinite(loss) & jnp.all(jnp.isfinite(squared_norms))
        healthy &= jnp.all(jnp.isfinite(of_rows))
        keep = healthy if skip_nonfinite else jnp.asarray(True)

        rate = jnp.asarray(rate_at(state.samples, batch_size), jnp.float32)
        dense, dense_state = state.params["dense"], state.opt_state["dense"]
        updates, opt_state = optimizer.at_rate(rate).update(
            gradients, dense_state, dense
        )
        params = optax.apply_updates(dense, updates)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(keep, new, old),
            (params, opt_state),
            (dense, dense_state),
        )
        table_rate = rate * (config.learning_rate / peak)
        tables, table_states = sparse.apply_rows(
            row_rule(config, table_rate),
            SparseState(state.params, state.opt_state),
            sums.rows,
            weight,
            keep,
        )
        state = state._replace(
            step=optax.safe_increment(state.step),
            samples=state.samples + rows,
            params={"dense": params, "rows": tables},
            opt_state={"dense": opt_state, "rows": table_states},
        )
        metrics = {
            "healthy": healthy,
            "leaf_squared_norms": jnp.concatenate([squared_norms, of_rows]),
            "loss": loss,
            "objective": sums.objective / weight,
            "grad_norm": jnp.sqrt(jnp.sum(squared_norms)),
            "update_norm": jnp.sqrt(jnp.sum(_squared_norms(updates))),
            "param_norm": jnp.sqrt(jnp.sum(_squared_norms(params))),
            "lr": rate,
        }
        # The slots are all written again before they are read.
        empty = jax.tree.map(jnp.zeros_like, sums._replace(rows=()))
        return state, empty._replace(rows=sums.rows), metrics

    return apply
