"""Device meshes and the layout of states over them."""

from experiments.sharding.mesh import (
    batch_sharding,
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
    "batch_sharding",
    "evenly_split",
    "make_mesh",
    "param_shardings",
    "replicated",
    "require_divisible_batch",
    "state_shardings",
]
