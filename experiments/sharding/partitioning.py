"""From path rules to the sharding of every array of a train state."""

import re
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optim_jax import Plan, ShampooState, state_sharding
from optim_jax.trees.paths import leaf_name

Rules = Sequence[tuple[str, PartitionSpec]]


def partition_spec(name: str, rules: Rules) -> PartitionSpec:
    """The spec of the first rule found in a "/"-joined path; replicated if none is."""
    for pattern, spec in rules:
        if re.search(pattern, name):
            return spec
    return PartitionSpec()


def fit_to_shape(
    name: str, spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh
) -> PartitionSpec:
    """Drops mesh axes that do not divide their dimension, and says so once in the log.

    Raises:
      ValueError: if the spec has more entries than the array has dimensions.
    """
    if len(spec) > len(shape):
        raise ValueError(
            f"partition rule for {name} has {len(spec)} entries ({spec}), but the "
            f"array has shape {shape}"
        )
    fitted = []
    for size, entry in zip(shape, spec, strict=False):
        axes = (entry,) if isinstance(entry, str) else tuple(entry or ())
        kept = []
        for axis in axes:
            if size % mesh.shape[axis] == 0:
                kept.append(axis)
                size //= mesh.shape[axis]
            else:
                logging.info("%s: %d is not split over mesh.%s", name, size, axis)
        fitted.append(kept[0] if len(kept) == 1 else tuple(kept) or None)
    return PartitionSpec(*fitted)


def param_shardings(params: Any, rules: Rules, mesh: Mesh) -> Any:
    """A tree of `NamedSharding` like `params` (arrays or shapes)."""

    def sharding(path, leaf):
        name = leaf_name(path)
        spec = fit_to_shape(name, partition_spec(name, rules), leaf.shape, mesh)
        return NamedSharding(mesh, spec)

    return jax.tree.map_with_path(sharding, params)


def state_shardings(
    state: Any, params: Any, rules: Rules, mesh: Mesh, plan: Plan | None = None
) -> Any:
    """Shardings for any tree that holds copies of the parameters' structure.

    A leaf whose path ends like a parameter's and that has its shape (a moment, an
    averaged sequence, the parameter itself) is laid out like it; everything else
    (counters, scalars, keys) is replicated. Stacks of blocks have no path of a
    parameter: a Shampoo state lies as its `plan` says.
    """
    by_path = {
        leaf_name(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree.leaves_with_path(params),
            jax.tree.leaves(param_shardings(params, rules, mesh)),
            strict=True,
        )
    }
    whole = NamedSharding(mesh, PartitionSpec())

    def sharding(path, leaf):
        parts = leaf_name(path).split("/")
        for start in range(len(parts)):
            shape, found = by_path.get("/".join(parts[start:]), (None, whole))
            if shape == leaf.shape:
                return found
        return whole

    shardings = jax.tree.map_with_path(sharding, state)
    if plan is None:
        return shardings
    of_blocks = state_sharding(plan, mesh)
    return jax.tree.map(
        lambda node: of_blocks if _is_shampoo(node) else node,
        shardings,
        is_leaf=_is_shampoo,
    )


def _is_shampoo(node: Any) -> bool:
    return isinstance(node, ShampooState)


def evenly_split(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Splits the first dimension that all devices divide; replicated if none does."""
    for axis, size in enumerate(shape):
        if size and size % mesh.size == 0:
            spec = PartitionSpec(*[None] * axis, mesh.axis_names)
            return NamedSharding(mesh, spec)
    return NamedSharding(mesh, PartitionSpec())
