"""The leaves of one table: their shapes, their sizes, and the row of every id."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.embeddings.integer_arrays import read_integers
from models.embeddings.partitions import (
    chinese_remainder,
    hashing,
    mixed_radix,
    quotient_remainder,
)
from models.embeddings.table_config import TableConfig

# Every id uses all of these leaves or a few whole slices of them; the other leaves have
# one row per class.
DENSE_LEAVES = ("functions", "projection")


def component_shapes(config: TableConfig) -> dict[str, tuple[int, int]]:
    """Shapes of the leaves that are looked up by row.

    Args:
      config: the table.

    Returns:
      `(rows, width)` by leaf name: `table`; `quotient` and `remainder`; `part_0` …; and
      `hot` for the full rows of a frequency table. Of a path table only `part_0`.
    """
    method, dim = config.built_method, config.dim
    if method == "full":
        return {"table": (config.rows, dim)}
    if method == "hash":
        return {"table": (config.stored_hash_rows, dim)}
    if method == "mixed":
        return {"table": (config.rows, config.component_dims[0])}
    parts = zip(config.part_rows, config.part_dims, strict=True)
    shapes = dict(zip(_part_names(config), parts, strict=True))
    if method == "path":
        return {"part_0": shapes["part_0"]}
    if method == "frequency":
        return {"hot": (config.hot_rows, dim), **shapes}
    return shapes


def dense_shapes(config: TableConfig) -> dict[str, Any]:
    """Shapes of the leaves that are not looked up by row.

    Args:
      config: the table.

    Returns:
      `projection` (d, dim) of a table of mixed dimension, unless d = dim; `functions`
      of a path table: for each later partition `part_j` of c classes the stacked
      `hidden_kernel` (c, D, h), `hidden_bias` (c, h), `output_kernel` (c, h, D) and
      `output_bias` (c, D). Empty for the others.
    """
    dim = config.dim
    if config.built_method == "mixed":
        (width,) = config.component_dims
        return {} if width == dim else {"projection": (width, dim)}
    if config.built_method != "path":
        return {}
    hidden, functions = config.path_hidden, {}
    for j, count in enumerate(config.part_rows[1:], start=1):
        functions[f"part_{j}"] = {
            "hidden_kernel": (count, dim, hidden),
            "hidden_bias": (count, hidden),
            "output_kernel": (count, hidden, dim),
            "output_bias": (count, dim),
        }
    return {"functions": functions}


def row_leaves(params: dict[str, Any]) -> dict[str, Any]:
    """The leaves of one table that are looked up by row."""
    return {name: leaf for name, leaf in params.items() if name not in DENSE_LEAVES}


def dense_leaves(params: dict[str, Any]) -> dict[str, Any]:
    """The leaves of one table that are not looked up by row: `DENSE_LEAVES`."""
    return {name: leaf for name, leaf in params.items() if name in DENSE_LEAVES}


def num_vectors(config: TableConfig) -> int:
    """Vectors that one bag becomes: the parts of `features`, otherwise 1."""
    return len(config.part_rows) if config.built_method == "features" else 1


def output_width(config: TableConfig) -> int:
    """Numbers that one bag becomes: `num_vectors` times `dim`."""
    return num_vectors(config) * config.dim


def count_table_params(config: TableConfig) -> int:
    """Number of parameters of a table, all leaves together."""
    dense = jax.tree.leaves(
        dense_shapes(config), is_leaf=lambda shape: isinstance(shape, tuple)
    )
    shapes = [*component_shapes(config).values(), *dense]
    return sum(map(math.prod, shapes))


def component_ids(config: TableConfig, ids: Any) -> dict[str, Any]:
    """The row of every id in every row-indexed leaf.

    An id outside [0, rows) is padding: its row is the number of rows of the leaf, out
    of range in all of them, and so is the row of an id that a leaf does not serve (hot
    and cold ids of a frequency table). Look rows up with `gather_rows` or another
    gather that fills with zeros; JAX clamps or wraps by default.

    Args:
      config: the table.
      ids: integers of any shape: NumPy (mapped on the host) or JAX, traced or not.

    Returns:
      Rows shaped like `ids`, under the names of `component_shapes`: int64 for NumPy
      ids; for JAX ids their own dtype, int32 if that is narrower.

    Raises:
      TypeError: the ids are not integers.
    """
    ids = read_ids(ids)
    xp = jnp if isinstance(ids, jax.Array) else np
    valid = valid_ids(config, ids)
    safe = xp.where(valid, ids, 0)
    if isinstance(safe, np.ndarray):
        safe = safe.astype(np.int64)
    shapes = component_shapes(config)

    def pad(rows: Any, leaf: str, serves: Any = valid) -> Any:
        return xp.where(serves, rows, shapes[leaf][0])

    method = config.built_method
    if method == "hash":
        return {"table": pad(hashing(safe, config.stored_hash_rows), "table")}
    if method in ("full", "mixed"):
        return {"table": pad(safe, "table")}
    classes = part_classes(config, safe)
    if method == "frequency":
        hot = safe < config.hot_rows
        cold = dict(zip(_part_names(config), classes, strict=True))
        return {
            "hot": pad(safe, "hot", valid & hot),
            **{leaf: pad(rows, leaf, valid & ~hot) for leaf, rows in cold.items()},
        }
    named = zip(_part_names(config), classes, strict=True)
    return {leaf: pad(rows, leaf) for leaf, rows in named if leaf in shapes}


def valid_ids(config: TableConfig, ids: Any) -> Any:
    """Which ids are in [0, rows), that is, no padding."""
    return (ids >= 0) & (ids < config.rows)


def device_ids(config: TableConfig, ids: Any) -> jax.Array:
    """Ids as a JAX array; on the way from the host padding becomes `rows`.

    Without 64-bit types a wide id would otherwise wrap, perhaps to one in range.
    """
    ids = read_ids(ids)
    if isinstance(ids, np.ndarray):
        ids = np.where(valid_ids(config, ids), ids, config.rows).astype(np.int64)
    return jnp.asarray(ids)


def part_classes(config: TableConfig, ids: Any) -> tuple[Any, ...]:
    """The class of every id in each partition of a compressed table.

    Args:
      config: a table with partitions.
      ids: integers in [0, rows). Hot ids of a frequency table are given class 0.

    Returns:
      One array per partition, in the order of `TableConfig.part_rows`.
    """
    if config.method == "explicit":
        if isinstance(ids, jax.Array):
            return tuple(jnp.asarray(part)[ids] for part in config.class_arrays)
        return tuple(part.astype(np.int64)[ids] for part in config.class_arrays)
    moduli = config.part_moduli
    if moduli is not None:
        split = chinese_remainder if config.method == "crt" else mixed_radix
        return split(ids, moduli)
    cold = (ids - config.hot_rows) * (ids >= config.hot_rows)
    return quotient_remainder(cold, config.collisions)


def read_ids(ids: Any) -> Any:
    """Ids as an array wide enough to be compared with any number of rows.

    Args:
      ids: integers; Python sequences are read as NumPy arrays.

    Returns:
      A JAX array of 32 bits or more for JAX ids; otherwise NumPy int64, or uint64
      where the ids were.

    Raises:
      TypeError: the ids are not integers.
    """
    ids = read_integers("ids", ids)
    return ids.astype(jnp.int32) if ids.dtype.itemsize < 4 else ids


def _part_names(config: TableConfig) -> tuple[str, ...]:
    if config.method in ("qr", "frequency"):
        return "quotient", "remainder"
    return tuple(f"part_{j}" for j in range(len(config.part_rows)))
