"""What every model hands out: plain functions over a plain dict of arrays."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec

Params = Any  # nested dict of arrays, names joined by "/" in rules and messages
Batch = Mapping[str, Any]  # arrays by name, or tuples of them (one per table)


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as pure functions; nothing outside `models/` sees its modules.

    Attributes:
      init: `key -> params`. Jit-able; the same key gives the same parameters on
        every mesh.
      apply: `(params, batch, *, key=None, train=False) -> outputs` (logits, float32).
      loss: `(params, batch, *, key=None, train=False) -> (objective, aux)`.
        `objective` is the float32 scalar to differentiate: a *mean* over the
        batch's weights, regularisers included. `aux` holds float32 scalars, at
        least `loss` (the mean without regularisers) and `weight` (the sum of
        weights, so that micro-batches can be averaged exactly); click models add
        their `logits` [B].
      partition_rules: pairs (regex searched in the "/"-joined parameter path,
        `PartitionSpec` over the mesh axes `data`, `fsdp`, `model`); first match wins.
      matrix_axes: `params -> tree of optim_jax.MatrixAxes`, one per leaf.
      flops_per_example: analytic forward + backward FLOPs of one example.
      row_ids: `batch -> ids`, the rows that a batch looks up in every table: nested
        like the tables among the parameters. None for models without tables.
      loss_from_rows: `(rows, params, batch, *, key=None, train=False) -> (objective,
        aux)`, `loss` as a function of the rows that `row_ids` names (`[L, width]`,
        zeros for ids out of range). It does not read the tables in `params`, so they
        may be left out: differentiated with respect to `rows`, no gradient has the
        shape of a table.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[..., jax.Array]
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    partition_rules: tuple[tuple[str, PartitionSpec], ...]
    matrix_axes: Callable[[Params], Any]
    flops_per_example: float
    row_ids: Callable[[Batch], Any] | None = None
    loss_from_rows: Callable[..., tuple[jax.Array, dict[str, jax.Array]]] | None = None
