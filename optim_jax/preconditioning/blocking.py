"""Leaves as stacks of blocks, and back.

Shape legend: B batch (independent parameters of one leaf), S slots of a bucket.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.preconditioning.layout import Layout, Leaf, Segment
from optim_jax.preconditioning.mesh import place_blocks
from optim_jax.trees.matrices import as_matrices, from_matrices
from optim_jax.trees.mesh_axes import constrain


def merged_view(array: jax.Array, leaf: Leaf) -> jax.Array:
    """A leaf as (B, *merged dims): outputs before inputs where axes are stated."""
    if leaf.axes is not None:
        array = jnp.swapaxes(as_matrices(array, leaf.axes), 1, 2)
    return array.reshape(leaf.batch, *leaf.merged)


def unmerged(view: jax.Array, leaf: Leaf) -> jax.Array:
    """The inverse of `merged_view`."""
    if leaf.axes is None:
        return view.reshape(leaf.shape)
    rows = math.prod(leaf.shape[axis] for axis in leaf.axes.output_axes)
    matrices = view.reshape(leaf.batch, rows, -1)
    return from_matrices(jnp.swapaxes(matrices, 1, 2), leaf.shape, leaf.axes)


def _extents(segment: Segment) -> list[int]:
    """Entries of a grid along each merged dim."""
    return [
        number * size
        for number, size in zip(segment.grid, segment.block_shape, strict=True)
    ]


def _cut(view: jax.Array, segment: Segment) -> jax.Array:
    """One grid of a view as a stack of blocks (S, *block)."""
    order, extents = len(segment.grid), _extents(segment)
    last = [o + e for o, e in zip(segment.origin, extents, strict=True)]
    part = jax.lax.slice(view, (0, *segment.origin), (view.shape[0], *last))
    pairs = zip(segment.grid, segment.block_shape, strict=True)
    part = part.reshape(view.shape[0], *(size for pair in pairs for size in pair))
    grid_axes = [1 + 2 * dim for dim in range(order)]
    part = part.transpose(0, *grid_axes, *(axis + 1 for axis in grid_axes))
    return part.reshape(-1, *segment.block_shape)


def _uncut(blocks: jax.Array, segment: Segment, batch: int) -> jax.Array:
    """The inverse of `_cut`: one grid as (B, *extents)."""
    order = len(segment.grid)
    part = blocks.reshape(batch, *segment.grid, *segment.block_shape)
    paired = [axis for dim in range(order) for axis in (1 + dim, 1 + order + dim)]
    return part.transpose(0, *paired).reshape(batch, *_extents(segment))


def stack_blocks(
    layout: Layout, arrays: Sequence[jax.Array | None]
) -> dict[str, jax.Array]:
    """Collects the blocks of all leaves in buckets.

    Args:
      layout: from `make_layout`.
      arrays: one array per leaf of the layout; None counts as zeros.

    Returns:
      Per bucket an array (padded slots, *block shape) in the bucket's dtype; the
      slots of no block hold zeros. On a mesh they are sharded over the slots.
    """
    pieces: dict[str, list[jax.Array]] = {bucket.key: [] for bucket in layout.buckets}
    for leaf, array in zip(layout.leaves, arrays, strict=True):
        view = None if array is None else merged_view(array, leaf)
        for segment in leaf.segments:
            bucket = layout.bucket[segment.bucket]
            if view is None:
                shape = (len(segment.block_numbers), *segment.block_shape)
                piece = jnp.zeros(shape, bucket.dtype)
            else:
                piece = _cut(view, segment).astype(bucket.dtype)
            pieces[segment.bucket].append(piece)
    stacks = {}
    for bucket in layout.buckets:
        parts = pieces[bucket.key]
        empty = bucket.padded_slots - bucket.slots
        if empty:
            parts.append(jnp.zeros((empty, *bucket.block_shape), bucket.dtype))
        stack = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
        stacks[bucket.key] = place_blocks(stack, layout.options)
    return stacks


def unstack_blocks(layout: Layout, stacks: dict[str, jax.Array]) -> list[jax.Array]:
    """Puts blocks back into leaves; the inverse of `stack_blocks`.

    Args:
      layout: from `make_layout`.
      stacks: per bucket an array (padded slots, *block shape).

    Returns:
      One array per leaf, in the dtype of the stacks. On a mesh each bucket is gathered
      once, and every leaf has the sharding that its plan states.
    """
    options = layout.options
    if options.mesh is not None:
        replicated = jax.sharding.PartitionSpec()
        stacks = {k: constrain(s, options.mesh, replicated) for k, s in stacks.items()}
    arrays = []
    for leaf in layout.leaves:
        if not leaf.segments:
            arrays.append(jnp.zeros(leaf.shape, leaf.dtype))
            continue
        parts = {}
        for segment in leaf.segments:
            last = segment.first_slot + len(segment.block_numbers)
            blocks = stacks[segment.bucket][segment.first_slot : last]
            parts[segment.origin] = _uncut(blocks, segment, leaf.batch)
        array = unmerged(_assemble(parts, len(leaf.merged)), leaf)
        if options.mesh is not None:
            array = constrain(array, options.mesh, leaf.spec)
        arrays.append(array)
    return arrays


def _assemble(parts: dict[tuple[int, ...], jax.Array], order: int) -> jax.Array:
    """Joins grids, keyed by where they start, along one dim after the other."""
    for dim in reversed(range(order)):
        joined: dict[tuple[int, ...], list[jax.Array]] = {}
        for origin in sorted(parts):
            joined.setdefault(origin[:dim], []).append(parts[origin])
        parts = {
            origin: pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, 1 + dim)
            for origin, pieces in joined.items()
        }
    return parts[()]


def leaf_of_slot(layout: Layout) -> dict[str, np.ndarray]:
    """Per bucket the index of the leaf that each slot belongs to.

    Empty slots have the index of no leaf, the number of leaves.
    """
    owners = {
        bucket.key: np.full(bucket.padded_slots, len(layout.leaves), np.int32)
        for bucket in layout.buckets
    }
    for index, leaf in enumerate(layout.leaves):
        for segment in leaf.segments:
            last = segment.first_slot + len(segment.block_numbers)
            owners[segment.bucket][segment.first_slot : last] = index
    return owners
