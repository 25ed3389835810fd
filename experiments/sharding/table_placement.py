"""Which device holds which embedding table.

Four layouts: `replicated`, every device has the table; `table`, one device has all of
it; `row` and `column`, every device has an equal share of its rows or columns.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from optim_jax.row_sparse import RowRule

LAYOUTS = ("replicated", "table", "row", "column")


@dataclasses.dataclass(frozen=True)
class TablePlacement:
    """Where one table lies.

    Attributes:
      table: its position among the model's tables.
      layout: one of `LAYOUTS`.
      device: the position of the device that holds it, for `table`; None otherwise.
      bytes: of the whole table, optimizer state included.
      row_statistics: those of the bytes that belong to whole rows: split by columns,
        every device has them all.
    """

    table: int
    layout: str
    device: int | None
    bytes: int
    row_statistics: int = 0

    def bytes_on(self, device: int, devices: int) -> int:
        """Bytes of it on one of the devices; shares are rounded up."""
        if self.layout == "replicated":
            return self.bytes
        if self.layout == "table":
            return self.bytes if device == self.device else 0
        whole = self.row_statistics if self.layout == "column" else 0
        return whole - (whole - self.bytes) // devices


@dataclasses.dataclass(frozen=True)
class Plan:
    """A placement of every table; `print` it.

    Attributes:
      placements: one for each table, in order.
      devices: number of devices.
      byte_budget: of a device; None if none was given.
    """

    placements: tuple[TablePlacement, ...]
    devices: int
    byte_budget: int | None = None

    @property
    def device_bytes(self) -> tuple[int, ...]:
        """Bytes of tables and their optimizer state on each device, unpadded."""
        return tuple(
            sum(placed.bytes_on(device, self.devices) for placed in self.placements)
            for device in range(self.devices)
        )

    @property
    def layouts(self) -> tuple[str, ...]:
        """The layout of each table."""
        return tuple(placed.layout for placed in self.placements)

    def __str__(self) -> str:
        lines = [f"{'table':>5}  {'layout':<10}  {'device':>6}  {'MiB':>12}"]
        for placed in self.placements:
            device = "all" if placed.device is None else str(placed.device)
            lines.append(
                f"{placed.table:>5}  {placed.layout:<10}  {device:>6}  "
                f"{placed.bytes / 2**20:>12.3f}"
            )
        shown = ", ".join(f"{b / 2**20:.3f}" for b in self.device_bytes)
        lines.append(f"MiB on each of {self.devices} devices: {shown}")
        if self.byte_budget is not None:
            lines.append(f"budget: {self.byte_budget / 2**20:.3f} MiB a device")
        return "\n".join(lines)


def place_tables(
    layouts: Sequence[str],
    sizes: Sequence[int],
    devices: int,
    row_statistics: Sequence[int] | None = None,
) -> tuple[TablePlacement, ...]:
    """Gives every `table` layout a device: the largest first, to the least loaded.

    Args:
      layouts: of each table, from `LAYOUTS`.
      sizes: bytes of each table.
      devices: number of devices.
      row_statistics: of each table, see `TablePlacement`; 0 by default.

    Raises:
      ValueError: for an unknown layout, or another number of layouts than tables.
    """
    if len(layouts) != len(sizes):
        raise ValueError(
            f"the plan has {len(layouts)} layouts, the model has {len(sizes)} tables"
        )
    for layout in layouts:
        if layout not in LAYOUTS:
            raise ValueError(
                f"a layout must be one of {', '.join(LAYOUTS)}, got {layout!r}"
            )
    load = [0] * devices
    device_of: dict[int, int] = {}
    for table in sorted(range(len(sizes)), key=lambda t: (-sizes[t], t)):
        if layouts[table] == "table":
            device = load.index(min(load))
            device_of[table] = device
            load[device] += sizes[table]
    statistics = row_statistics or [0] * len(sizes)
    return tuple(
        TablePlacement(
            table, layout, device_of.get(table), sizes[table], statistics[table]
        )
        for table, layout in enumerate(layouts)
    )


def placements_of(
    plan: str | Sequence[str] | Plan | None,
    leaves: Mapping[str, Mapping[str, Any]],
    rule: RowRule,
    devices: int,
) -> tuple[TablePlacement, ...]:
    """A placement of every table from whatever names one.

    Args:
      plan: one layout for all tables, one for each, or a `Plan`; None: replicated.
      leaves: arrays or shapes of what is looked up, by table and leaf.
      rule: of the tables.
      devices: number of devices.

    Raises:
      ValueError: the plan is of another number of tables or devices, or names an
        unknown layout.
    """
    if isinstance(plan, Plan):
        if plan.devices != devices:
            raise ValueError(
                f"the plan is for {plan.devices} devices, the mesh has {devices}"
            )
        if len(plan.placements) != len(leaves):
            raise ValueError(
                f"the plan has {len(plan.placements)} tables, the model {len(leaves)}"
            )
        return plan.placements
    if plan is None or isinstance(plan, str):
        plan = [plan or "replicated"] * len(leaves)
    sizes, statistics = [], []
    for table in leaves.values():
        kept = [jax.eval_shape(rule.init, leaf).accumulator for leaf in table.values()]
        of_rows = [_bytes(accumulator) for accumulator in kept if accumulator.ndim == 1]
        sizes.append(sum(map(_bytes, [*table.values(), *kept])))
        statistics.append(sum(of_rows))
    return place_tables(plan, sizes, devices, statistics)


def _bytes(array: Any) -> int:
    return array.size * np.dtype(array.dtype).itemsize
