"""Leaves as stacks of equal-shaped matrices, one stack for each shape, and back.

Shape legend: k matrices of a stack, m smaller side, n larger side.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from optim_jax.trees.matrices import as_matrices, from_matrices, matrix_shape
from optim_jax.trees.mesh_axes import (
    constrain,
    current,
    explicit_mesh,
    type_specs,
    with_auto_axes,
)
from optim_jax.typing import MatrixAxes

StackFunction = Callable[[jax.Array], jax.Array]


def map_matrices(
    function: StackFunction,
    leaves: Sequence[jax.Array],
    axes: Sequence[MatrixAxes],
    mesh: Mesh | None = None,
) -> list[jax.Array]:
    """Applies a function of matrices to all matrices of some leaves.

    Matrices of the same shape, whichever leaf they are in, become one stack, so that
    the function is compiled once per shape. Tall ones are transposed.

    Args:
      function: from a stack (k, m, n) with m <= n to one of the same shape. It treats
        each matrix on its own, takes zero to zero, and the transposed matrix to the
        transposed result.
      leaves: arrays that are not empty.
      axes: of each leaf.
      mesh: over all devices of which each stack is shared out, padded with zero
        matrices; None leaves the placement to the compiler.

    Returns:
      The results, shaped like the leaves.
    """
    tall = [_is_tall(*pair) for pair in zip(leaves, axes, strict=True)]

    def run(leaves: Sequence[jax.Array]) -> list[jax.Array]:
        matrices = []
        for leaf, of_leaf, is_tall in zip(leaves, axes, tall, strict=True):
            stack = as_matrices(_everywhere(leaf, mesh), of_leaf)
            matrices.append(jnp.swapaxes(stack, 1, 2) if is_tall else stack)
        results = _map_stacks(lambda s: _on_shares(function, s, mesh), matrices)
        returned = []
        for stack, leaf, of_leaf, is_tall in zip(
            results, leaves, axes, tall, strict=True
        ):
            stack = jnp.swapaxes(stack, 1, 2) if is_tall else stack
            returned.append(from_matrices(stack, leaf.shape, of_leaf))
        return returned

    if not leaves:
        return []
    stated = explicit_mesh(leaves)
    return with_auto_axes(run, stated, type_specs(list(leaves)))(list(leaves))


def _is_tall(leaf: jax.Array, axes: MatrixAxes) -> bool:
    inputs, outputs = matrix_shape(leaf.shape, axes)
    return inputs > outputs


def _map_stacks(
    function: StackFunction, stacks: Sequence[jax.Array]
) -> list[jax.Array]:
    """Applies a function to stacks (k, m, n), those of equal m, n and dtype as one."""
    members: dict[tuple[int, int, str], list[int]] = {}
    for index, stack in enumerate(stacks):
        key = (stack.shape[1], stack.shape[2], str(stack.dtype))
        members.setdefault(key, []).append(index)
    results = list(stacks)
    for indices in members.values():
        parts = [stacks[index] for index in indices]
        whole = function(jnp.concatenate(parts) if len(parts) > 1 else parts[0])
        start = 0
        for index, part in zip(indices, parts, strict=True):
            results[index] = whole[start : start + len(part)]
            start += len(part)
    return results


def _on_shares(
    function: StackFunction, stack: jax.Array, mesh: Mesh | None
) -> jax.Array:
    """Applies a function to each device's own share of a stack."""
    if mesh is None:
        return function(stack)
    count, spec = stack.shape[0], PartitionSpec(mesh.axis_names)
    padding = ((0, -count % mesh.size), (0, 0), (0, 0))
    shared = constrain(jnp.pad(stack, padding), mesh, spec)
    # Inside, no collective can get between the products of an iteration.
    on_shares = jax.shard_map(
        function, mesh=current(mesh), in_specs=spec, out_specs=spec, check_vma=False
    )
    # Gathered as a whole: every slice of a shared stack would be a message of its own.
    return _everywhere(on_shares(shared), mesh)[:count]


def _everywhere(array: jax.Array, mesh: Mesh | None) -> jax.Array:
    """The whole array on every device of a mesh."""
    return array if mesh is None else constrain(array, mesh, PartitionSpec())
