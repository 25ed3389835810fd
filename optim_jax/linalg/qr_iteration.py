"""Eigenbases by QR iterations that start from an older basis.

Shape legend: "..." any batch axes, d size of a matrix.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.linalg.eigendecomposition import off_diagonal_ratio
from optim_jax.linalg.lapack import qr
from optim_jax.linalg.solver_info import (
    SolverInfo,
    all_finite,
    check_count,
    check_nonnegative,
    check_number,
    check_square,
    identity_like,
    initial_count,
    matmul,
    perturb,
    transpose,
)


def qr_eigendecomposition(
    a: jax.Array,
    q: jax.Array,
    *,
    eps: Any = 0.0,
    max_iterations: int = 1,
    tolerance: float = 0.0,
) -> tuple[tuple[jax.Array, jax.Array], SolverInfo]:
    r"""Improves an eigenbasis of A + eps I by QR iterations.

    From :math:`B = Q^T A Q`, repeats
    :math:`B = q r, B \leftarrow r q, Q \leftarrow Q q`, then sorts by the diagonal of
    B.

    Args:
      a: symmetric matrices (..., d, d).
      q: orthogonal matrices (..., d, d), the older basis in columns.
      eps: added to the diagonal, >= 0: a number, or one per matrix (...).
      max_iterations: bound of the iterations.
      tolerance: relative off-diagonal norm in [0, 1] at which a matrix is done; with 0
        all iterations are run.

    Returns:
      `((eigenvalue estimates (..., d), ascending, basis (..., d, d)), info)`; the error
      is the relative off-diagonal norm that is left. The matrices of a batch do not
      influence each other.

    Raises:
      ValueError: an argument is out of range.
    """
    eigenvalues, basis, _, info = qr_eigendecomposition_with_order(
        a, q, eps=eps, max_iterations=max_iterations, tolerance=tolerance
    )
    return (eigenvalues, basis), info


def qr_eigendecomposition_with_order(
    a: jax.Array,
    q: jax.Array,
    *,
    eps: Any = 0.0,
    max_iterations: int = 1,
    tolerance: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array, SolverInfo]:
    """`qr_eigendecomposition` that also says how the columns were sorted.

    Returns:
      `(eigenvalues, basis, order, info)`: column i of the basis continues column
      `order[..., i]` of `q`.
    """
    a, q = check_square("a", a), check_square("q", q)
    if a.shape != q.shape:
        raise ValueError(
            f"a and q must have the same shape, got {a.shape} and {q.shape}"
        )
    check_nonnegative(eps=eps)
    check_count("max_iterations", max_iterations)
    check_number("tolerance", tolerance, "in [0, 1]", lambda v: 0.0 <= v <= 1.0)
    perturbed = perturb(a, eps)
    finite = all_finite(perturbed) & all_finite(q)
    # Where one of the two is bad both become the identity.
    safe, basis = (
        jnp.where(finite[..., None, None], m, identity_like(m)) for m in (perturbed, q)
    )
    rotated = matmul(transpose(basis), matmul(safe, basis))

    def improve(rotated: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
        orthogonal, triangular = qr(rotated)
        return matmul(triangular, orthogonal), matmul(basis, orthogonal)

    if tolerance == 0.0:
        count = jnp.full(finite.shape, max_iterations, jnp.int32)
        if max_iterations == 1:
            rotated, basis = improve(rotated, basis)
        else:
            rotated, basis = jax.lax.fori_loop(
                0, max_iterations, lambda _, pair: improve(*pair), (rotated, basis)
            )
    else:

        def is_active(rotated: jax.Array, count: jax.Array) -> jax.Array:
            ratio = off_diagonal_ratio(rotated)
            return (ratio > tolerance) & (count < max_iterations)

        def condition(carry: Any) -> jax.Array:
            return jnp.any(is_active(carry[0], carry[2]))

        def body(carry: Any) -> Any:
            rotated, basis, count = carry
            active = is_active(rotated, count)
            mask = active[..., None, None]
            new_rotated, new_basis = improve(rotated, basis)
            return (
                jnp.where(mask, new_rotated, rotated),
                jnp.where(mask, new_basis, basis),
                count + active.astype(jnp.int32),
            )

        start = (rotated, basis, initial_count(finite, 0))
        rotated, basis, count = jax.lax.while_loop(condition, body, start)
    eigenvalues = jnp.diagonal(rotated, axis1=-2, axis2=-1)
    order = jnp.argsort(eigenvalues, axis=-1, stable=True)
    eigenvalues = jnp.take_along_axis(eigenvalues, order, axis=-1)
    basis = jnp.take_along_axis(basis, order[..., None, :], axis=-1)
    success = finite & all_finite(eigenvalues, 1) & all_finite(basis)
    info = SolverInfo(count, off_diagonal_ratio(rotated), success)
    return eigenvalues, basis, order, info
