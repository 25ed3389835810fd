"""Rational inverse roots by a coupled iteration of higher order.

Shape legend: "..." any batch axes, d size of a matrix.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.linalg.coupled_newton import matrix_power
from optim_jax.linalg.solver_info import (
    SolverInfo,
    all_finite,
    check_count,
    check_nonnegative,
    check_number,
    check_root,
    check_square,
    finite_or_identity,
    identity_like,
    initial_count,
    matmul,
    max_abs,
    over_matrices,
    perturb,
)

# An iterate whose error grew by this has passed its best.
_DIVERGENCE = 1.2
# Below this an error that no longer moves is at rounding.
_STAGNATION = 1e-3
_MAX_TRUE_ERROR = 0.1


def coupled_higher_order_inverse_root(
    a: jax.Array,
    p: Any,
    q: Any = 1,
    *,
    rel_eps: Any,
    abs_eps: Any,
    order: int = 3,
    max_iterations: int = 100,
    tolerance: float = 1e-8,
) -> tuple[jax.Array, SolverInfo]:
    r"""Inverse root :math:`(A + \epsilon I)^{-q/p}` by a coupled iteration.

    After one Newton step, with :math:`R = I - M`,

    .. math::

      T = \sum_{i < \mathrm{order}} b_i R^i, \quad
      b_i = \prod_{j=1}^{i} \frac{1 + (j - 1) p}{j p}, \quad
      X \leftarrow X T, \quad M \leftarrow T^p M,

    and X is raised to the power q at the end. The ridge is the larger of `abs_eps` and
    `rel_eps` times the largest absolute row sum.

    Args:
      a: symmetric positive semi-definite matrices (..., d, d).
      p: order of the root, a number >= 0.001; p and q are rounded to fractions with
        denominators up to 1000.
      q: power, a number >= 0.001.
      rel_eps: relative ridge >= 0, a number or one per matrix (...).
      abs_eps: absolute ridge >= 0, a number or one per matrix (...).
      order: order of the iteration, >= 2.
      max_iterations: bound of the iterations, the Newton step included.
      tolerance: largest entry of abs(M - I) at which a matrix is done, in [0, 1].

    Returns:
      `(root (..., d, d), info)`; the error is the largest entry of
      abs((A + eps I) X^p - I) before X is raised to q. Above 0.1 it is a failure. The
      matrices of a batch do not influence each other.

    Raises:
      ValueError: an argument is out of range.
    """
    a = check_square("a", a)
    exponent = check_root(p, q)
    p, q = exponent.denominator, exponent.numerator
    check_count("order", order, 2)
    check_count("max_iterations", max_iterations)
    check_nonnegative(rel_eps=rel_eps, abs_eps=abs_eps)
    check_number("tolerance", tolerance, "in [0, 1]", lambda v: 0.0 <= v <= 1.0)
    row_sums = jnp.max(jnp.sum(jnp.abs(a), axis=-1), axis=-1)
    safe, finite = finite_or_identity(
        perturb(a, jnp.maximum(rel_eps * row_sums, abs_eps))
    )
    identity = identity_like(safe)
    trace = jnp.trace(safe, axis1=-2, axis2=-1)
    z = 1.0 / jnp.where(trace > 0.0, trace, 1.0)
    root = over_matrices(z ** (1.0 / p)) * identity
    coupled = over_matrices(z) * safe
    newton = ((p + 1) * identity - coupled) / p
    root, coupled = matmul(root, newton), matmul(matrix_power(newton, p), coupled)
    coefficients = [
        math.prod((1 + (j - 1) * p) / (j * p) for j in range(1, i + 1))
        for i in range(order)
    ]

    def condition(carry: Any) -> jax.Array:
        return jnp.any(carry[-1])

    def body(carry: Any) -> Any:
        root, coupled, error, count, active = carry
        mask = active[..., None, None]
        remainder = identity - coupled
        factor = coefficients[-1] * identity
        for coefficient in reversed(coefficients[:-1]):
            factor = matmul(factor, remainder) + coefficient * identity
        new_root = jnp.where(mask, matmul(root, factor), root)
        new_coupled = matmul(matrix_power(factor, p), coupled)
        new_coupled = jnp.where(mask, new_coupled, coupled)
        new_error = max_abs(new_coupled - identity)
        count = count + active.astype(jnp.int32)
        stopped = (new_error > _DIVERGENCE * error) | (
            (new_error == error) & (error < _STAGNATION)
        )
        goes_on = (new_error > tolerance) & (count < max_iterations) & ~stopped
        return (
            new_root,
            new_coupled,
            jnp.where(active, new_error, error),
            count,
            active & goes_on,
        )

    error = max_abs(coupled - identity)
    count = initial_count(finite, 1)
    active = (error > tolerance) & (count < max_iterations)
    carry = (root, coupled, error, count, active)
    root, _, _, count, _ = jax.lax.while_loop(condition, body, carry)
    error = max_abs(matmul(safe, matrix_power(root, p)) - identity)
    root = matrix_power(root, q)
    success = finite & all_finite(root) & (error <= _MAX_TRUE_ERROR)
    return root, SolverInfo(count, error, success)
