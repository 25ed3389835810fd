"""Where the samples of an index come from: arrays on a device, or a stream."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from optim_jax.trees.mesh_axes import is_explicit
from optim_jax.trees.paths import named_leaves

Batch = Any
Sampler = Callable[[jax.Array, int], Batch]


class Stream(NamedTuple):
    """Samples without end: the i-th one is drawn with a key made of i.

    Attributes:
      key: (2,) uint32, raw PRNG key of the stream.
    """

    key: jax.Array


def population_of(data: Any) -> int | None:
    """Number of samples, None for a sampler.

    Args:
      data: tree of arrays with equal leading axes, or a sampler (key, n) -> batch.

    Raises:
      ValueError: there is no array, one is a scalar, or the leading axes differ.
    """
    if callable(data):
        return None
    leaves = named_leaves(data)
    if not leaves:
        raise ValueError("data must hold at least one array, got an empty tree")
    lengths = {}
    for name, leaf in leaves:
        if np.ndim(leaf) == 0:
            raise ValueError(
                f"data leaf {name!r} is a scalar; it needs an axis of samples"
            )
        lengths[name] = np.shape(leaf)[0]
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name!r}: {length}" for name, length in lengths.items())
        raise ValueError(f"the leading axes of data must agree, got {listed}")
    return next(iter(lengths.values()))


def rows_of(batch: Batch) -> int:
    """Number of samples of a batch of arrays; the errors of `population_of`."""
    rows = population_of(batch)
    assert rows is not None
    return rows


def place(data: Any, mesh: Mesh | None, axis: str) -> Any:
    """Puts the arrays on the device, their rows split over an axis of the mesh.

    Rows are filled up to a multiple of the axis with copies of the first ones, which
    no index ever names.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, data)
    shards = mesh.shape[axis]

    def placed(leaf: Any) -> jax.Array:
        missing = -np.shape(leaf)[0] % shards
        if missing:
            leaf = np.asarray(leaf)
            leaf = np.concatenate([leaf, leaf[np.arange(missing) % len(leaf)]])
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(axis)))

    return jax.tree.map(placed, data)


def auto_mesh(mesh: Mesh) -> Mesh:
    """The same devices, along axes that the types of arrays do not name."""
    return mesh.update(axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def copied(leaf: Any) -> jax.Array:
    """A copy of an array, sharded as it is; its type names no axis of a mesh."""
    leaf = jnp.array(leaf)
    sharding = leaf.sharding
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    if isinstance(mesh, Mesh) and is_explicit(mesh):
        auto = NamedSharding(auto_mesh(mesh), leaf.sharding.spec)
        leaf = jax.device_put(leaf, auto)
    return leaf


def take(source: Any, indices: jax.Array) -> Batch:
    """The samples of some indices, all of which exist."""
    return jax.tree.map(
        lambda leaf: leaf.at[indices].get(mode="promise_in_bounds"), source
    )


def draw(stream: Stream, sampler: Sampler, indices: jax.Array) -> Batch:
    """The samples of some indices of a stream, each drawn with a key of its own."""
    key = jax.random.wrap_key_data(stream.key)

    def one(index: jax.Array) -> Batch:
        batch = sampler(jax.random.fold_in(key, index.astype(jnp.uint32)), 1)
        return jax.tree.map(lambda leaf: leaf[0], batch)

    return jax.vmap(one)(indices)


def take_share(local: Any, indices: jax.Array, axis: str, shards: int) -> Batch:
    """This device's share of the samples of some indices, rows lying on all devices.

    Runs inside `shard_map`. Every device looks up the rows it owns; one reduce-scatter
    hands each device the rows of its share.

    Args:
      local: this device's block of rows.
      indices: (n,) int32, the same on all devices; n is a multiple of `shards`.
      axis: mesh axis of the rows.
      shards: size of that axis.

    Returns:
      Tree of (n / shards, ...) rows.
    """

    def share(leaf: jax.Array) -> jax.Array:
        first = jax.lax.axis_index(axis) * leaf.shape[0]
        place = indices - first
        mine = (place >= 0) & (place < leaf.shape[0])
        rows = leaf.at[jnp.where(mine, place, 0)].get(mode="promise_in_bounds")
        if leaf.dtype == jnp.bool_:
            rows = rows.astype(jnp.int8)
        rows = jnp.where(mine.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0)
        rows = jax.lax.psum_scatter(rows, axis, scatter_dimension=0, tiled=True)
        return rows.astype(leaf.dtype)

    return jax.tree.map(share, local)
