"""Shampoo's part in a run: its counters in the log, and refreshes by hand."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.training.state import TrainState
from optim_jax import (
    Plan,
    ShampooState,
    check_preconditioners,
    refresh_preconditioners,
)


def counters(state: TrainState) -> list[ShampooState]:
    """Copies of the counters of Shampoo, to be read when the state is long donated."""
    leaves = jax.tree.leaves(state.opt_state, is_leaf=_is_shampoo)
    nodes = [
        node._replace(mu=(), buckets=(), graft=())
        for node in leaves
        if _is_shampoo(node)
    ]
    return jax.tree.map(jnp.copy, nodes)


def _is_shampoo(node: Any) -> bool:
    return isinstance(node, ShampooState)


def counter_metrics(
    nodes: list[ShampooState], plan: Plan | None
) -> Mapping[str, float]:
    """The counters by metric name.

    Raises:
      RuntimeError: a block could not be refreshed more than three times in a row; names
        the leaf.
    """
    facts = check_preconditioners(nodes, plan=plan)
    return {
        "optim/refreshes": facts["refreshes"],
        "optim/refresh_failures": facts["total_failures"],
        "optim/consecutive_refresh_failures": facts["failures"],
        "optim/refresh_residual": facts["max_residual"],
        "optim/skipped_leaf_steps": facts["skipped"],
    }


def build_refresh(plan: Plan) -> Callable[[TrainState], TrainState]:
    """A function that refreshes everything, for `optimizer.refresh=external`."""

    def refresh(state: TrainState) -> TrainState:
        return state._replace(opt_state=refresh_preconditioners(state.opt_state, plan))

    return refresh
