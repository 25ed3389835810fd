"""Which axes of a mesh the types of arrays name, and running with them made Auto."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def is_explicit(mesh: Any) -> bool:
    """Whether the sharding along the mesh's axes is part of the type of arrays."""
    return any(kind == AxisType.Explicit for kind in mesh.axis_types)


def current(mesh: Mesh) -> Any:
    """The mesh to place arrays on: inside `with_auto_axes` the Auto view of it."""
    return jax.sharding.get_abstract_mesh() if is_explicit(mesh) else mesh


def constrain(array: jax.Array, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    """Places an array on a mesh whose axes are Auto here."""
    return jax.lax.with_sharding_constraint(array, NamedSharding(current(mesh), spec))


def explicit_mesh(tree: Any) -> Any:
    """The mesh whose Explicit axes the types of some arrays name, or None."""
    for leaf in jax.tree.leaves(tree):
        mesh = jax.typeof(leaf).sharding.mesh
        if not mesh.empty and is_explicit(mesh):
            return mesh
    return None


def type_specs(tree: Any) -> Any:
    """The shardings that the types of arrays state."""
    return jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, tree)


def with_auto_axes(
    function: Callable[..., Any], mesh: Any, out_specs: Any
) -> Callable[..., Any]:
    """Runs a function with the Explicit axes of a mesh made Auto.

    Cutting and stacking sharded leaves would otherwise need an output sharding for
    every slice and reshape.

    Args:
      function: of arrays.
      mesh: from `explicit_mesh`; None leaves the function alone.
      out_specs: tree of `PartitionSpec` like the results.
    """
    if mesh is None:
        return function
    names = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    )
    wrapped = jax.sharding.auto_axes(function, axes=names, out_sharding=out_specs)

    def run(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh):
            return wrapped(*args)

    return run
