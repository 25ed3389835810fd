"""The Newton-Schulz iteration for polar factors: matrix products only.

Shape legend: "..." any batch axes, m rows, n columns, m <= n.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.linalg.polar_schedule import CONDITION, Triple, polar_schedule
from optim_jax.linalg.solver_info import frobenius_norm, over_matrices, transpose

# From this n / m on, two steps on the Gram matrix cost less than two on the matrix.
_WIDE = 1.5
# From this m on, half a Gram matrix costs less than a whole one.
_LARGE = 128


def newton_schulz(
    x: jax.Array, steps: Sequence[Triple], *, dtype: Any = None
) -> jax.Array:
    r"""Applies odd quintics to the singular values of each matrix.

    Each step is :math:`X \leftarrow a X + (b G + c G^2) X` with :math:`G = X X^T`: two
    products of 2 m m n FLOPs, a quarter less for a large symmetric one, and one of
    2 m^3.

    Steps on wide matrices are taken two or three at a time: X changes by a polynomial
    in G, and G by its square, so that only the first and the last of the products have
    n columns. The rounding of the Gram matrix is relative to the largest singular
    value, and every step on it amplifies that of small ones: after three steps in
    single precision, two in less, it is formed anew. The result then differs from that
    step by step by a few roundings.

    Args:
      x: matrices (..., m, n) with m <= n, of spectral norm at most about one.
      steps: (a, b, c) of each step.
      dtype: of the factors of the products, e.g. bfloat16; sums are in that of x. None
        takes that of x.

    Returns:
      Matrices (..., m, n) in the dtype of x.
    """
    dtype = x.dtype if dtype is None else jnp.dtype(dtype)
    together = 1
    if x.shape[-1] >= _WIDE * x.shape[-2]:
        together = 3 if jnp.finfo(dtype).bits >= 32 else 2
    for start in range(0, len(steps), together):
        scale, polynomial = _composed(x, steps[start : start + together], dtype)
        x = scale * x + _product(polynomial, x, dtype)
    return x


def convergent_newton_schulz(x: jax.Array) -> tuple[jax.Array, int]:
    """Polar factors of matrices with singular values within a factor of 1e3.

    The singular values are first divided by a bound of the largest, the eighth root of
    the sum of their eighth powers. It costs nothing, since the first step needs the
    square of the Gram matrix anyway, and is tighter than the Frobenius norm: at most
    the eighth root of m times the largest.

    Args:
      x: matrices (..., m, n) with m <= n.

    Returns:
      `(polar factors (..., m, n), number of steps)`. Singular values below a thousandth
      of the largest come out below one, zeros as zeros.
    """
    norm = frobenius_norm(x)
    x = x / over_matrices(jnp.where(norm > 0.0, norm, 1.0))
    gram = _gram(x, x.dtype)
    squared = _product(gram, gram, x.dtype)
    bound = jnp.sqrt(jnp.sqrt(frobenius_norm(squared)))
    bound = over_matrices(jnp.where(bound > 0.0, bound, 1.0))
    steps = polar_schedule(1.0 / (CONDITION * x.shape[-2] ** 0.125))
    first, second, third = steps[0]
    polynomial = (second / bound**3) * gram + (third / bound**5) * squared
    x = (first / bound) * x + _product(polynomial, x, x.dtype)
    return newton_schulz(x, steps[1:]), len(steps)


def _composed(
    x: jax.Array, steps: Sequence[Triple], dtype: Any
) -> tuple[float, jax.Array]:
    """Scale s and polynomial P of X such that the steps take X to s X + P X.

    A step multiplies X by a + B, where B = b G + c G^2. All of these commute.
    """
    gram = _gram(x, dtype)
    scale, polynomial = 1.0, None
    for index, (first, second, third) in enumerate(steps):
        factor = second * gram + third * _product(gram, gram, dtype)
        if polynomial is None:
            scale, polynomial = first, factor
        else:
            polynomial = (
                first * polynomial
                + scale * factor
                + _product(factor, polynomial, dtype)
            )
            scale *= first
        if index < len(steps) - 1:
            half = first * gram + _product(factor, gram, dtype)
            gram = first * half + _product(factor, half, dtype)
    assert polynomial is not None
    return scale, polynomial


def _gram(x: jax.Array, dtype: Any) -> jax.Array:
    """X X^T; of a large one, the lower left block is a copy of the upper right one."""
    m = x.shape[-2]
    if m < _LARGE:
        return _product(x, transpose(x), dtype)
    upper, lower = x[..., : m // 2, :], x[..., m // 2 :, :]
    upper_rows = _product(upper, transpose(x), dtype)
    corner = _product(lower, transpose(lower), dtype)
    below = transpose(upper_rows[..., m // 2 :])
    return jnp.concatenate(
        [upper_rows, jnp.concatenate([below, corner], axis=-1)], axis=-2
    )


def _product(a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
    """Product of matrices rounded to a dtype, summed up and returned in that of `a`.

    On CPUs, products of half-precision matrices are fast only if asked for in single
    precision.
    """
    return jnp.matmul(
        a.astype(dtype),
        b.astype(dtype),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=a.dtype,
    )
