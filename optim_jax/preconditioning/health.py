"""What the host asks of a running state: its health, and a refresh by hand."""

from typing import Any

import jax
import numpy as np

from optim_jax.preconditioning.canonical import (
    block_slots,
    is_shampoo_state,
    map_shampoo_state,
)
from optim_jax.preconditioning.direction import block_method, make_step
from optim_jax.preconditioning.factors import RefreshInputs
from optim_jax.preconditioning.plan import Plan
from optim_jax.preconditioning.refresh import refresh_all
from optim_jax.preconditioning.state import ShampooState


def refresh_preconditioners(state: Any, plan: Plan) -> Any:
    """Refreshes all roots or bases now; for `refresh="external"`.

    It can be jitted with the plan as a static argument, and run as often as it pays: on
    every so many steps, or beside the training steps on a state that is some steps
    old.

    Args:
      state: any nested state with one Shampoo state in it.
      plan: of the transformation and the tree that the state belongs to.

    Returns:
      The state with refreshed roots or bases. Before the first step, when the factors
      hold nothing, it is returned as it is.

    Raises:
      ValueError: the state holds no Shampoo state, or several.
    """

    def refresh(node: ShampooState) -> ShampooState:
        layout = plan.layout
        if not layout.stacks:
            return node
        step = make_step(
            layout.options, plan.hyperparameters, node.count, node.health.refreshes
        )
        inputs = RefreshInputs(step.weights.correction, step.eps)

        def refreshed() -> tuple[Any, Any]:
            method = block_method(layout.options)
            return refresh_all(layout, method, node.buckets, node.health, inputs)

        buckets, health = jax.lax.cond(
            node.count > 0, refreshed, lambda: (node.buckets, node.health)
        )
        return node._replace(buckets=buckets, health=health)

    return map_shampoo_state(refresh, state)


def check_preconditioners(
    state: Any, max_failures: int = 3, plan: Plan | None = None
) -> dict[str, Any]:
    """Reads the counters of all Shampoo states within a state, on the host.

    Args:
      state: any nested state.
      max_failures: consecutive failures of a block that are tolerated.
      plan: to name the leaf and the block in the message.

    Returns:
      Plain numbers: `refreshes`; `failures`, the largest count of consecutive failures
      over the blocks, now; `total_failures`; `skipped`, steps in which a leaf was
      skipped; `max_residual`, `iterations` and `off_diagonal` of the last refresh.

    Raises:
      RuntimeError: a block failed more than `max_failures` times in a row.
      ValueError: the state holds no Shampoo state.
    """
    nodes = [
        node
        for node in jax.tree.leaves(state, is_leaf=is_shampoo_state)
        if is_shampoo_state(node)
    ]
    if not nodes:
        raise ValueError("found no Shampoo state within the given state")
    facts: dict[str, Any] = {}
    worst: tuple[int, str, int] = (0, "", 0)
    for node in nodes:
        health = jax.device_get(node.health)
        for key, counts in _by_bucket(health.failures).items():
            if counts.size and counts.max() > worst[0]:
                slot = int(np.argmax(counts.max(axis=1)))
                worst = (int(counts.max()), key, slot)
        for name in ("refreshes", "total_failures", "skipped", "iterations"):
            value = int(getattr(health, name))
            facts[name] = max(facts.get(name, 0), value)
        for name in ("max_residual", "off_diagonal"):
            value = float(getattr(health, name))
            facts[name] = max(facts.get(name, 0.0), value)
    facts["failures"] = worst[0]
    if worst[0] > max_failures:
        raise RuntimeError(
            f"the root or eigenbasis of {_place_name(plan, worst[1], worst[2])} could "
            f"not be refreshed {worst[0]} times in a row (max_failures="
            f"{max_failures}); a larger eps or relative_epsilon, a smaller learning "
            "rate or factor_dtype=float64 may help"
        )
    return facts


def _by_bucket(failures: Any) -> dict[str, np.ndarray]:
    return failures if isinstance(failures, dict) else {}


def _place_name(plan: Plan | None, key: str, slot: int) -> str:
    if plan is not None:
        for path, number, bucket, place in block_slots(plan.layout):
            if bucket.key == key and place == slot:
                names = {leaf.path: leaf.name for leaf in plan.layout.leaves}
                return f"block {number} of leaf {names[path]!r}"
    return f"slot {slot} of the blocks {key}"
