"""Inverse roots of symmetric positive semi-definite matrices."""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.linalg.coupled_newton import coupled_newton_inverse_root
from optim_jax.linalg.eigendecomposition import (
    eigendecomposition,
    inverse_root_eigenvalues,
)
from optim_jax.linalg.higher_order import coupled_higher_order_inverse_root
from optim_jax.linalg.solver_info import (
    SolverInfo,
    all_finite,
    check_root,
    matmul,
    transpose,
)


def eigh_inverse_root(
    a: jax.Array,
    p: Any,
    q: Any = 1,
    *,
    eps: Any = 0.0,
    perturb_before: bool = True,
    pseudo_inverse: bool = False,
    rank_rtol: float | None = 0.0,
    rank_atol: float = 0.0,
) -> tuple[jax.Array, SolverInfo]:
    r"""Inverse root :math:`A^{-q/p}` by eigendecomposition.

    Args:
      a: symmetric matrices (..., d, d).
      p: order of the root, a number >= 0.001; p and q are rounded to fractions with
        denominators up to 1000.
      q: power, a number >= 0.001.
      eps: perturbation >= 0, a number or one per matrix (...).
      perturb_before: add eps before the decomposition; otherwise to the eigenvalues.
      pseudo_inverse: drop small eigenvalues instead; eps must be 0.
      rank_rtol: relative cut-off of the pseudo-inverse; None means d times the machine
        epsilon.
      rank_atol: absolute cut-off of the pseudo-inverse.

    Returns:
      `(root (..., d, d), info)`; the error is that of `eigendecomposition`.

    Raises:
      ValueError: an argument is out of range.
    """
    exponent = float(check_root(p, q))
    before = 0.0 if pseudo_inverse or not perturb_before else eps
    (eigenvalues, eigenvectors), info = eigendecomposition(a, eps=before)
    roots = inverse_root_eigenvalues(
        eigenvalues,
        exponent,
        eps=eps,
        perturb_before=perturb_before,
        pseudo_inverse=pseudo_inverse,
        rank_rtol=rank_rtol,
        rank_atol=rank_atol,
    )
    root = matmul(eigenvectors * roots[..., None, :], transpose(eigenvectors))
    # The power of an infinite eps is a finite 0.
    success = info.success & jnp.isfinite(eps) & all_finite(root)
    return root, info._replace(success=success)


def matrix_inverse_root(
    a: jax.Array, p: Any, q: Any = 1, method: str = "eigh", **options: Any
) -> tuple[jax.Array, SolverInfo]:
    r"""Inverse root :math:`A^{-q/p}` by a method of choice.

    Args:
      a: symmetric matrices (..., d, d).
      p: order of the root, a number >= 0.001; p and q are rounded to fractions with
        denominators up to 1000.
      q: power, a number >= 0.001; q / p is 1 / integer for Newton's iteration.
      method: `"eigh"`, `"coupled_newton"` or `"coupled_higher_order"`.
      **options: keywords of that method's own function.

    Returns:
      `(root (..., d, d), info)`.

    Raises:
      ValueError: the method is unknown, or an argument out of range.
    """
    if method == "coupled_newton":
        exponent = check_root(p, q)
        if exponent.numerator != 1:
            raise ValueError(
                f"coupled_newton computes roots 1/p, got q/p = {exponent}; use "
                "coupled_higher_order or eigh"
            )
        return coupled_newton_inverse_root(a, exponent.denominator, **options)
    if method == "coupled_higher_order":
        return coupled_higher_order_inverse_root(a, p, q, **options)
    if method == "eigh":
        return eigh_inverse_root(a, p, q, **options)
    raise ValueError(
        f"method must be one of coupled_higher_order, coupled_newton, eigh, got "
        f"{method!r}"
    )
