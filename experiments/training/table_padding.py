"""Train states of runs with tables, as the run lays them out and as checkpoints do.

A checkpoint holds every table under its own name, whatever the plan was: it can be read
on any number of devices.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from experiments.sharding import evenly_split, replicated
from experiments.training.padding import Padding
from experiments.training.sparse_step import SparseStep
from experiments.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class TablePadding(Padding):
    """The two forms of a state; see `Padding`.

    Attributes:
      sparse: knows where tables lie.
    """

    sparse: SparseStep = dataclasses.field(kw_only=True)

    @classmethod
    def of(cls, sparse: SparseStep, state: TrainState) -> "TablePadding":
        """From the run's layout (abstract arrays with shardings)."""
        if sparse.mesh is None:
            return cls(state, state, sparse=sparse)
        mesh = jax.tree.leaves(state.params["rows"])[0].sharding.mesh

        def stored(leaf: Any) -> Any:
            sharding = evenly_split(leaf.shape, mesh) if leaf.ndim else replicated(mesh)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        unpacked = jax.eval_shape(lambda s: _unpacked(sparse, s), state)
        rows, states = jax.tree.map(
            stored, (unpacked.params["rows"], unpacked.opt_state["rows"])
        )
        return cls(state, _with_rows(state, rows, states), sparse=sparse)

    def remove(self, state: TrainState) -> TrainState:
        """The state as a checkpoint holds it."""
        if self.sparse.mesh is None:
            return state
        tables = self.sparse.tables
        shardings = jax.tree.map(
            lambda leaf: leaf.sharding,
            (self.stored.params["rows"], self.stored.opt_state["rows"]),
        )
        unpack = jax.jit(
            lambda rows, states: (tables.unpack(rows), tables.unpack_states(states)),
            out_shardings=shardings,
        )
        return _with_rows(state, *unpack(state.params["rows"], state.opt_state["rows"]))

    def add(self, stored: TrainState, init: Callable[[], Any]) -> TrainState:
        """The inverse of `remove`."""
        del init  # empty slots of tables hold zeros, whatever the seed
        if self.sparse.mesh is None:
            return stored
        tables, rule = self.sparse.tables, self.sparse.row_rule
        shardings = jax.tree.map(
            lambda leaf: leaf.sharding,
            (self.state.params["rows"], self.state.opt_state["rows"]),
        )
        pack = jax.jit(
            lambda rows, states: (tables.pack(rows), tables.pack_states(rule, states)),
            out_shardings=shardings,
        )
        return _with_rows(
            stored, *pack(stored.params["rows"], stored.opt_state["rows"])
        )


def _unpacked(sparse: SparseStep, state: TrainState) -> TrainState:
    tables = sparse.tables
    return _with_rows(
        state,
        tables.unpack(state.params["rows"]),
        tables.unpack_states(state.opt_state["rows"]),
    )


def _with_rows(state: TrainState, rows: Any, states: Any) -> TrainState:
    return state._replace(
        params={**state.params, "rows": rows},
        opt_state={**state.opt_state, "rows": states},
    )
