"""Kronecker factors as a matrix function sees them.

Shape legend: S slots, d size of a factor.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optim_jax.linalg import frobenius_norm
from optim_jax.preconditioning.options import Options


def corrected_factors(
    factors: jax.Array, correction: Any, trace_scaling_exponent: float | None, eps: Any
) -> jax.Array:
    """Factors as the solver sees them: bias corrected, and scaled by their trace."""
    factors = factors / correction
    if trace_scaling_exponent is None:
        return factors
    trace = jnp.trace(factors, axis1=-2, axis2=-1)[..., None, None]
    return factors * jnp.maximum(trace, eps) ** -trace_scaling_exponent


def perturbations(norms: jax.Array, eps: Any, relative_epsilon: float) -> jax.Array:
    """Epsilon of each matrix: absolute, or relative to its Frobenius norm."""
    eps = jnp.broadcast_to(jnp.asarray(eps, norms.dtype), norms.shape)
    return jnp.maximum(eps, relative_epsilon * norms) if relative_epsilon else eps


def pad_factors(factors: jax.Array, dim: int) -> jax.Array:
    """Pads (S, d, d) to (S, dim, dim) by a multiple of the identity.

    The multiple, twice the largest absolute row sum, lies above the spectrum: the added
    eigenvalues sort last, and the leading d entries of any matrix function are exact.
    """
    d = factors.shape[-1]
    if d == dim:
        return factors
    bound = jnp.max(jnp.sum(jnp.abs(factors), axis=-1), axis=-1)
    scale = jnp.where(bound > 0.0, 2.0 * bound, 1.0)[:, None]
    padded = jnp.pad(factors, ((0, 0), (0, dim - d), (0, dim - d)))
    diagonal = jnp.where(jnp.arange(dim) >= d, scale, 0.0)
    return padded + jnp.eye(dim, dtype=factors.dtype) * diagonal[:, None, :]


def pad_bases(bases: jax.Array, dim: int) -> jax.Array:
    """Pads orthogonal (S, d, d) to (S, dim, dim) by an identity."""
    d = bases.shape[-1]
    if d == dim:
        return bases
    padded = jnp.pad(bases, ((0, 0), (0, dim - d), (0, dim - d)))
    return padded + jnp.diag((jnp.arange(dim) >= d).astype(bases.dtype))


class RefreshInputs(NamedTuple):
    """Scalars that a refresh needs.

    Attributes:
      correction: bias correction of the factors.
      eps: perturbation of the factors.
    """

    correction: Any
    eps: Any


def prepare(
    options: Options, factors: jax.Array, inputs: RefreshInputs
) -> tuple[jax.Array, jax.Array]:
    """Factors (N, d, d) as the solver wants them, and the perturbation of each."""
    factors = factors.astype(jnp.promote_types(factors.dtype, jnp.float32))
    exponent = getattr(options.preconditioner, "trace_scaling_exponent", None)
    factors = corrected_factors(factors, inputs.correction, exponent, inputs.eps)
    eps = perturbations(frobenius_norm(factors), inputs.eps, options.relative_epsilon)
    return factors, eps
