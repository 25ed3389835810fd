"""The steepest-descent direction of a matrix in the spectral norm, exact or iterated.

Shape legend: k matrices of a stack, m smaller side, n larger side.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.linalg import frobenius_norm, polar_factor
from optim_jax.linalg.batching import one_by_one_on_cpu
from optim_jax.linalg.newton_schulz import convergent_newton_schulz, newton_schulz
from optim_jax.steepest_descent.first_moment import scalar_like
from optim_jax.steepest_descent.matrix_stacks import StackFunction

Method = Literal["svd", "polar", "newton_schulz"]
METHODS = ("svd", "polar", "newton_schulz")
Triple = tuple[float, float, float]
Coefficients = Triple | Sequence[Triple]


def matsign(
    method: Method, steps: Sequence[Triple], eps: Any, ns_dtype: Any
) -> StackFunction:
    r"""Makes the function that takes each matrix to its direction.

    * `"svd"`: :math:`U_r V_r^T` of the singular vectors whose singular values exceed
      max(m, n) machine epsilons times the largest.
    * `"polar"`: the same up to 1e-3, for singular values within a factor of 1e3.
    * `"newton_schulz"`: the odd quintics of `steps`, from the matrix over the sum of
      its Frobenius norm and `eps`.

    Zero comes out as zero.
    """

    def iterated(x: jax.Array) -> jax.Array:
        norm = frobenius_norm(x) + scalar_like(eps, x)
        norm = jnp.where(norm > 0.0, norm, 1.0)[..., None, None]
        return newton_schulz(x / norm, steps, dtype=ns_dtype)

    def converged(x: jax.Array) -> jax.Array:
        return convergent_newton_schulz(x)[0]

    if method == "svd":
        return polar_factor
    iteration = iterated if method == "newton_schulz" else converged
    return lambda stack: one_by_one_on_cpu(iteration, stack)


def read_steps(ns_coeffs: Any, ns_steps: Any) -> tuple[Triple, ...]:
    """The coefficients (a, b, c) of each step.

    Args:
      ns_coeffs: one triple, or one per step.
      ns_steps: number of steps; read with one triple only.

    Raises:
      ValueError: these are no finite numbers of the host, or no count.
    """
    try:
        table = np.asarray(ns_coeffs, np.float64)
    except (TypeError, ValueError):
        table = np.empty(0)
    per_step = table.ndim == 2
    fits = table.size and table.shape[table.ndim - 1 :] == (3,) and table.ndim <= 2
    if not fits or not np.isfinite(table).all():
        raise ValueError(
            "ns_coeffs must be a triple (a, b, c) or a sequence of triples of finite "
            f"numbers, known when the optimizer is built, got {ns_coeffs!r}"
        )
    rows: list[list[float]] = np.atleast_2d(table).tolist()
    triples = tuple((a, b, c) for a, b, c in rows)
    return triples if per_step else triples * _read_count(ns_steps)


def _read_count(ns_steps: Any) -> int:
    known = isinstance(ns_steps, (int, np.integer)) and not isinstance(ns_steps, bool)
    if not known or ns_steps < 1:
        raise ValueError(
            "ns_steps must be an integer >= 1, known when the optimizer is built (name "
            "it among the static_args of optax.inject_hyperparams), got "
            f"{ns_steps!r}"
        )
    return int(ns_steps)


def read_dtype(ns_dtype: Any) -> Any:
    """Checks the dtype of the products; None stays None.

    Raises:
      ValueError: it is not a real floating-point one.
    """
    if ns_dtype is None:
        return None
    try:
        dtype = jnp.dtype(ns_dtype)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"ns_dtype must be a real floating-point dtype or None, got {ns_dtype!r}"
        )
    return dtype
