"""Training steps of models with embedding tables: no gradient is as large as a table.

The loss is differentiated with respect to the rows that a batch looks up, never with
respect to a table. Rows are updated in place by a rule of `optim_jax.row_sparse`,
everything else by an Optax transformation. On several devices the tables lie as a plan
says and the perceptrons are data parallel.

`gradients` and `apply_rows` are the two halves of a step, for programs that accumulate
micro-batches between them; `step` is a whole one.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.sharding.batch_shares import batch_shares
from experiments.sharding.mesh import with_auto_axes
from experiments.sharding.partitioning import evenly_split
from experiments.sharding.table_exchange import DistributedTables, distribute_tables
from experiments.sharding.table_placement import Plan, placements_of
from experiments.training.device_share import share_gradients, share_row_update
from experiments.training.sparse_state import (
    RowGradients,
    SparseGradientSum,
    SparseState,
    add_sums,
)
from models import Batch, Model, Params
from models.categorical import join_tables, split_tables
from optim_jax.row_sparse import RowRule

__all__ = [
    "RowGradients",
    "SparseGradientSum",
    "SparseState",
    "SparseStep",
    "add_sums",
    "make_sparse_step",
]


@dataclasses.dataclass(frozen=True, eq=False)
class SparseStep:
    """One training step of a model with tables; made by `make_sparse_step`.

    Attributes:
      model: with `row_ids` and `loss_from_rows`.
      dense_optimizer: of everything that is not looked up.
      row_rule: of the tables.
      tables: where rows lie.
      mesh: of several devices; None for one.
    """

    model: Model
    dense_optimizer: optax.GradientTransformation
    row_rule: RowRule
    tables: DistributedTables
    mesh: Mesh | None

    @property
    def devices(self) -> int:
        """Over which samples and tables are spread."""
        return self.tables.devices

    def init(self, params: Params) -> SparseState:
        """The state of step 0; `params` are copied, so that they may be kept.

        Args:
          params: of the whole model, canonical names; on the host, or on any device.
        """
        with self._context():
            if self.mesh is not None:
                # Spread from the start: one device may have no room for all.
                params = jax.tree.map(
                    lambda leaf: jax.device_put(
                        leaf, evenly_split(np.shape(leaf), self.mesh)
                    ),
                    params,
                )
            return jax.jit(self.init_state, out_shardings=self.state_shardings())(
                params
            )

    def init_state(self, params: Params) -> SparseState:
        """As `init`, inside a program."""
        leaves, dense = split_tables(params)
        states = jax.tree.map(self.row_rule.init, leaves)
        return SparseState(
            {"dense": jax.tree.map(jnp.copy, dense), "rows": self.tables.pack(leaves)},
            {
                "dense": self.dense_optimizer.init(jax.tree.map(jnp.copy, dense)),
                "rows": self.tables.pack_states(self.row_rule, states),
            },
        )

    def params(self, state: SparseState) -> Params:
        """The whole model's parameters under their own names, whatever the plan.

        They are copies, on every device of the mesh; `tables.unpack` is for programs
        and leaves the choice to the compiler.
        """
        with self._context():
            return self._canonical_params(state.params)

    def row_states(self, state: SparseState) -> dict[str, Any]:
        """The rule's states by table and leaf, whatever the plan; copies as well."""
        with self._context():
            return self._canonical_states(state.opt_state["rows"])

    def state_specs(self) -> SparseState:
        """A prefix tree of `PartitionSpec` for the state."""
        whole = PartitionSpec()
        return SparseState(
            {"dense": whole, "rows": self.tables.specs()},
            {"dense": whole, "rows": self.tables.specs(self.row_rule)},
        )

    def state_shardings(self) -> Any:
        """A prefix tree of shardings for the state; None on one device."""
        if self.mesh is None:
            return None
        return jax.tree.map(
            functools.partial(NamedSharding, self.mesh),
            self.state_specs(),
            is_leaf=lambda node: isinstance(node, PartitionSpec),
        )

    def place(self, batch: Batch) -> Batch:
        """Puts a host batch (of this process) on the devices, one share on each.

        Samples are padded to a multiple of the devices; padding has no weight.
        """
        if self.mesh is None:
            return jax.device_put(dict(batch))
        processes = len({device.process_index for device in self.mesh.devices.flat})
        shares = batch_shares(batch, self.devices // processes, processes)
        sharding = NamedSharding(self.mesh, PartitionSpec(self.tables.axis))
        if processes == 1:
            return jax.device_put(shares, sharding)
        return jax.tree.map(
            functools.partial(jax.make_array_from_process_local_data, sharding), shares
        )

    def gradients(
        self, state: SparseState, batch: Batch, key: jax.Array | None = None
    ) -> SparseGradientSum:
        """The sums of one micro-batch; to be compiled.

        Args:
          state: of the step.
          batch: from `place`.
          key: of a model that draws.

        Returns:
          `SparseGradientSum`, with rows `[devices, L, width]`.
        """
        local = functools.partial(share_gradients, self.model, self.tables)
        if self.mesh is None:
            return local(state.params, batch, key)
        share, whole = PartitionSpec(self.tables.axis), PartitionSpec()
        mapped = self._mapped(
            local,
            (self.state_specs().params, share, whole),
            SparseGradientSum(whole, RowGradients(share, share), *[whole] * 3),
        )
        return mapped(state.params, batch, key)

    def apply_rows(
        self,
        rule: RowRule,
        state: SparseState,
        rows: RowGradients,
        weight: jax.Array,
        keep: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """The tables and their states after a step; to be compiled.

        Args:
          rule: of the tables, perhaps at another rate than `row_rule`.
          state: before the step.
          rows: sums of `weight * gradient`.
          weight: what to divide them by.
          keep: bool (); False leaves every row and every count as it is. None is True.
        """
        arguments = (
            state.params["rows"],
            state.opt_state["rows"],
            rows,
            weight,
            keep,
        )
        local = functools.partial(share_row_update, self.tables, rule)
        if self.mesh is None:
            return local(*arguments)
        specs, whole = self.state_specs(), PartitionSpec()
        share = PartitionSpec(self.tables.axis)
        buffers = (specs.params["rows"], specs.opt_state["rows"])
        return self._mapped(
            local, (*buffers, RowGradients(share, share), whole, whole), buffers
        )(*arguments)

    def update(
        self, state: SparseState, batch: Batch
    ) -> tuple[SparseState, dict[str, jax.Array]]:
        """`step` for use inside a program, on a batch from `place`."""
        sums = self.gradients(state, batch)
        weight = jnp.maximum(sums.weight, 1e-30)
        dense = state.params["dense"]
        gradients = jax.tree.map(lambda total: total / weight, sums.dense)
        updates, opt_state = self.dense_optimizer.update(
            gradients, state.opt_state["dense"], dense
        )
        rows, row_states = self.apply_rows(self.row_rule, state, sums.rows, weight)
        state = SparseState(
            {"dense": optax.apply_updates(dense, updates), "rows": rows},
            {"dense": opt_state, "rows": row_states},
        )
        return state, {"loss": sums.loss / weight, "weight": sums.weight}

    def step(
        self, state: SparseState, batch: Batch
    ) -> tuple[SparseState, dict[str, jax.Array]]:
        """One step; compiled once for each shape of batch.

        Args:
          state: donated: use what is returned.
          batch: of the host, as from `make_batch`.

        Returns:
          The new state, and `loss` (before the update) and `weight`, float32.
        """
        with self._context():
            return self._compiled(state, self.place(batch))

    def lower(self, state: SparseState, batch: Batch) -> jax.stages.Lowered:
        """The step for these shapes, lowered but not compiled.

        Args:
          state: arrays, or their shapes (on a mesh: with shardings).
          batch: of the host.
        """
        with self._context():
            return self._compiled.lower(state, self.place(batch))

    @functools.cached_property
    def _compiled(self) -> Any:
        shardings = (self.state_shardings(), None)
        return jax.jit(self.update, donate_argnums=0, out_shardings=shardings)

    @functools.cached_property
    def _canonical_params(self) -> Any:
        def unpack(params: dict[str, Any]) -> Params:
            return join_tables(self.tables.unpack(params["rows"]), params["dense"])

        return jax.jit(unpack, out_shardings=self._everywhere)

    @functools.cached_property
    def _canonical_states(self) -> Any:
        return jax.jit(self.tables.unpack_states, out_shardings=self._everywhere)

    @property
    def _everywhere(self) -> NamedSharding | None:
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())

    def _context(self) -> Any:
        """Makes the mesh the current one, whatever the caller's is."""
        return (
            contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)
        )

    def _mapped(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
        # Replication is by construction (gathered inputs, the same arithmetic on
        # every device), which the checker cannot see.
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            check_vma=False,
        )


