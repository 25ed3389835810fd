"""Hints that tell the partitioner where activations live."""

import math

import jax
from jax.sharding import AxisType, PartitionSpec

BATCH = ("data", "fsdp")  # mesh axes over which examples are split
MODEL = ("model",)  # mesh axis over which heads and hidden units are split


def shard_activation(x: jax.Array, *mesh_axes: tuple[str, ...] | None) -> jax.Array:
    """Asks for `x` to be split over mesh axes; does nothing where there is no mesh.

    Only automatic axes of the current mesh count (`jax.set_mesh`), so a model runs
    unchanged on one device and inside `jax.shard_map`. A dimension that its axes do
    not divide is left to the partitioner.

    Args:
      x: the activation.
      *mesh_axes: one entry per dimension: mesh axes to split it over, or None for a
        dimension that is not split.

    Returns:
      `x`, constrained.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {
        name: size
        for name, size, kind in zip(
            mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True
        )
        if kind == AxisType.Auto
    }
    if not sizes:
        return x
    entries = []
    for length, wanted in zip(x.shape, mesh_axes, strict=True):
        names = tuple(name for name in wanted or () if name in sizes)
        if length % math.prod(sizes[name] for name in names):
            entries.append(PartitionSpec.UNCONSTRAINED)
        else:
            entries.append(names or None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*entries))
