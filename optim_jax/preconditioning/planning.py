"""Planning without a run: what becomes of each leaf, and where the state lies."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optim_jax.preconditioning.direction import init_state
from optim_jax.preconditioning.mesh import blocks_spec
from optim_jax.preconditioning.plan import Plan
from optim_jax.preconditioning.scaling import scale_by_shampoo


def plan_preconditioners(params: Any, **options: Any) -> Plan:
    """Plans blocks, buckets and refreshes from shapes alone; nothing is computed.

    Args:
      params: tree of arrays or of `jax.ShapeDtypeStruct`.
      **options: any keyword of `scale_by_shampoo`.

    Returns:
      A frozen, hashable `Plan`; `print` it.

    Raises:
      ValueError: an option is out of range, or a leaf does not go with it.
    """
    return scale_by_shampoo(**options).plan(params)


def state_sharding(plan: Plan, mesh: Mesh | None = None) -> Any:
    """Shardings like the state of `scale_by_shampoo`, for `jit(init, out_shardings=)`.

    Args:
      plan: of the transformation and the tree.
      mesh: mesh to lie on; None for the plan's own.

    Returns:
      A `ShampooState` of `NamedSharding`: stacks over the plan's axes, scalars
      replicated.

    Raises:
      ValueError: there is no mesh, or it lacks an axis of the plan.
    """
    options = plan.layout.options
    mesh = options.mesh if mesh is None else mesh
    if mesh is None:
        raise ValueError("state_sharding needs a mesh: the plan was made without one")
    missing = [name for name in options.axis if name not in mesh.axis_names]
    if missing:
        raise ValueError(
            f"the plan shards over {missing}, but the mesh has the axes "
            f"{tuple(mesh.axis_names)}"
        )
    spec = blocks_spec(options)
    state = jax.eval_shape(lambda: init_state(plan.layout, plan.hyperparameters))

    def sharding(leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, spec if leaf.ndim else PartitionSpec())

    return jax.tree.map(sharding, state)
