"""Solving stacks of factors for roots and eigenbases, on each device its share.

Shape legend: N matrices of a refresh stack, D size they are padded to.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optim_jax.linalg import (
    SolverInfo,
    coupled_higher_order_inverse_root,
    coupled_newton_inverse_root,
    eigendecomposition,
    inverse_root_eigenvalues,
    off_diagonal_ratio,
    qr_eigendecomposition_with_order,
)
from optim_jax.preconditioning.matrix_functions import (
    QR,
    CoupledHigherOrder,
    CoupledNewton,
    Eigh,
)
from optim_jax.preconditioning.options import Options
from optim_jax.preconditioning.preconditioners import (
    EigenvalueCorrected,
    RootInverse,
)
from optim_jax.preconditioning.slots import LOOP_MIN_DIM

# A direct solver leaves a residual near rounding. Above this its result is wrong, not
# merely inexact, and the previous one is kept.
MAX_RESIDUAL = 0.1


class Problem(NamedTuple):
    """A stack of factors to solve.

    Attributes:
      factors: (N, D, D), bias corrected, scaled and padded.
      eps: (N,), perturbation of each.
      exponents: (N,), inverse exponent of each.
      bases: eigenvectors (N, D, D) of the last refresh; `()` where none is needed.
    """

    factors: jax.Array
    eps: jax.Array
    exponents: jax.Array
    bases: Any


class Solution(NamedTuple):
    """What a solver found.

    Attributes:
      inverses: inverse roots (N, D, D), or `()`.
      eigenvectors: bases (N, D, D), or `()`.
      eigenvalues: (N, D), or `()`.
      permutation: (N, D), how the columns of a kept basis were sorted, or `()`.
      success: (N,) bool.
      residual: (N,), of the solver.
      iterations: (N,) int32.
      off_diagonal: (N,), relative off-diagonal norm left by QR iterations, else 0.
    """

    inverses: Any
    eigenvectors: Any
    eigenvalues: Any
    permutation: Any
    success: jax.Array
    residual: jax.Array
    iterations: jax.Array
    off_diagonal: jax.Array


def needs_bases(options: Options) -> bool:
    """Whether the solver starts from the eigenbasis of the last refresh."""
    method = getattr(options.preconditioner, "method", None)
    return isinstance(method, QR) or (
        isinstance(method, Eigh) and method.tolerance > 0.0
    )


def solve(options: Options, problem: Problem, exponent: Any) -> Solution:
    """Solves a stack; runs on the local matrices of one device.

    Accelerators solve the batch at once. A CPU takes large matrices one by one: it
    needs no memory for the others, and no iteration waits for the slowest.

    Args:
      options: with the preconditioner and its method.
      problem: the stack.
      exponent: the exponent of all of them as a `Fraction`, which matrix iterations
        need; None where they differ.
    """

    def batched(problem: Problem) -> Solution:
        return _solve_batch(options, problem, exponent)

    def one_by_one(problem: Problem) -> Solution:
        def one(alone: Problem) -> Solution:
            batch = jax.tree.map(lambda leaf: leaf[None], alone)
            return jax.tree.map(lambda leaf: leaf[0], batched(batch))

        return jax.lax.map(one, problem)

    number, dim = problem.factors.shape[:2]
    if number <= 1 or dim < LOOP_MIN_DIM:
        return batched(problem)
    return jax.lax.platform_dependent(problem, cpu=one_by_one, default=batched)


def _solve_batch(options: Options, problem: Problem, exponent: Any) -> Solution:
    preconditioner = options.preconditioner
    method = getattr(preconditioner, "method", None)
    zeros = jnp.zeros(problem.eps.shape, problem.eps.dtype)
    if isinstance(method, (CoupledNewton, CoupledHigherOrder)):
        inverses, info = _iterate_root(method, problem, exponent)
        return _solution(options, info, zeros, inverses=inverses)
    if isinstance(method, QR):
        eigenvalues, eigenvectors, order, info = qr_eigendecomposition_with_order(
            problem.factors,
            problem.bases,
            eps=problem.eps if method.perturb_before else 0.0,
            max_iterations=method.max_iterations,
            tolerance=method.tolerance,
        )
        solution = _solution(
            options,
            info._replace(error=zeros),
            info.error,
            eigenvectors=eigenvectors,
            eigenvalues=eigenvalues,
        )
        return solution._replace(permutation=order)
    assert isinstance(method, Eigh)
    eigenvalues, eigenvectors, info = _eigh(method, problem)
    info = info._replace(success=info.success & (info.error <= MAX_RESIDUAL))
    if not isinstance(preconditioner, RootInverse):
        return _solution(
            options, info, zeros, eigenvectors=eigenvectors, eigenvalues=eigenvalues
        )
    roots = inverse_root_eigenvalues(
        eigenvalues,
        problem.exponents,
        eps=problem.eps,
        perturb_before=method.perturb_before,
        pseudo_inverse=method.pseudo_inverse,
        rank_rtol=method.rank_rtol,
        rank_atol=method.rank_atol,
    )
    inverses = jnp.matmul(
        eigenvectors * roots[:, None, :],
        jnp.swapaxes(eigenvectors, -1, -2),
        precision=jax.lax.Precision.HIGHEST,
    )
    return _solution(options, info, zeros, inverses=inverses)


def _iterate_root(
    method: CoupledNewton | CoupledHigherOrder, problem: Problem, exponent: Any
) -> tuple[jax.Array, SolverInfo]:
    if isinstance(method, CoupledNewton):
        return coupled_newton_inverse_root(
            problem.factors,
            exponent.denominator,
            eps=problem.eps,
            max_iterations=method.max_iterations,
            tolerance=method.tolerance,
            scaling=method.scaling,
        )
    return coupled_higher_order_inverse_root(
        problem.factors,
        exponent.denominator,
        exponent.numerator,
        rel_eps=method.rel_eps,
        abs_eps=method.abs_eps,
        order=method.order,
        max_iterations=method.max_iterations,
        tolerance=method.tolerance,
    )


def _eigh(method: Eigh, problem: Problem) -> tuple[jax.Array, jax.Array, SolverInfo]:
    """Eigendecomposition; bases within the tolerance are kept, all or none solved."""
    eps = problem.eps if method.perturb_before else 0.0

    def decompose() -> tuple[jax.Array, jax.Array, SolverInfo]:
        (eigenvalues, eigenvectors), info = eigendecomposition(problem.factors, eps=eps)
        return eigenvalues, eigenvectors, info

    if method.tolerance == 0.0:
        return decompose()
    highest = jax.lax.Precision.HIGHEST
    bases = problem.bases
    identity = jnp.eye(bases.shape[-1], dtype=bases.dtype)
    perturbed = problem.factors + jnp.reshape(eps, (-1, 1, 1)) * identity
    rotated = jnp.matmul(perturbed, bases, precision=highest)
    rotated = jnp.matmul(jnp.swapaxes(bases, -1, -2), rotated, precision=highest)
    ratio = off_diagonal_ratio(rotated)
    kept = ratio <= method.tolerance
    diagonal = jnp.diagonal(rotated, axis1=-2, axis2=-1)
    info = SolverInfo(jnp.zeros(ratio.shape, jnp.int32), ratio, kept)
    # A batched conditional would run both sides: skip only if all bases are kept.
    eigenvalues, eigenvectors, solved = jax.lax.cond(
        jnp.all(kept), lambda: (diagonal, bases, info), decompose
    )
    return (
        jnp.where(kept[:, None], diagonal, eigenvalues),
        jnp.where(kept[:, None, None], bases, eigenvectors),
        SolverInfo(
            jnp.where(kept, 0, solved.iterations),
            jnp.where(kept, 0.0, solved.error),
            kept | solved.success,
        ),
    )


def _solution(
    options: Options,
    info: SolverInfo,
    off_diagonal: jax.Array,
    *,
    inverses: Any = (),
    eigenvectors: Any = (),
    eigenvalues: Any = (),
) -> Solution:
    """Casts to the storage dtype and checks both outputs once more after the cast."""
    success = info.success
    results = {
        "inverses": inverses,
        "eigenvectors": eigenvectors,
        "eigenvalues": eigenvalues,
    }
    for name, result in results.items():
        if not isinstance(result, tuple):
            stored = result.astype(options.inverse_dtype)
            finite = jnp.isfinite(stored)
            success = success & jnp.all(finite, axis=tuple(range(1, stored.ndim)))
            results[name] = stored
    return Solution(
        **results,
        permutation=(),
        success=success,
        residual=info.error,
        iterations=info.iterations,
        off_diagonal=off_diagonal,
    )


def permutes(options: Options) -> bool:
    """Whether the second moment is sorted along with its basis."""
    kind = options.preconditioner
    return isinstance(kind, EigenvalueCorrected) and kind.permute_second_moment


def permute_slots(moments: jax.Array, order: jax.Array, mode: int) -> jax.Array:
    """Sorts one mode of second moments (N, *block) by an order (N, d)."""
    shape = [1] * moments.ndim
    shape[0], shape[1 + mode] = order.shape
    return jnp.take_along_axis(moments, order.reshape(shape), axis=1 + mode)


def choose(chosen: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """Selects whole slots (N, ...) by a bool (N,)."""
    return jnp.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)
