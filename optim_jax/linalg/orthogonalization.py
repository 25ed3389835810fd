"""Polar factors: the nearest matrix with orthonormal rows or columns.

Shape legend: "..." any batch axes, m rows, n columns.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.linalg.lapack import svd
from optim_jax.linalg.newton_schulz import convergent_newton_schulz, newton_schulz
from optim_jax.linalg.polar_schedule import Triple
from optim_jax.linalg.solver_info import (
    SolverInfo,
    all_finite,
    check_count,
    check_floating,
    check_precision,
    frobenius_norm,
    matmul,
    over_matrices,
    transpose,
)

# Muon's quintic (Jordan et al., 2024): five steps take singular values near one,
# to about [0.7, 1.2]. (3, -16/5, 6/5) converges to one.
MUON_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
METHODS = ("newton_schulz", "polar", "svd")
_MIN_NORM = 1e-8


def orthogonalize(
    a: jax.Array,
    *,
    method: str = "newton_schulz",
    num_iterations: int = 5,
    coefficients: Triple | Sequence[Triple] = MUON_COEFFICIENTS,
    scale_by_nuclear_norm: bool = False,
) -> tuple[jax.Array, SolverInfo]:
    r"""Polar factor :math:`U V^T` of :math:`A = U \Sigma V^T`.

    * `"newton_schulz"` starts from A over its Frobenius norm and repeats
      :math:`X \leftarrow a X + (b G + c G^2) X` with :math:`G = X X^T` on the smaller
      side. Zero rows and columns stay zero.
    * `"polar"` is the same with coefficients that converge: within 1e-3 of the polar
      factor, in spectral norm, where the singular values are within a factor of 1e3 of
      each other. Smaller ones come out between zero and one.
    * `"svd"` is exact.

    Args:
      a: matrices (..., m, n).
      method: `"newton_schulz"`, `"polar"` or `"svd"`.
      num_iterations: steps of Newton-Schulz; not read by the others.
      coefficients: of Newton-Schulz: (a, b, c) for all steps, or one triple per step.
      scale_by_nuclear_norm: multiply by the sum of the singular values; `"svd"` only.

    Returns:
      `(polar factor (..., m, n), info)`; the error is the largest entry of
      abs(X X^T - I), on the smaller side.

    Raises:
      ValueError: an argument is out of range.
    """
    if len(jnp.shape(a)) < 2:
        raise ValueError(f"a must have the shape (..., m, n), got {jnp.shape(a)}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if scale_by_nuclear_norm and method != "svd":
        raise ValueError("scale_by_nuclear_norm needs method='svd'")
    check = check_floating if method == "newton_schulz" else check_precision
    a = check("a", a)
    finite = all_finite(a)
    safe = jnp.where(finite[..., None, None], a, 0.0)
    if method == "svd":
        left, singular, right = svd(safe)
        polar, count = matmul(left, right), 1
        result = polar
        if scale_by_nuclear_norm:
            result = polar * over_matrices(jnp.sum(singular, axis=-1))
    else:
        tall = safe.shape[-2] > safe.shape[-1]
        wide = transpose(safe) if tall else safe
        if method == "polar":
            polar, count = convergent_newton_schulz(wide)
        else:
            steps = _steps(num_iterations, coefficients)
            norm = jnp.maximum(frobenius_norm(wide), _MIN_NORM)
            polar, count = newton_schulz(wide / over_matrices(norm), steps), len(steps)
        result = polar = transpose(polar) if tall else polar
    success = finite & all_finite(result)
    count = jnp.full(finite.shape, count, jnp.int32)
    return result, SolverInfo(count, _distance_from_isometry(polar), success)


def _distance_from_isometry(polar: jax.Array) -> jax.Array:
    """Largest entry of abs(X X^T - I), on the smaller side."""
    tall = polar.shape[-2] >= polar.shape[-1]
    gram = matmul(transpose(polar), polar) if tall else matmul(polar, transpose(polar))
    identity = jnp.eye(gram.shape[-1], dtype=gram.dtype)
    return jnp.max(jnp.abs(gram - identity), axis=(-2, -1), initial=0.0)


def _steps(num_iterations: int, coefficients: Any) -> tuple[Triple, ...]:
    """One triple per step.

    Raises:
      ValueError: the coefficients do not fit the number of steps.
    """
    check_count("num_iterations", num_iterations)
    try:
        table = np.asarray(coefficients, np.float64)
    except (TypeError, ValueError):
        table = np.empty(0)
    if table.shape not in ((3,), (num_iterations, 3)) or not np.isfinite(table).all():
        raise ValueError(
            "coefficients must be one triple (a, b, c), or one for each of "
            f"num_iterations={num_iterations}, of finite numbers, got {coefficients!r}"
        )
    rows = np.broadcast_to(table, (num_iterations, 3)).tolist()
    return tuple((first, second, third) for first, second, third in rows)
