"""Device meshes and the layout of states over them."""

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

__all__ = [
    "BATCH_AXES",
    "batch_sharding",
    "batch_ways",
    "evenly_split",
    "make_mesh",
    "param_shardings",
    "replicated",
    "require_divisible_batch",
    "state_shardings",
]
