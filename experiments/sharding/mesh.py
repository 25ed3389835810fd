"""The device mesh: the one place that makes it."""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.config import MeshConfig

# The batch is split over both; parameters over `fsdp` and `model` by a model's rules.
BATCH_AXES = ("data", "fsdp")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices as `data` x `fsdp` x `model`.

    Args:
      config: sizes of the axes; one of them may be -1 (all that remain).
      devices: the devices to use, all of the run's by default.

    Returns:
      A mesh with Auto axes: shardings are placed by the compiler from those of the
      arguments, so models need no annotations to run on it.

    Raises:
      ValueError: if the axes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = dataclasses.asdict(config)
    known = math.prod(size for size in sizes.values() if size != -1)
    remaining, leftover = divmod(len(devices), known)
    open_axes = [name for name, size in sizes.items() if size == -1]
    if leftover or (not open_axes and remaining != 1):
        shown = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
        raise ValueError(
            f"{shown} cannot be laid over {len(devices)} device(s): the sizes must "
            "multiply to that number, or divide it where one of them is -1"
        )
    shape = tuple(remaining if size == -1 else size for size in sizes.values())
    return jax.make_mesh(
        shape, tuple(sizes), axis_types=(AxisType.Auto,) * len(shape), devices=devices
    )


def with_auto_axes(mesh: Mesh) -> Mesh:
    """The same devices; whatever no `shard_map` places, the compiler does."""
    auto = (AxisType.Auto,) * mesh.devices.ndim
    return Mesh(mesh.devices, mesh.axis_names, axis_types=auto)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the data-parallel axes, every other dimension whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_ways(mesh: Mesh) -> int:
    """In how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def require_divisible_batch(micro_size: int, mesh: Mesh) -> None:
    """Raises a `ValueError` unless a micro-batch splits evenly over the mesh."""
    ways = batch_ways(mesh)
    if micro_size % ways:
        raise ValueError(
            f"a micro-batch of {micro_size} rows (batch.micro_batch, or batch.size) "
            f"does not split over {ways} data-parallel devices "
            f"(mesh.data={mesh.shape['data']} x mesh.fsdp={mesh.shape['fsdp']})"
        )
