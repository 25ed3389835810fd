"""What a training step with embedding tables carries, and what it sums up."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class SparseState(NamedTuple):
    """Parameters and optimizer state, split in looked-up rows and the rest.

    Both are `{"dense": …, "rows": …}`: the parameters of the perceptrons and whatever
    else takes part in every sample, and the tables as the plan lays them out.
    """

    params: dict[str, Any]
    opt_state: dict[str, Any]


class RowGradients(NamedTuple):
    """Which rows were looked up, and the gradients there; ids may repeat.

    Leaves are nested by table and leaf. Their first axis runs over the devices; what
    lies between it and the axes of the lookups may be chosen, for example one slot for
    each of several micro-batches.
    """

    ids: Any  # int32 [devices, ..., L]; ids beyond a table are padding
    values: Any  # float32 [devices, ..., L, width]


class SparseGradientSum(NamedTuple):
    """Weighted sums over the micro-batches of one step."""

    dense: Any  # sum of weight * gradient, like the dense parameters
    rows: RowGradients  # weight * gradient of every lookup
    objective: jax.Array  # float32 (), sum of weight * objective
    loss: jax.Array  # float32 (), sum of weight * loss
    weight: jax.Array  # float32 (), sum of weights


def add_sums(first: SparseGradientSum, second: SparseGradientSum) -> SparseGradientSum:
    """The sums over the micro-batches of both; their lookups stand side by side.

    Rows are not summed here: a rule that squares gradients must see the sum over the
    whole step, which `SparseStep.apply_rows` forms.

    Args:
      first: as from `SparseStep.gradients` or this function.
      second: the same, perhaps of another number of lookups.
    """
    rows = jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves, axis=1), first.rows, second.rows
    )
    others = (sums._replace(rows=()) for sums in (first, second))
    return jax.tree.map(jnp.add, *others)._replace(rows=rows)
