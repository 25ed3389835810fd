"""The categorical side of a click model: T embedded features and their bags.

Parameters are nested by table: `{"0": {"table": …}, "1": {"quotient": …, "remainder":
…}}`. Leaves with one row for each class are looked up; the others (`functions`,
`projection`) take part in every sample like the weights of a perceptron.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from models.embeddings import (
    TableConfig,
    component_ids,
    count_table_params,
    dense_leaves,
    gather_rows,
    init_table,
    pool_rows,
    row_leaves,
)
from models.model import Batch

POOLING_WEIGHT = "pooling_weight"  # leaf of learned pooling weights, [rows, 1]


def split_tables(params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a model's parameters in looked-up rows and everything else.

    Args:
      params: of a model with `tables`, arrays or shapes.

    Returns:
      The row-indexed leaves, nested like `params["tables"]`, and the parameters
      without them (tables that have no other leaf keep an empty dict).
    """
    rows = {index: row_leaves(table) for index, table in params["tables"].items()}
    rest = {index: dense_leaves(table) for index, table in params["tables"].items()}
    return rows, {**params, "tables": rest}


def join_tables(rows: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `split_tables`."""
    tables = {index: {**rows[index], **rest["tables"][index]} for index in rows}
    return {**rest, "tables": tables}


@dataclasses.dataclass(frozen=True)
class CategoricalTables:
    """The tables of a model as pure functions.

    Attributes:
      configs: one entry for each feature.
      learned_weights: every row has a factor that is trained with it, the leaf
        `pooling_weight` of its table; such tables are full.
    """

    configs: tuple[TableConfig, ...]
    learned_weights: bool = False

    @property
    def num_params(self) -> int:
        """Parameters of all tables."""
        params = sum(count_table_params(config) for config in self.configs)
        weights = sum(config.rows for config in self.configs)
        return params + weights * self.learned_weights

    def init(self, key: jax.Array) -> dict[str, dict[str, Any]]:
        """Initial leaves of every table; each has a key of its own."""
        tables = {}
        for index, config in enumerate(self.configs):
            leaves = init_table(config, jax.random.fold_in(key, index))
            if self.learned_weights:
                leaves[POOLING_WEIGHT] = jnp.ones((config.rows, 1), jnp.float32)
            tables[str(index)] = leaves
        return tables

    def row_ids(self, batch: Batch) -> dict[str, dict[str, jax.Array]]:
        """The rows that a batch looks up.

        Args:
          batch: as from `make_batch`; any id outside its table is padding.

        Returns:
          int32 `[L]` by table and leaf; the number of rows of the leaf for padding.

        Raises:
          ValueError: the batch has ids for another number of tables.
        """
        if len(batch["ids"]) != len(self.configs):
            raise ValueError(
                f"the model has {len(self.configs)} tables, but the batch ids of "
                f"{len(batch['ids'])}"
            )
        found = {}
        for index, config in enumerate(self.configs):
            rows = component_ids(config, batch["ids"][index])
            if self.learned_weights:
                # Weights go with full tables, whose rows are the ids.
                rows = {**rows, POOLING_WEIGHT: rows["table"]}
            found[str(index)] = {leaf: jnp.asarray(r) for leaf, r in rows.items()}
        return found

    def lookup(self, params: dict[str, Any], row_ids: Any) -> dict[str, dict[str, Any]]:
        """Gathers rows `[L, width]`; zeros for ids out of range.

        Args:
          params: leaves of the tables, as from `init`.
          row_ids: as from `row_ids`.
        """
        return {
            index: gather_rows(params[index], leaves)
            for index, leaves in row_ids.items()
        }

    def pool(self, rows: Any, params: dict[str, Any], batch: Batch) -> list[jax.Array]:
        """Pools every table's bags.

        Args:
          rows: gathered rows, as from `lookup`.
          params: leaves of the tables; those that are looked up are not read and may
            be left out.
          batch: ids, segments and weights of the bags.

        Returns:
          One `[B, dim]` for each table, `[B, k dim]` where it contributes k vectors.
        """
        segments, factors = batch.get("segments"), batch.get("id_weights")
        pooled = []
        for index, config in enumerate(self.configs):
            of_table = dict(rows[str(index)])
            weight = None if factors is None else factors[index]
            if self.learned_weights:
                learned = of_table.pop(POOLING_WEIGHT)[:, 0]
                weight = learned if weight is None else learned * weight
            pooled.append(
                pool_rows(
                    config,
                    of_table,
                    dense_leaves(params.get(str(index), {})),
                    batch["ids"][index],
                    None if segments is None else segments[index],
                    batch["dense"].shape[0],
                    per_sample_weights=weight,
                )
            )
        return pooled
