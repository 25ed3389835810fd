"""State by parameter and block, which does not depend on the mesh.

Stacks are padded to the number of devices, so a state as it lies fits one mesh only.
The canonical form holds every block unpadded under the path of its parameter.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.preconditioning.direction import init_state
from optim_jax.preconditioning.layout import Bucket, Layout
from optim_jax.preconditioning.mesh import place_blocks, place_scalar
from optim_jax.preconditioning.packing import pack_symmetric, unpack_symmetric
from optim_jax.preconditioning.plan import Plan
from optim_jax.preconditioning.state import BucketState, Health, ShampooState

# Canonical name of an entry -> field of `BucketState`; one array per mode, or one.
_PER_MODE = {
    "factor": "factors",
    "inverse": "inverses",
    "eigenvectors": "eigenvectors",
    "eigenvalues": "eigenvalues",
}
_SYMMETRIC = ("factor", "inverse")
_COUNTERS = (
    "refreshes",
    "skipped",
    "total_failures",
    "max_residual",
    "iterations",
    "off_diagonal",
)


def map_shampoo_state(function: Callable[[ShampooState], Any], state: Any) -> Any:
    """Replaces the one Shampoo state within a nested state.

    Raises:
      ValueError: there is none, or more than one.
    """
    found = 0

    def visit(node: Any) -> Any:
        nonlocal found
        if isinstance(node, ShampooState):
            found += 1
            return function(node)
        return node

    result = jax.tree.map(visit, state, is_leaf=is_shampoo_state)
    if found != 1:
        raise ValueError(
            f"expected one Shampoo state within the given state, found {found}; with "
            "several, pass the part of each with its own plan"
        )
    return result


def is_shampoo_state(node: Any) -> bool:
    """Whether a node of a nested state is that of Shampoo."""
    return isinstance(node, ShampooState)


def block_slots(layout: Layout) -> Iterator[tuple[str, str, Bucket, int]]:
    """Yields (path, number of the block, bucket, slot) for every block."""
    for leaf in layout.leaves:
        for segment in leaf.segments:
            for offset, number in enumerate(segment.block_numbers):
                bucket = layout.bucket[segment.bucket]
                yield leaf.path, str(number), bucket, segment.first_slot + offset


def to_canonical_state(state: Any, plan: Plan, *, packed: bool = False) -> Any:
    """Turns a state into its form by parameter and block.

    Args:
      state: any nested state with one Shampoo state in it.
      plan: of the transformation and the tree that the state belongs to.
      packed: store factors and inverse roots as their upper triangles, row by row.

    Returns:
      The state with the Shampoo state replaced by
      `{"count", "params": {path: {"0": {...}, "1": {...}}}, "health"}`, where the
      paths are those of `jax.tree_util.keystr` and the entries of a block are, as
      present, `factor`, `inverse`, `eigenvectors` and `eigenvalues` (tuples over the
      preconditioned modes), `second_moment`, `mu` and `graft` (of the block's shape).
      Everything is NumPy arrays.

    Raises:
      ValueError: the state holds no Shampoo state, or several.
    """
    return map_shampoo_state(lambda node: _to_canonical(node, plan, packed), state)


def _to_canonical(state: ShampooState, plan: Plan, packed: bool) -> dict[str, Any]:
    state = jax.tree.map(np.asarray, jax.device_get(state))
    layout = plan.layout
    params: dict[str, Any] = {leaf.path: {} for leaf in layout.leaves}
    failures: dict[str, Any] = {leaf.path: {} for leaf in layout.leaves}
    for path, number, bucket, slot in block_slots(layout):
        held, entry = state.buckets[bucket.key], {}
        for name, field in _PER_MODE.items():
            arrays = tuple(array[slot] for array in getattr(held, field))
            if packed and name in _SYMMETRIC:
                arrays = tuple(np.asarray(pack_symmetric(array)) for array in arrays)
            if arrays:
                entry[name] = arrays
        if not isinstance(held.second_moment, tuple):
            entry["second_moment"] = held.second_moment[slot]
        for name in ("mu", "graft"):
            stacks = getattr(state, name)
            if not isinstance(stacks, tuple):
                entry[name] = stacks[bucket.key][slot]
        params[path][number] = entry
        if bucket.modes:
            failures[path][number] = state.health.failures[bucket.key][slot]
    health = {name: getattr(state.health, name) for name in _COUNTERS}
    return {
        "count": state.count,
        "params": params,
        "health": {**health, "failures": failures},
    }


def from_canonical_state(tree: Any, plan: Plan) -> Any:
    """Puts a state in its form by block back into stacks, on the plan's mesh.

    Args:
      tree: what `to_canonical_state` returned, packed or not, for a plan with the same
        blocks; the number of devices may be another.
      plan: of the transformation that goes on.

    Returns:
      The nested state with a Shampoo state again, sharded over the plan's mesh.

    Raises:
      ValueError: a parameter, block or entry is missing, unexpected or of another
        shape, or the counters contradict each other.
    """
    found = 0

    def visit(node: Any) -> Any:
        nonlocal found
        if _is_canonical(node):
            found += 1
            return _from_canonical(node, plan)
        return node

    state = jax.tree.map(visit, tree, is_leaf=_is_canonical)
    if found != 1:
        raise ValueError(
            "expected one canonical Shampoo state, a dict with the keys count, params "
            f"and health, within the given state; found {found}"
        )
    return state


def _is_canonical(node: Any) -> bool:
    return isinstance(node, Mapping) and {"count", "params"} <= set(node)


def _check_keys(what: str, given: Any, expected: Any) -> None:
    given, expected = set(given), set(expected)
    missing, unexpected = sorted(expected - given), sorted(given - expected)
    if missing or unexpected:
        raise ValueError(
            f"the canonical state does not fit the plan: {what} lacks "
            f"{missing or 'nothing'} and has unexpected {unexpected or 'nothing'}"
        )


def _check_counters(count: Any, health: Mapping[str, Any]) -> None:
    if np.ndim(count) != 0 or int(count) != count or count < 0:
        raise ValueError(
            f"count of the canonical state must be an integer >= 0, got {count!r}"
        )
    if health["skipped"] > count or health["skipped"] < 0:
        raise ValueError(
            f"the counters of the canonical state disagree: skipped="
            f"{health['skipped']} of count={count} steps"
        )


def _entry_names(state: ShampooState, bucket: Bucket) -> list[str]:
    """Entries of the blocks of a bucket."""
    held = state.buckets[bucket.key]
    names = [name for name, field in _PER_MODE.items() if getattr(held, field)]
    if not isinstance(held.second_moment, tuple):
        names.append("second_moment")
    for name in ("mu", "graft"):
        if not isinstance(getattr(state, name), tuple):
            names.append(name)
    return names


def _from_canonical(tree: Mapping[str, Any], plan: Plan) -> ShampooState:
    layout = plan.layout
    _check_keys("the state", tree, ("count", "params", "health"))
    health, params = tree["health"], tree["params"]
    _check_keys("health", health, (*_COUNTERS, "failures"))
    _check_counters(tree["count"], health)
    _check_keys("params", params, [leaf.path for leaf in layout.leaves])
    for leaf in layout.leaves:
        _check_keys(leaf.path, params[leaf.path], map(str, range(leaf.num_blocks)))
    empty = jax.eval_shape(lambda: init_state(layout, plan.hyperparameters))
    slots = list(block_slots(layout))
    for path, number, bucket, _ in slots:
        expected = _entry_names(empty, bucket)
        _check_keys(f"block {number} of {path}", params[path][number], expected)

    def fill(
        key: str,
        reference: Any,
        read: Callable[[str, str], Any],
        fill_value: str = "zeros",
    ) -> jax.Array:
        stack = _filler(reference, fill_value)
        for path, number, bucket, slot in slots:
            if bucket.key == key:
                value = np.asarray(read(path, number))
                if value.shape != stack.shape[1:]:
                    raise ValueError(
                        f"block {number} of {path} in the canonical state has an entry "
                        f"of shape {value.shape}, expected {stack.shape[1:]}"
                    )
                stack[slot] = value
        return _place(stack, layout)

    def entry(path: str, number: str, name: str, position: int | None = None) -> Any:
        value = params[path][number][name]
        if position is None:
            return value
        if position >= len(value):
            raise ValueError(
                f"{name!r} of block {number} of {path} in the canonical state has "
                f"{len(value)} modes, expected more than {position}"
            )
        value = np.asarray(value[position])
        packed = name in _SYMMETRIC and value.ndim == 1
        return unpack_symmetric(value) if packed else value

    buckets = {}
    for bucket in layout.buckets:
        reference, fields = empty.buckets[bucket.key], {}
        for name, field in _PER_MODE.items():
            identity = field in ("inverses", "eigenvectors")
            fields[field] = tuple(
                fill(
                    bucket.key,
                    array,
                    lambda path, number, name=name, position=position: entry(
                        path, number, name, position
                    ),
                    "identity" if identity else "zeros",
                )
                for position, array in enumerate(getattr(reference, field))
            )
        if not isinstance(reference.second_moment, tuple):
            fields["second_moment"] = fill(
                bucket.key,
                reference.second_moment,
                lambda path, number: entry(path, number, "second_moment"),
            )
        buckets[bucket.key] = BucketState(**fields)

    def moments(name: str) -> Any:
        references = getattr(empty, name)
        if isinstance(references, tuple):
            return ()
        return {
            key: fill(key, array, lambda path, number: entry(path, number, name))
            for key, array in references.items()
        }

    failures = {
        key: fill(key, array, lambda path, number: health["failures"][path][number])
        for key, array in empty.health.failures.items()
    }
    counters = {
        name: place_scalar(
            jnp.asarray(health[name], getattr(empty.health, name).dtype), layout.options
        )
        for name in _COUNTERS
    }
    return ShampooState(
        place_scalar(jnp.asarray(tree["count"], jnp.int32), layout.options),
        moments("mu"),
        buckets,
        moments("graft"),
        Health(**counters, failures=failures),
    )


def _filler(reference: Any, fill: str) -> np.ndarray:
    """What the empty slots of a stack hold."""
    stack = np.zeros(reference.shape, reference.dtype)
    if fill == "identity":
        stack[:] = np.eye(reference.shape[-1], dtype=reference.dtype)
    return stack


def _place(stack: np.ndarray, layout: Layout) -> jax.Array:
    return place_blocks(jnp.asarray(stack), layout.options)
