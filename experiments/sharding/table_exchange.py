"""Embedding tables spread over devices: how rows and their gradients travel.

Every device trains on its own samples and needs their rows; afterwards the gradients of
these rows must reach whoever holds them. `DistributedTables` does both inside
`shard_map`, for any mix of layouts (arXiv:1906.00091, section 3, for whole tables):

* `replicated`: rows are read at home, ids and gradients are gathered by everyone;
* `table`: ids go to the owner by all-to-all, rows come back the same way;
* `row`: everyone sees all ids and contributes the rows it owns to a reduce-scatter;
* `column`: everyone looks all ids up in its columns, an all-to-all joins them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.sharding.table_layout import (
    Component,
    Nested,
    TableLayout,
    place_components,
)
from experiments.sharding.table_placement import TablePlacement
from optim_jax.row_sparse import RowRule, lookup, sparse_update


@dataclasses.dataclass(frozen=True)
class DistributedTables(TableLayout):
    """Tables laid over devices, with the exchange of their rows.

    `lookup` and `update` run inside `shard_map` where there are several devices. Ids,
    rows and gradients are then those of this device's samples, buffers its part.
    """

    def lookup(self, buffers: Any, ids: Nested) -> Nested:
        """The rows `[L, width]` of ids `[L]`, by table and leaf; zeros for padding.

        Args:
          buffers: as from `pack`.
          ids: of every component.
        """
        if self.devices == 1:
            return jax.tree.map(lookup, buffers, ids)
        found: dict[Component, jax.Array] = {}
        for part in self.own:
            table = self.buffer_of(buffers, part)
            some_ids = ids[part.table][part.leaf]
            if part.layout == "replicated":
                found[part] = lookup(table, some_ids)
                continue
            everyone = self._gathered(some_ids)
            if part.layout == "row":
                rows = lookup(table, self._owned(part, everyone))
                found[part] = jax.lax.psum_scatter(rows, self.axis)
            else:
                columns = self._exchanged(lookup(table, everyone))
                found[part] = jnp.moveaxis(columns, 0, 1).reshape(-1, part.width)
        for width in self.slab_rows:
            mail = _Mail(self, width, ids)
            rows = lookup(buffers["slabs"][str(width)], self._exchanged(mail.ids))
            found |= mail.split(self._exchanged(rows))
        return self.nested(found.__getitem__)

    def update(
        self, rule: RowRule, buffers: Any, states: Any, ids: Nested, gradients: Nested
    ) -> tuple[Any, Any]:
        """One step of a rule on whatever rows any device looked up.

        Args:
          rule: of the tables.
          buffers: as from `pack`.
          states: as from `pack_states`.
          ids: `[L]`, by table and leaf.
          gradients: `[L, width]`, summands of the sum over all devices.

        Returns:
          The new buffers and states.
        """

        def own(part: Component) -> Any:
            return sparse_update(
                rule,
                self.buffer_of(buffers, part),
                self.buffer_of(states, part),
                *self._collected(part, ids, gradients),
                axis_name=self.axis if part.layout == "column" else None,
            )

        def slab(width: int) -> Any:
            mail, name = _Mail(self, width, ids), str(width)
            return sparse_update(
                rule,
                buffers["slabs"][name],
                states["slabs"][name],
                self._exchanged(mail.ids).reshape(-1),
                self._exchanged(mail.join(gradients)).reshape(-1, width),
            )

        if self.devices == 1:
            pairs = self.nested(
                lambda part: sparse_update(
                    rule,
                    *(
                        tree[part.table][part.leaf]
                        for tree in (buffers, states, ids, gradients)
                    ),
                )
            )
        else:
            pairs = self.buffers(own, slab)
        return (
            jax.tree.map(lambda pair: pair[0], pairs, is_leaf=_is_pair),
            jax.tree.map(lambda pair: pair[1], pairs, is_leaf=_is_pair),
        )

    def _collected(
        self, part: Component, ids: Nested, gradients: Nested
    ) -> tuple[jax.Array, jax.Array]:
        """What concerns this device's part of a component, from all devices."""
        some_ids = self._gathered(ids[part.table][part.leaf])
        values = gradients[part.table][part.leaf]
        if part.layout == "column":
            values = values.reshape(len(values), self.devices, -1)
            values = self._exchanged(jnp.moveaxis(values, 1, 0))
        else:
            values = self._gathered(values)
        if part.layout == "row":
            some_ids = self._owned(part, some_ids)
        return some_ids.reshape(-1), values.reshape(-1, values.shape[-1])

    def _gathered(self, array: jax.Array) -> jax.Array:
        """`[devices, …]`: what every device has."""
        return jax.lax.all_gather(array, self.axis)

    def _exchanged(self, array: jax.Array) -> jax.Array:
        """Sends entry p of the first axis to device p, and takes what is sent here."""
        return jax.lax.all_to_all(array, self.axis, 0, 0)

    def _owned(self, part: Component, ids: jax.Array) -> jax.Array:
        """Rows of this device's share; those of others become padding."""
        share = self.share(part)
        local = ids - jax.lax.axis_index(self.axis) * share
        # Ids from `rows` on are padding, also where the last share has room for them.
        mine = (local >= 0) & (local < share) & (ids < part.rows)
        return jnp.where(mine, local, share)


