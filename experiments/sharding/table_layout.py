"""Where the rows of embedding tables lie on several devices.

A table of layout `replicated` is on every device; of `row` and `column`, every device
has an equal share of its rows (the last share is padded) or columns. Tables of layout
`table` lie in slabs, one for each width: `[devices * rows, width]`, of which a device
holds its tables one after another.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from experiments.sharding.table_placement import TablePlacement
from optim_jax.row_sparse import RowRule, RowSparseState

Nested = dict[str, dict[str, Any]]  # by table and leaf


class Component(NamedTuple):
    """One array of rows and where it lies.

    Attributes:
      table: name of its table.
      leaf: its own name within the table.
      rows: of the array.
      width: its columns.
      layout: one of `table_placement.LAYOUTS`.
      device: the owner, for `table`.
      first: its first row in the owner's part of the slab, for `table`.
    """

    table: str
    leaf: str
    rows: int
    width: int
    layout: str
    device: int = 0
    first: int = 0


@dataclasses.dataclass(frozen=True)
class TableLayout:
    """The row-indexed leaves of a model over the devices of a mesh.

    Buffers are `{"own": by table and leaf, "slabs": by width}`; on one device they
    are the leaves themselves, by table and leaf.

    Attributes:
      components: the arrays, in the order of the model's tables.
      devices: number of devices.
      axis: the mesh axes they lie along, flattened in this order.
    """

    components: tuple[Component, ...]
    devices: int
    axis: tuple[str, ...]

    @functools.cached_property
    def slab_rows(self) -> dict[int, int]:
        """Rows of one device in the slab of each width."""
        found: dict[int, int] = {}
        for part in self.of_layout("table"):
            found[part.width] = max(found.get(part.width, 0), part.first + part.rows)
        return found

    @property
    def own(self) -> list[Component]:
        """The components with a buffer of their own."""
        return [part for part in self.components if part.layout != "table"]

    def of_layout(self, layout: str) -> list[Component]:
        """The components of a layout."""
        return [part for part in self.components if part.layout == layout]

    def in_slab(self, width: int) -> list[Component]:
        """The components that share a slab."""
        return [part for part in self.of_layout("table") if part.width == width]

    def share(self, part: Component) -> int:
        """Rows of a component split by rows that one device has."""
        return -(-part.rows // self.devices)

    def buffers(
        self,
        of_own: Callable[[Component], Any],
        of_slab: Callable[[int], Any],
    ) -> Any:
        """A tree with the structure of the buffers of several devices.

        Args:
          of_own: from a component with a buffer of its own to that entry.
          of_slab: from a width to the entry of its slab.
        """
        own: Nested = {}
        for part in self.own:
            own.setdefault(part.table, {})[part.leaf] = of_own(part)
        return {"own": own, "slabs": {str(w): of_slab(w) for w in self.slab_rows}}

    def nested(self, of: Callable[[Component], Any]) -> Nested:
        """A tree with the structure of the leaves."""
        found: Nested = {}
        for part in self.components:
            found.setdefault(part.table, {})[part.leaf] = of(part)
        return found

    def buffer_of(self, buffers: Any, part: Component) -> Any:
        """The buffer that holds a component."""
        if part.layout == "table":
            return buffers["slabs"][str(part.width)]
        return buffers["own"][part.table][part.leaf]

    def specs(self, rule: RowRule | None = None) -> Any:
        """`PartitionSpec`s of the buffers, or of a rule's states for them."""
        whole = PartitionSpec()
        if self.devices == 1:
            return whole

        def spec(layout: str, ndim: int) -> PartitionSpec:
            if layout in ("row", "table"):
                return PartitionSpec(self.axis)
            if layout == "column" and ndim == 2:
                return PartitionSpec(None, self.axis)
            return whole

        def entry(layout: str) -> Any:
            if rule is None:
                return spec(layout, 2)
            accumulator = _accumulator(rule, 2, 2)
            # An accumulator without numbers (SGD) is the same everywhere.
            known = spec(layout, accumulator.ndim) if accumulator.size else whole
            return RowSparseState(known, whole)

        return self.buffers(lambda part: entry(part.layout), lambda _: entry("table"))

    def pack(self, leaves: Nested) -> Any:
        """Buffers from the leaves as a model has them; leaves are copied."""
        if self.devices == 1:
            return jax.tree.map(jnp.copy, leaves)

        def slab(width: int) -> jax.Array:
            shape = (self.devices * self.slab_rows[width], width)
            parts = self.in_slab(width)
            dtype = leaves[parts[0].table][parts[0].leaf].dtype
            return self._filled(
                jnp.zeros(shape, dtype), width, lambda p: leaves[p.table][p.leaf]
            )

        return self.buffers(
            lambda part: jnp.copy(self._padded(leaves[part.table][part.leaf], part)),
            slab,
        )

    def unpack(self, buffers: Any) -> Nested:
        """The inverse of `pack`; on one device nothing is copied."""
        if self.devices == 1:
            return buffers
        return self.nested(lambda part: self._cut(self.buffer_of(buffers, part), part))

    def pack_states(self, rule: RowRule, states: Nested) -> Any:
        """A rule's states for the buffers, from those for the leaves."""
        if self.devices == 1:
            return states

        def state(part: Component) -> RowSparseState:
            return states[part.table][part.leaf]

        def own(part: Component) -> RowSparseState:
            accumulator, count = state(part)
            if accumulator.size:
                accumulator = self._padded(accumulator, part)
            return RowSparseState(accumulator, count)

        def slab(width: int) -> RowSparseState:
            shape = _accumulator(rule, self.devices * self.slab_rows[width], width)
            accumulator = jnp.zeros(shape.shape, shape.dtype)
            if accumulator.size:
                accumulator = self._filled(
                    accumulator, width, lambda part: state(part).accumulator
                )
            # All tables have seen the same number of steps.
            return RowSparseState(accumulator, state(self.in_slab(width)[0]).count)

        return self.buffers(own, slab)

    def unpack_states(self, states: Any) -> Nested:
        """The inverse of `pack_states`; on one device nothing is copied."""
        if self.devices == 1:
            return states

        def cut(part: Component) -> RowSparseState:
            accumulator, count = self.buffer_of(states, part)
            if accumulator.size:
                accumulator = self._cut(accumulator, part)
            return RowSparseState(accumulator, count)

        return self.nested(cut)

    def _padded(self, array: jax.Array, part: Component) -> jax.Array:
        """With as many rows as all devices can share evenly."""
        if part.layout != "row":
            return array
        more = self.share(part) * self.devices - part.rows
        return jnp.pad(array, ((0, more), *[(0, 0)] * (array.ndim - 1)))

    def _filled(
        self, slab: jax.Array, width: int, of: Callable[[Component], jax.Array]
    ) -> jax.Array:
        """A slab with the arrays of its components written into it."""
        for part in self.in_slab(width):
            start = (self._slab_start(part), *[0] * (slab.ndim - 1))
            slab = jax.lax.dynamic_update_slice(slab, of(part), start)
        return slab

    def _cut(self, array: jax.Array, part: Component) -> jax.Array:
        """The rows of a component from its buffer."""
        start = self._slab_start(part) if part.layout == "table" else 0
        return array[start : start + part.rows]

    def _slab_start(self, part: Component) -> int:
        return part.device * self.slab_rows[part.width] + part.first


def _accumulator(rule: RowRule, rows: int, width: int) -> jax.ShapeDtypeStruct:
    """Shape of a rule's accumulator for a float32 table."""
    table = jax.ShapeDtypeStruct((rows, width), jnp.float32)
    return jax.eval_shape(rule.init, table).accumulator


def place_components(
    leaves: Nested, placements: Sequence[TablePlacement], devices: int
) -> tuple[Component, ...]:
    """Lays every row-indexed leaf where its table is placed.

    A leaf whose columns the devices cannot share evenly is split by rows instead.

    Args:
      leaves: arrays or shapes, by table and leaf; tables are named by position.
      placements: one for each table.
      devices: number of devices.
    """
    filled: dict[tuple[int, int], int] = {}  # rows so far, by device and width
    components = []
    for placed in placements:
        table = str(placed.table)
        for leaf, array in leaves[table].items():
            rows, width = array.shape
            layout, device, first = placed.layout, placed.device or 0, 0
            if layout == "column" and width % devices:
                layout = "row"
            if layout == "table":
                first = filled.get((device, width), 0)
                filled[device, width] = first + rows
            components.append(
                Component(table, leaf, rows, width, layout, device, first)
            )
    return tuple(components)
