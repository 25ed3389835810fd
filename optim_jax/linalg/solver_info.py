"""What a matrix function says about its run, and the guards all of them share.

Shape legend: "..." any batch axes, d size of a matrix.
"""

import math
import numbers
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


class SolverInfo(NamedTuple):
    """Facts about one run, arrays of the batch shape.

    Attributes:
      iterations: int32, loop bodies executed; 1 for a direct solver.
      error: the solver's own residual.
      success: bool, False for non-finite input or output and where the solver says so.
    """

    iterations: jax.Array
    error: jax.Array
    success: jax.Array


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Batched product in full precision: roots are unusable in less."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def transpose(a: jax.Array) -> jax.Array:
    """Swaps the last two axes."""
    return jnp.swapaxes(a, -1, -2)


def identity_like(a: jax.Array) -> jax.Array:
    """One identity (d, d) in the dtype of a stack (..., d, d)."""
    return jnp.eye(a.shape[-1], dtype=a.dtype)


def over_matrices(values: Any) -> Any:
    """A number per matrix (...) as (..., 1, 1); a plain number as it is."""
    return values[..., None, None] if jnp.ndim(values) else values


def over_rows(values: Any) -> Any:
    """A number per matrix (...) as (..., 1); a plain number as it is."""
    return values[..., None] if jnp.ndim(values) else values


def perturb(a: jax.Array, eps: Any) -> jax.Array:
    """A + eps I in the dtype of A, with eps a number or one per matrix (...)."""
    return a + over_matrices(jnp.asarray(eps, a.dtype)) * identity_like(a)


def all_finite(a: jax.Array, ndim: int = 2) -> jax.Array:
    """Whether the last `ndim` axes hold finite numbers only."""
    return jnp.all(jnp.isfinite(a), axis=tuple(range(-ndim, 0)))


def frobenius_norm(a: jax.Array) -> jax.Array:
    """Frobenius norm of each matrix; its square may be out of the range of floats."""
    scale = max_abs(a)
    scale = jnp.where(scale > 0.0, scale, 1.0)
    scaled = a / scale[..., None, None]
    return scale * jnp.sqrt(jnp.sum(jnp.square(scaled), axis=(-2, -1)))


def max_abs(a: jax.Array) -> jax.Array:
    """Largest absolute entry of each matrix."""
    return jnp.max(jnp.abs(a), axis=(-2, -1))


def finite_or_identity(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Replaces matrices with non-finite entries by the identity.

    LAPACK may return finite garbage for them: of [[inf, 1], [1, 2]] finite eigenvectors
    beside NaN eigenvalues, of [[nan, 1], [1, 2]] the other way round.

    Returns:
      The safe stack, and which matrices were finite.
    """
    finite = all_finite(a)
    return jnp.where(finite[..., None, None], a, identity_like(a)), finite


def initial_count(finite: jax.Array, count: int) -> jax.Array:
    """The same int32 for each matrix of `finite`.

    Made from an array of the stack, so that inside `shard_map` it varies over the same
    mesh axes: the carry of a loop keeps its type.
    """
    return jnp.where(finite, jnp.int32(count), jnp.int32(count))


def check_square(name: str, a: Any) -> jax.Array:
    """Checks a stack of square matrices in single or double precision.

    Raises:
      ValueError: it is none.
    """
    shape = jnp.shape(a)
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise ValueError(f"{name} must have the shape (..., d, d), got {shape}")
    return check_precision(name, a)


def check_precision(name: str, a: Any) -> jax.Array:
    """Checks that an array is in single or double precision, as LAPACK needs it.

    Raises:
      ValueError: it is not.
    """
    check_floating(name, a)
    if jnp.result_type(a) not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"{name} must be of the dtype float32 or float64, got {jnp.result_type(a)}"
        )
    return jnp.asarray(a)


def check_floating(name: str, a: Any) -> jax.Array:
    """Checks the dtype of an array.

    Raises:
      ValueError: it is not a real floating-point one.
    """
    if not jnp.issubdtype(jnp.result_type(a), jnp.floating):
        raise ValueError(
            f"{name} must be of a real floating-point dtype, got {jnp.result_type(a)}"
        )
    return jnp.asarray(a)


def check_number(
    name: str, value: Any, allowed: str, accept: Callable[[float], bool]
) -> None:
    """Checks a number or NumPy array of the host; JAX arrays are not looked at.

    Raises:
      ValueError: it is not accepted; NaN never is.
    """
    if isinstance(value, (jax.Array, jax.core.Tracer)):
        return
    known = isinstance(value, (numbers.Real, np.ndarray))
    if not known or not all(map(accept, np.asarray(value, np.float64).flat)):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def check_nonnegative(**values: Any) -> None:
    """Checks numbers that must be finite and not negative."""
    for name, value in values.items():
        check_number(name, value, "finite and >= 0", lambda v: 0.0 <= v < math.inf)


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Checks a static integer.

    Raises:
      ValueError: it is none, or too small.
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    return int(value)


def check_root(p: Any, q: Any) -> Fraction:
    """Reads the root A^(-q/p); p and q are rounded to denominators up to 1000.

    The binary fraction behind a float such as 0.4 has one of 2^51 or more.

    Returns:
      q / p in lowest terms.

    Raises:
      ValueError: p or q is not a finite number > 0, or rounds to zero.
    """
    parts = []
    for name, value in (("p", p), ("q", q)):
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not 0.0 < float(value) < math.inf:
            raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
        if float(value) < 0.001:
            raise ValueError(f"{name} must be at least 0.001, got {value!r}")
        exact = value if isinstance(value, numbers.Rational) else float(value)
        parts.append(Fraction(exact).limit_denominator(1000))
    return parts[1] / parts[0]