def _is_pair(node: Any) -> bool:
    """Whether it is a table with its state."""
    return isinstance(node, tuple)


class _Mail:
    """Lookups in the tables of one width, sorted by the device that owns them.

    Letters to all devices have the same length, that of the longest.
    """

    def __init__(self, tables: DistributedTables, width: int, ids: Nested):
        self._width = width
        self._parts: list[list[Component]] = [[] for _ in range(tables.devices)]
        for part in tables.in_slab(width):
            self._parts[part.device].append(part)
        self._lengths = {
            part: len(ids[part.table][part.leaf]) for part in tables.in_slab(width)
        }
        self._longest = max(
            sum(self._lengths[part] for part in parts) for parts in self._parts
        )
        rows = tables.slab_rows[width]  # as an id: padding

        def row_in_slab(part: Component) -> jax.Array:
            numbers = ids[part.table][part.leaf]
            known = (numbers >= 0) & (numbers < part.rows)
            return jnp.where(known, numbers + part.first, rows)

        nobody = jnp.full((0,), rows, jnp.int32)
        self.ids = self._letters(row_in_slab, nobody, rows)  # [devices, longest]

    def join(self, values: Nested) -> jax.Array:
        """`[devices, longest, width]`: what belongs to the rows of every owner."""
        nothing = jnp.zeros((0, self._width), jnp.float32)
        return self._letters(lambda part: values[part.table][part.leaf], nothing, 0.0)

    def split(self, rows: jax.Array) -> dict[Component, jax.Array]:
        """The inverse of `join`."""
        found = {}
        for device, parts in enumerate(self._parts):
            start = 0
            for part in parts:
                found[part] = rows[device, start : start + self._lengths[part]]
                start += self._lengths[part]
        return found

    def _letters(
        self, content: Callable[[Component], jax.Array], nothing: jax.Array, fill: Any
    ) -> jax.Array:
        letters = []
        for parts in self._parts:
            letter = jnp.concatenate([nothing, *map(content, parts)])
            missing = [(0, self._longest - len(letter))] + [(0, 0)] * (letter.ndim - 1)
            letters.append(jnp.pad(letter, missing, constant_values=fill))
        return jnp.stack(letters)


def distribute_tables(
    leaves: Nested,
    placements: Sequence[TablePlacement],
    devices: int,
    axis: tuple[str, ...],
) -> DistributedTables:
    """Lays a model's row-indexed leaves over devices.

    Args:
      leaves: arrays or shapes, by table and leaf; tables are named by position.
      placements: one for each table.
      devices: number of devices.
      axis: mesh axes that they lie along.
    """
    components = place_components(leaves, placements, devices)
    return DistributedTables(components, devices, axis)
