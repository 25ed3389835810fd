"""Looking ids up: gathered rows, and bags straight from the leaves of a table."""

from typing import Any

import jax
import jax.numpy as jnp

from models.embeddings.bags import check_bags, segments_from_offsets
from models.embeddings.components import component_ids, component_shapes, dense_leaves
from models.embeddings.pooling import pool_rows
from models.embeddings.table_config import TableConfig


def gather_rows(params: dict[str, Any], row_ids: dict[str, Any]) -> dict[str, Any]:
    """Gathers the rows of every row-indexed leaf.

    Args:
      params: leaves of one table; the dense ones are ignored.
      row_ids: rows `[L]` by leaf, as from `component_ids`: none is negative.

    Returns:
      Rows `[L, width]` by leaf; zeros where a row is out of range.
    """
    return {
        leaf: jnp.asarray(params[leaf]).at[rows].get(mode="fill", fill_value=0)
        for leaf, rows in row_ids.items()
    }


def embedding_bag(
    config: TableConfig,
    params: dict[str, Any],
    ids: Any,
    offsets: Any = None,
    per_sample_weights: Any = None,
) -> jax.Array:
    """Embeds bags of ids; differentiable in every leaf.

    The gradient of a table is as large as the table. To train large ones, gather rows
    and differentiate `pool_rows` instead.

    Args:
      config: the table.
      params: all leaves, as from `init_table`.
      ids: integers `[L]`, all bags one after another. Inside jit, ids outside
        [0, rows) are padding that no bag counts; ids whose values are known must be in
        range.
      offsets: integers `[B]`: where each bag begins; the last one ends at L. Equal
        offsets make an empty bag, which is zero. None: one id per bag.
      per_sample_weights: `[L]`, see `pool_rows`.

    Returns:
      `[B, output_width(config)]`.

    Raises:
      TypeError: ids or offsets are not integers.
      ValueError: see `check_bags` and `pool_rows`; the shape of a leaf is not the
        config's.
    """
    _check_leaf_shapes(config, params)
    ids, offsets = check_bags(config.rows, ids, offsets)
    ids = jnp.asarray(ids)
    if offsets is None:
        segments, num_bags = None, ids.shape[0]
    else:
        num_bags = offsets.shape[0]
        segments = segments_from_offsets(offsets, ids.shape[0])
    rows = gather_rows(params, component_ids(config, ids))
    return pool_rows(
        config, rows, dense_leaves(params), ids, segments, num_bags, per_sample_weights
    )


def _check_leaf_shapes(config: TableConfig, params: dict[str, Any]) -> None:
    for leaf, shape in component_shapes(config).items():
        if leaf not in params or jnp.shape(params[leaf]) != shape:
            found = jnp.shape(params[leaf]) if leaf in params else "no such leaf"
            raise ValueError(
                f"leaf {leaf!r} of a table with method={config.built_method!r} must "
                f"have shape {shape}, got {found}"
            )