def make_sparse_step(
    model: Model,
    dense_optimizer: optax.GradientTransformation,
    row_rule: RowRule,
    *,
    mesh: Mesh | None = None,
    plan: str | Sequence[str] | Plan | None = None,
) -> SparseStep:
    """A training step with row-sparse updates of the tables.

    Args:
      model: with `row_ids` and `loss_from_rows`.
      dense_optimizer: of every parameter that is not a looked-up row; it sees the
        parameters without these rows.
      row_rule: a rule of `optim_jax.row_sparse`.
      mesh: the devices; samples and tables are spread over all of its axes. None, or a
        mesh of one device, keeps everything on one.
      plan: layouts of the tables: `replicated`, `table`, `row` or `column`, one for
        all or one for each, or a `Plan`. Replicated by default.

    Returns:
      The step.

    Raises:
      ValueError: for a model without tables, or a plan that does not fit it.
    """
    if model.row_ids is None or model.loss_from_rows is None:
        raise ValueError("the model has no embedding tables to update by rows")
    mesh = None if mesh is None or mesh.size == 1 else with_auto_axes(mesh)
    devices = 1 if mesh is None else mesh.size
    leaves, _ = split_tables(jax.eval_shape(model.init, jax.random.key(0)))
    # Tables are named by position.
    leaves = {str(index): leaves[str(index)] for index in range(len(leaves))}
    placements = placements_of(plan, leaves, row_rule, devices)
    axis = () if mesh is None else tuple(mesh.axis_names)
    tables = distribute_tables(leaves, placements, devices, axis)
    return SparseStep(model, dense_optimizer, row_rule, tables, mesh)
