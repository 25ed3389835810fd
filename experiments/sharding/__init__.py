"""Device meshes, the layout of states over them, and that of embedding tables."""

from experiments.sharding.mesh import (
    BATCH_AXES,
    batch_sharding,
    batch_ways,
    make_mesh,
    replicated,
    require_divisible_batch,
)
from experiments.sharding.partitioning import (
    evenly_split,
    param_shardings,
    state_shardings,
)
from experiments.sharding.table_exchange import DistributedTables, distribute_tables
from experiments.sharding.table_placement import Plan, TablePlacement, place_tables
from experiments.sharding.table_plan import (
    plan_tables,
    propose_compression,
    table_bytes,
)

__all__ = [
    "BATCH_AXES",
    "DistributedTables",
    "Plan",
    "TablePlacement",
    "batch_sharding",
    "batch_ways",
    "distribute_tables",
    "evenly_split",
    "make_mesh",
    "param_shardings",
    "place_tables",
    "plan_tables",
    "propose_compression",
    "replicated",
    "require_divisible_batch",
    "state_shardings",
    "table_bytes",
]
