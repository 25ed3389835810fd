"""Where stacks of blocks lie on a mesh, for Auto and for Explicit axes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from optim_jax.preconditioning.options import Options


def is_explicit(mesh: Any) -> bool:
    """Whether the sharding along the mesh's axes is part of the type of arrays."""
    return any(kind == AxisType.Explicit for kind in mesh.axis_types)


def constrain(array: jax.Array, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    """Places an array on a mesh, inside or outside jit.

    On Explicit axes a sharding constraint only asserts, so the array is moved.
    """
    sharding = NamedSharding(mesh, spec)
    if is_explicit(mesh):
        return jax.sharding.reshard(array, sharding)
    return jax.lax.with_sharding_constraint(array, sharding)


def gather(array: jax.Array) -> jax.Array:
    """Replicates an array whose type states a sharding; leaves others alone.

    Reshaping and slicing sharded dims of Explicit axes would be refused.
    """
    sharding = jax.typeof(array).sharding
    if sharding.mesh.empty or not is_explicit(sharding.mesh):
        return array
    if all(part is None for part in sharding.spec):
        return array
    return jax.sharding.reshard(array, PartitionSpec())


def like(array: jax.Array, reference: jax.Array) -> jax.Array:
    """Gives an array the sharding that the type of another one states."""
    sharding = jax.typeof(reference).sharding
    if sharding.mesh.empty or not is_explicit(sharding.mesh):
        return array
    return jax.sharding.reshard(array, sharding.spec)


def blocks_spec(options: Options) -> PartitionSpec:
    """Sharding of a stack: its leading axis over the axes of the options."""
    if options.mesh is None:
        return PartitionSpec()
    return PartitionSpec(options.axis)


def place_blocks(stack: jax.Array, options: Options) -> jax.Array:
    """Shards a stack of blocks or factors over its leading axis."""
    if options.mesh is None:
        return stack
    return constrain(stack, options.mesh, blocks_spec(options))


def new_stack(
    options: Options, shape: tuple[int, ...], dtype: Any, fill: str = "zeros"
) -> jax.Array:
    """Makes a stack where it will live: zeros, ones, or an identity per slot.

    Args:
      options: with the mesh.
      shape: (slots, ...); (slots, d, d) for identities.
      dtype: of the stack.
      fill: `"zeros"`, `"ones"` or `"identity"`.
    """

    def make() -> jax.Array:
        if fill != "identity":
            return jnp.full(shape, 1 if fill == "ones" else 0, dtype)
        return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)

    if options.mesh is None:
        return make()
    sharding = NamedSharding(options.mesh, blocks_spec(options))
    return jax.jit(make, out_shardings=sharding)()


def on_each_device(
    function: Callable[..., Any], options: Options
) -> Callable[..., Any]:
    """Runs a function of stacks on each device's own slots.

    Matrix iterations stop when the slowest matrix of the device is done, and no
    collective gets into their loops.

    Args:
      function: of two arguments: a tree of stacks, whose leading axis is the slots,
        and a tree of scalars. Its results are stacks.
      options: with the mesh.
    """
    if options.mesh is None:
        return function
    spec = blocks_spec(options)
    return jax.shard_map(
        function,
        mesh=options.mesh,
        in_specs=(spec, PartitionSpec()),
        out_specs=spec,
        check_vma=False,
    )
