"""In which precision the sequences are kept, and how half-precision leaves follow."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optim_jax.averaging.recursion import Scalar


def is_absent(update: Any) -> bool:
    """Whether a leaf has no update: `None` or a `MaskedNode` in its place."""
    return update is None or isinstance(update, optax.MaskedNode)


def wide_dtype(leaf: Any) -> Any:
    """The leaf's dtype, or float32 for a half-precision leaf."""
    return jnp.promote_types(jnp.result_type(leaf), jnp.float32)


def is_half(leaf: Any) -> bool:
    """Whether float32 is wider than the leaf's dtype."""
    return wide_dtype(leaf) != jnp.result_type(leaf)


def widen(leaf: Any) -> jax.Array:
    """The leaf in at least float32; not a copy where it already is."""
    return jnp.asarray(leaf, wide_dtype(leaf))


def widen_like(update: Any, leaf: Any) -> Any:
    """A gradient in float32 where its parameter leaf is half precision."""
    if is_absent(update) or not is_half(leaf):
        return update
    return jnp.asarray(update, wide_dtype(leaf))


def scalar_dtype(tree: Any) -> Any:
    """Dtype of the scalars in the state: float64 if one leaf is, else float32.

    Never a half-precision dtype: a bfloat16 sum of equal weights stops at 256.
    """
    doubles = (jnp.float64, jnp.complex128)
    is_double = any(jnp.result_type(p) in doubles for p in jax.tree.leaves(tree))
    return jnp.float64 if is_double else jnp.float32


def next_count(count: jax.Array) -> jax.Array:
    """Adds 1 to a step counter, which stays at its largest value."""
    return jnp.asarray(optax.safe_increment(count))


def scalar_at(value: Any, count: jax.Array, dtype: Any) -> Scalar:
    """Value of a constant or schedule; constants known as floats stay floats.

    Args:
      value: Python float, scalar array or schedule.
      count: 0-based step.
      dtype: dtype of the result where it is an array.
    """
    value = value(count) if callable(value) else value
    return value if isinstance(value, float) else jnp.asarray(value, dtype)


def scalar_like(scalar: Any, array: jax.Array) -> Any:
    """A scalar in the real dtype of an array, so that it does not promote it."""
    if scalar is None or isinstance(scalar, float):
        return scalar
    return scalar.astype(jnp.finfo(array.dtype).dtype)


def step_onto(target: jax.Array, leaf: jax.Array) -> jax.Array:
    """The update in the leaf's dtype that brings it to the rounded target.

    Exact while the two are within a factor of two (Sterbenz); otherwise the next step
    takes the rounding back, since it starts from the leaf it is given.
    """
    return target.astype(leaf.dtype) - leaf
