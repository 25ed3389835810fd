"""What the tables of a model cost: rows, parameters, bytes and traffic, per table."""

import dataclasses
from typing import Any

from experiments.sharding.table_plan import table_bytes
from models.dcn import forward_flops as dcn_flops
from models.dlrm import DLRMConfig
from models.dlrm import forward_flops as dlrm_flops
from models.embeddings import component_shapes, count_table_params

_BYTES = 4  # of a float32


@dataclasses.dataclass(frozen=True)
class TableCost:
    """One table.

    Attributes:
      rows: ids it serves.
      method: what it is, after the threshold.
      params: of all its leaves.
      weight_bytes: of these.
      state_bytes: of the optimizer.
      row_bytes: read for one looked-up id, over its parts.
      ratio: parameters of a full table of its width over its own.
    """

    rows: int
    method: str
    params: int
    weight_bytes: int
    state_bytes: int
    row_bytes: int
    ratio: float


@dataclasses.dataclass(frozen=True)
class Costs:
    """All tables of a model, and what a sample takes.

    Attributes:
      tables: one for each.
      flops_per_sample: forward: perceptrons, interaction or crossing, and pooling.
      moved_bytes_per_sample: rows read, written and read again for their update, with
        `ids_per_bag` ids a table.
    """

    tables: tuple[TableCost, ...]
    flops_per_sample: int
    moved_bytes_per_sample: int

    @property
    def params(self) -> int:
        """Of all tables."""
        return sum(table.params for table in self.tables)

    @property
    def weight_bytes(self) -> int:
        """Of all tables."""
        return sum(table.weight_bytes for table in self.tables)

    @property
    def state_bytes(self) -> int:
        """Of the optimizer, for all tables."""
        return sum(table.state_bytes for table in self.tables)

    @property
    def ratio(self) -> float:
        """Compression of all tables together."""
        full = sum(table.params * table.ratio for table in self.tables)
        return full / max(self.params, 1)

    def __str__(self) -> str:
        lines = [
            f"{'table':>5}  {'rows':>11}  {'method':<12}  {'parameters':>14}  "
            f"{'MiB':>11}  {'state MiB':>11}  {'ratio':>8}"
        ]
        for index, table in enumerate(self.tables):
            lines.append(
                f"{index:>5}  {table.rows:>11,}  {table.method:<12}  "
                f"{table.params:>14,}  {table.weight_bytes / 2**20:>11.3f}  "
                f"{table.state_bytes / 2**20:>11.3f}  {table.ratio:>8.2f}"
            )
        lines.append(
            f"{'total':>5}  {sum(t.rows for t in self.tables):>11,}  {'':<12}  "
            f"{self.params:>14,}  {self.weight_bytes / 2**20:>11.3f}  "
            f"{self.state_bytes / 2**20:>11.3f}  {self.ratio:>8.2f}"
        )
        lines.append(
            f"{self.flops_per_sample:,} operations and "
            f"{self.moved_bytes_per_sample:,} bytes of rows a sample"
        )
        return "\n".join(lines)


def table_costs(
    config: Any, *, rule: str = "row_wise_adagrad", ids_per_bag: int = 1
) -> Costs:
    """Accounts for the tables of a model from its config alone.

    Args:
      config: `DLRMConfig` or `DCNConfig`.
      rule: of the tables: `sgd`, `adagrad` or `row_wise_adagrad`.
      ids_per_bag: ids of every table in a sample.
    """
    tables = []
    for table in config.tables:
        shapes = component_shapes(table)
        row_numbers = sum(rows * width for rows, width in shapes.values())
        params = count_table_params(table)
        tables.append(
            TableCost(
                rows=table.rows,
                method=table.built_method,
                params=params,
                weight_bytes=_BYTES * params,
                state_bytes=table_bytes(table, rule) - _BYTES * row_numbers,
                row_bytes=_BYTES * sum(width for _, width in shapes.values()),
                ratio=table.rows * table.dim / params,
            )
        )
    flops = (dlrm_flops if isinstance(config, DLRMConfig) else dcn_flops)(config)
    pooling = ids_per_bag * sum(table.row_bytes // _BYTES for table in tables)
    return Costs(
        tuple(tables),
        flops + pooling,
        3 * ids_per_bag * sum(table.row_bytes for table in tables),
    )
