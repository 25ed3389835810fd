r"""Sums of singular values, and of square roots of eigenvalues.

Each by decompositions (`"eigh"`) or by matrix products only (`"matmul"`).
Shape legend: "..." any batch axes, m rows, n columns, d size of a square matrix.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.linalg.lapack import eigh, singular_values, svd
from optim_jax.linalg.orthogonalization import orthogonalize
from optim_jax.linalg.polar_schedule import polar_schedule
from optim_jax.linalg.solver_info import (
    all_finite,
    check_precision,
    check_square,
    frobenius_norm,
    identity_like,
    matmul,
    max_abs,
    over_matrices,
    transpose,
)

METHODS = ("eigh", "matmul")
# The iteration does not resolve eigenvalues closer to the rounding of the largest.
_MIN_RESOLVED = 32
_TOLERANCE = 1e-6
# Entries of a matrix that converges to a projection are at most one.
_DIVERGED = 2.0


def nuclear_norm(z: jax.Array, method: str = "eigh") -> jax.Array:
    r"""Sum of the singular values, :math:`\|Z\|_{S_1}`.

    `"eigh"` decomposes. `"matmul"` is :math:`\langle Z, \operatorname{polar}(Z)\rangle`
    with the convergent Newton-Schulz iteration of `orthogonalize`: to 1e-3, and low by
    part of the singular values below a thousandth of the largest.

    Args:
      z: matrices (..., m, n) in single or double precision.
      method: `"eigh"` or `"matmul"`.

    Returns:
      Array (...); NaN for a matrix with non-finite entries.

    Raises:
      ValueError: an argument is not allowed.
    """
    z = _check(z, method)
    if z.size == 0:
        return jnp.zeros(z.shape[:-2], z.dtype)
    finite = all_finite(z)
    safe = jnp.where(over_matrices(finite), z, 0.0)
    if method == "eigh":
        norm = jnp.sum(singular_values(safe), axis=-1)
    else:
        polar, _ = orthogonalize(safe, method="polar")
        norm = jnp.sum(safe * polar, axis=(-2, -1))
    return jnp.where(finite, norm, jnp.nan)


def polar_factor(z: jax.Array, method: str = "eigh") -> jax.Array:
    r"""Steepest-descent direction in the spectral norm, :math:`U_r V_r^T`.

    The inner product of Z with it is the nuclear norm of Z.

    Args:
      z: matrices (..., m, n) in single or double precision.
      method: `"eigh"` leaves out singular values up to max(m, n) machine epsilons of
        the largest; `"matmul"` is `orthogonalize(method="polar")`, where small ones
        come out between zero and one.

    Returns:
      Matrices (..., m, n); zero for zero, NaN for a matrix with non-finite entries.

    Raises:
      ValueError: an argument is not allowed.
    """
    z = _check(z, method)
    if z.size == 0:
        return z
    finite = over_matrices(all_finite(z))
    safe = jnp.where(finite, z, 0.0)
    if method == "eigh":
        left, singular, right = svd(safe)
        cutoff = max(z.shape[-2:]) * jnp.finfo(z.dtype).eps
        kept = singular > cutoff * singular[..., :1]
        polar = matmul(left * kept[..., None, :], right)
    else:
        polar, _ = orthogonalize(safe, method="polar")
    return jnp.where(finite, polar, jnp.nan)


def trace_square_root(c: jax.Array, method: str = "eigh") -> jax.Array:
    r"""Trace of the square root of a positive semi-definite matrix.

    The root itself is never formed. The eigenvalues that rounding gives to a null space
    are of the order of a machine epsilon of the largest one, but their roots are not
    small: in single precision, d = 512 of them add 2 % to the trace of a matrix of rank
    one. So

    * `"eigh"` leaves out eigenvalues below d machine epsilons of the largest, negative
      ones included;
    * `"matmul"` repeats :math:`R \leftarrow R q(R)^2, Q \leftarrow Q q(R)` from
      :math:`R = C, Q = I`, which takes R to a projection and Q to :math:`C^{-1/2}`,
      and returns :math:`\langle C, Q \rangle`. The quadratics q converge for
      eigenvalues down to d (at least 32) machine epsilons of the largest; smaller ones
      contribute less than their root, rounding next to nothing. In single precision
      this is to about 1e-3, however badly conditioned the matrix.

    Args:
      c: matrices (..., d, d) in single or double precision, positive semi-definite up
        to rounding.
      method: `"eigh"` or `"matmul"`.

    Returns:
      Array (...); NaN for a matrix with non-finite entries and, under `"matmul"`, where
      negative eigenvalues are too large to be rounding.

    Raises:
      ValueError: an argument is not allowed.
    """
    c = check_square("c", _check(c, method))
    if c.size == 0:
        return jnp.zeros(c.shape[:-2], c.dtype)
    finite = all_finite(c)
    safe = jnp.where(over_matrices(finite), c, 0.0)
    if method == "eigh":
        eigenvalues, _ = eigh(safe)
        cutoff = c.shape[-1] * jnp.finfo(c.dtype).eps * eigenvalues[..., -1:]
        kept = (eigenvalues > cutoff) & (eigenvalues > 0.0)
        trace = jnp.sum(jnp.sqrt(jnp.where(kept, eigenvalues, 0.0)), axis=-1)
    else:
        trace = _trace_by_products(safe)
    return jnp.where(finite, trace, jnp.nan)


def _trace_by_products(c: jax.Array) -> jax.Array:
    size, dtype = c.shape[-1], c.dtype
    norm = frobenius_norm(c)
    norm = jnp.where(norm > 0.0, norm, 1.0)
    unit = c / over_matrices(norm)
    # The fourth root of the sum of fourth powers bounds the largest eigenvalue by at
    # most the fourth root of d times it.
    bound = jnp.sqrt(frobenius_norm(matmul(unit, unit)))
    bound = jnp.where(bound > 0.0, bound, 1.0)
    unit = unit / over_matrices(bound)
    resolved = max(size, _MIN_RESOLVED) * float(jnp.finfo(dtype).eps)
    # The schedule speaks of singular values, the roots of these eigenvalues.
    steps = polar_schedule(math.sqrt(resolved / size**0.25), _TOLERANCE)
    identity = identity_like(c)

    def step(carry: Any, coefficients: jax.Array) -> tuple[Any, None]:
        projection, inverse_root = carry
        first, second, third = coefficients
        quadratic = second * projection + third * matmul(projection, projection)
        quadratic = first * identity + quadratic
        projection = matmul(matmul(quadratic, projection), quadratic)
        projection = (projection + transpose(projection)) / 2.0
        return (projection, matmul(inverse_root, quadratic)), None

    # A loop, since products of many small matrices take long to compile. Its carry
    # varies over the mesh axes that the matrices vary over.
    start = (unit, identity + 0.0 * unit)
    (projection, inverse_root), _ = jax.lax.scan(step, start, jnp.asarray(steps, dtype))
    trace = jnp.sum(unit * inverse_root, axis=(-2, -1))
    converged = max_abs(projection) < _DIVERGED
    return jnp.where(converged, jnp.sqrt(norm * bound) * trace, jnp.nan)


def _check(z: jax.Array, method: str) -> jax.Array:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if jnp.ndim(z) < 2:
        raise ValueError(f"z must have the shape (..., m, n), got {jnp.shape(z)}")
    return check_precision("z", z)
