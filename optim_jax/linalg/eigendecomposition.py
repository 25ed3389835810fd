"""Symmetric eigendecomposition, guarded, and inverse roots of eigenvalues.

Shape legend: "..." any batch axes, d size of a matrix.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.linalg.lapack import eigh
from optim_jax.linalg.solver_info import (
    SolverInfo,
    all_finite,
    check_nonnegative,
    check_number,
    check_square,
    finite_or_identity,
    frobenius_norm,
    matmul,
    over_rows,
    perturb,
)


def eigendecomposition(
    a: jax.Array, *, eps: Any = 0.0
) -> tuple[tuple[jax.Array, jax.Array], SolverInfo]:
    """Eigenvalues, ascending, and eigenvectors of A + eps I.

    Args:
      a: symmetric matrices (..., d, d); only rounding may make them unsymmetric.
      eps: added to the diagonal, >= 0: a number, or one per matrix (...).

    Returns:
      `((eigenvalues (..., d), eigenvectors (..., d, d) in columns), info)`; the error
      is the norm of A Q - Q diag(lambda) over that of A. Where A + eps I has
      non-finite entries, the result is that of the identity, without success.

    Raises:
      ValueError: `a` is no stack of square matrices, or `eps` is negative.
    """
    a = check_square("a", a)
    check_nonnegative(eps=eps)
    perturbed, finite = finite_or_identity(perturb(a, eps))
    eigenvalues, eigenvectors = eigh(perturbed)
    residual = (
        matmul(perturbed, eigenvectors) - eigenvectors * eigenvalues[..., None, :]
    )
    norms = frobenius_norm(perturbed)
    error = frobenius_norm(residual) / jnp.where(norms > 0.0, norms, 1.0)
    success = finite & all_finite(eigenvalues, 1) & all_finite(eigenvectors)
    return (eigenvalues, eigenvectors), SolverInfo(
        jnp.ones(finite.shape, jnp.int32), error, success
    )


def inverse_root_eigenvalues(
    eigenvalues: jax.Array,
    exponent: Any,
    *,
    eps: Any = 0.0,
    perturb_before: bool = True,
    pseudo_inverse: bool = False,
    rank_rtol: float | None = 0.0,
    rank_atol: float = 0.0,
) -> jax.Array:
    r"""Eigenvalues :math:`\lambda'^{-e}` of an inverse root.

    * `perturb_before`: the eigenvalues are those of A + eps I. Where the smallest is
      below eps, by rounding, all are shifted so that it is eps.
    * otherwise they are those of A; negative ones are shifted up to 0, then eps is
      added.
    * `pseudo_inverse`: eigenvalues up to max(rank_rtol * largest, rank_atol) count as
      zero and stay zero; eps must be 0.

    Args:
      eigenvalues: (..., d).
      exponent: e >= 0, a number or one per matrix (...).
      eps: >= 0, a number or one per matrix (...).
      perturb_before: whether eps is already in the eigenvalues.
      pseudo_inverse: drop small eigenvalues instead.
      rank_rtol: relative cut-off; None means d times the machine epsilon.
      rank_atol: absolute cut-off.

    Returns:
      Array (..., d), in the dtype of the eigenvalues. A zero that is neither shifted
      nor dropped has an infinite root.

    Raises:
      ValueError: an argument is out of range.
    """
    check_nonnegative(exponent=exponent, eps=eps, rank_atol=rank_atol)
    if rank_rtol is not None:
        check_nonnegative(rank_rtol=rank_rtol)
    if pseudo_inverse:
        check_number("eps", eps, "0 with a pseudo-inverse", lambda v: v == 0.0)
    dtype = eigenvalues.dtype
    exponent = over_rows(jnp.asarray(exponent, dtype))
    eps = over_rows(jnp.asarray(eps, dtype))
    if pseudo_inverse:
        if rank_rtol is None:
            machine = jnp.finfo(eigenvalues.dtype).eps
            rank_rtol = eigenvalues.shape[-1] * float(machine)
        largest = jnp.max(eigenvalues, axis=-1, keepdims=True)
        cutoff = jnp.maximum(rank_rtol * jnp.maximum(largest, 0.0), rank_atol)
        kept = eigenvalues > cutoff
        # The power of a dropped eigenvalue would be infinite or NaN.
        return jnp.where(kept, jnp.where(kept, eigenvalues, 1.0) ** -exponent, 0.0)
    smallest = jnp.min(eigenvalues, axis=-1, keepdims=True)
    if perturb_before:
        shifted = (eigenvalues - smallest) + eps
        return jnp.where(smallest >= eps, eigenvalues, shifted) ** -exponent
    return (eigenvalues - jnp.minimum(smallest, 0.0) + eps) ** -exponent


def off_diagonal_ratio(b: jax.Array) -> jax.Array:
    """Norm of the off-diagonal part over that of the whole, in [0, 1].

    Args:
      b: (..., d, d).

    Returns:
      (...), 0 for zero matrices.
    """
    diagonal = jnp.diagonal(b, axis1=-2, axis2=-1)
    # Squares of floats near the limits of the range must not overflow.
    scale = jnp.max(jnp.abs(b), axis=(-2, -1))
    scale = jnp.where(scale > 0.0, scale, 1.0)
    total = jnp.sum(jnp.square(b / scale[..., None, None]), axis=(-2, -1))
    inner = jnp.sum(jnp.square(diagonal / scale[..., None]), axis=-1)
    outer = jnp.sqrt(jnp.maximum(total - inner, 0.0))
    return outer / jnp.where(total > 0.0, jnp.sqrt(total), 1.0)
