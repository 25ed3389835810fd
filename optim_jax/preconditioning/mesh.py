"""Where stacks of blocks lie on a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from optim_jax.preconditioning.options import Options
from optim_jax.trees.mesh_axes import constrain, current, is_explicit


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
    spec = blocks_spec(options)
    if is_explicit(options.mesh):  # the types of computed stacks name every axis
        spec = PartitionSpec(*spec, *[None] * (len(shape) - 1))
    return jax.jit(make, out_shardings=NamedSharding(options.mesh, spec))()


def place_scalar(scalar: jax.Array, options: Options) -> jax.Array:
    """Gives a scalar to every device of the mesh.

    Left on one device, it would move there in the first step, and the second would be
    compiled again.
    """
    if options.mesh is None:
        return scalar
    sharding = NamedSharding(options.mesh, PartitionSpec())
    return jax.jit(lambda x: x, out_shardings=sharding)(scalar)


def on_each_device(
    function: Callable[..., Any], options: Options
) -> Callable[..., Any]:
    """Runs a function of stacks on each device's own slots.

    Matrix iterations stop when the slowest matrix of the device is done, and no
    collective gets into their loops.

    Args:
      function: its arguments and results are trees of stacks, whose leading axis is
        the slots. Scalars it takes from its surroundings.
      options: with the mesh.
    """
    if options.mesh is None:
        return function
    spec = blocks_spec(options)
    return jax.shard_map(
        function,
        mesh=current(options.mesh),
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )
