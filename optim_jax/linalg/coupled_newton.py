"""Inverse roots by the coupled Newton iteration: matrix products only.

Shape legend: "..." any batch axes, d size of a matrix.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.linalg.solver_info import (
    SolverInfo,
    all_finite,
    check_count,
    check_nonnegative,
    check_number,
    check_square,
    finite_or_identity,
    frobenius_norm,
    identity_like,
    initial_count,
    matmul,
    max_abs,
    over_matrices,
    perturb,
)

SCALINGS = ("frobenius", "power")
_POWER_ITERATIONS = 8
# A Rayleigh quotient bounds the largest eigenvalue from below; the iteration converges
# as long as the scaled eigenvalue stays under p + 1, twice what it aims at.
_POWER_MARGIN = 1.1


def matrix_power(a: jax.Array, power: int) -> jax.Array:
    """Power >= 1 of each matrix by repeated squaring."""
    result, square = None, a
    while power:
        if power & 1:
            result = square if result is None else matmul(result, square)
        power >>= 1
        if power:
            square = matmul(square, square)
    assert result is not None
    return result


def coupled_newton_inverse_root(
    a: jax.Array,
    p: int,
    *,
    eps: Any = 0.0,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
    scaling: str = "frobenius",
) -> tuple[jax.Array, SolverInfo]:
    r"""Inverse root :math:`(A + \epsilon I)^{-1/p}` by Newton's coupled iteration.

    .. math::

      T = \frac{(p + 1) I - M}{p}, \quad X \leftarrow X T, \quad M \leftarrow T^p M,

    from :math:`X = z^{1/p} I` and :math:`M = z A` until M is the identity.

    Args:
      a: symmetric positive semi-definite matrices (..., d, d).
      p: order of the root, an integer >= 1.
      eps: ridge >= 0, a number or one per matrix (...).
      max_iterations: bound of the iterations.
      tolerance: largest entry of abs(M - I) at which a matrix is done, in [0, 1].
      scaling: z = (p + 1) / (2 b) for a bound b of the largest eigenvalue: the
        Frobenius norm, or `"power"`, the smaller of it and 1.1 times an estimate by 8
        power iterations.

    Returns:
      `(root (..., d, d), info)`; the error is the largest entry of abs(M - I). Not
      reaching the tolerance is no failure. The matrices of a batch do not influence
      each other.

    Raises:
      ValueError: an argument is out of range.

    References:
      Guo, Higham, 2006, https://doi.org/10.1137/050643374.
    """
    a = check_square("a", a)
    check_count("p", p)
    check_count("max_iterations", max_iterations)
    check_nonnegative(eps=eps)
    check_number("tolerance", tolerance, "in [0, 1]", lambda v: 0.0 <= v <= 1.0)
    if scaling not in SCALINGS:
        raise ValueError(f"scaling must be one of frobenius, power, got {scaling!r}")
    safe, finite = finite_or_identity(perturb(a, eps))
    identity = identity_like(safe)
    bound = frobenius_norm(safe)
    if scaling == "power":
        bound = jnp.minimum(bound, _POWER_MARGIN * _rayleigh_quotient(safe))
    z = (p + 1) / (2.0 * jnp.where(bound > 0.0, bound, 1.0))
    root = over_matrices(z ** (1.0 / p)) * identity
    coupled = over_matrices(z) * safe

    def is_active(count: jax.Array, error: jax.Array) -> jax.Array:
        # Written so that a NaN error ends the iteration of its matrix.
        return (error > tolerance) & (count < max_iterations)

    def condition(carry: Any) -> jax.Array:
        _, _, error, count = carry
        return jnp.any(is_active(count, error))

    def body(carry: Any) -> Any:
        root, coupled, error, count = carry
        active = is_active(count, error)
        mask = active[..., None, None]
        factor = ((p + 1) * identity - coupled) / p
        new_coupled = matmul(matrix_power(factor, p), coupled)
        return (
            jnp.where(mask, matmul(root, factor), root),
            jnp.where(mask, new_coupled, coupled),
            jnp.where(active, max_abs(new_coupled - identity), error),
            count + active.astype(jnp.int32),
        )

    carry = (
        root,
        coupled,
        max_abs(coupled - identity),
        initial_count(finite, 0),
    )
    root, _, error, count = jax.lax.while_loop(condition, body, carry)
    return root, SolverInfo(count, error, finite & all_finite(root))


def _rayleigh_quotient(a: jax.Array) -> jax.Array:
    """Estimates the largest eigenvalue from below by power iterations."""
    # The column of the largest diagonal entry is never orthogonal to the top of a
    # positive semi-definite matrix unless it is zero.
    start = jnp.argmax(jnp.diagonal(a, axis1=-2, axis2=-1), axis=-1)
    vector = jnp.take_along_axis(a, start[..., None, None], axis=-1)

    def normalised(vector: jax.Array) -> jax.Array:
        norm = frobenius_norm(vector)
        return vector / over_matrices(jnp.where(norm > 0.0, norm, 1.0))

    vector = jax.lax.fori_loop(
        0,
        _POWER_ITERATIONS,
        lambda _, vector: normalised(matmul(a, vector)),
        normalised(vector),
    )
    return jnp.sum(vector * matmul(a, vector), axis=(-2, -1))
