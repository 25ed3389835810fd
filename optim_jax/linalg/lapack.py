"""Batched decompositions that cannot deadlock on CPUs.

XLA hands the matrices of a batch to the thread pool that its own programs run on, and
waits for them on a thread of that pool. A few decompositions at once, as a program of
independent ones or several devices of one process have them, then occupy all threads
with waiting, and none is left to work. A single matrix is decomposed on the thread that
asks for it. On CPUs the matrices of a batch therefore come one after the other;
elsewhere the batch stays whole.
"""

import jax
import jax.numpy as jnp

from optim_jax.linalg.batching import one_by_one_on_cpu


def eigh(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues (..., d), ascending, and eigenvectors of symmetric (..., d, d)."""

    def decompose(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        eigenvalues, eigenvectors = jnp.linalg.eigh(a, symmetrize_input=True)
        return eigenvalues, eigenvectors

    return one_by_one_on_cpu(decompose, a)


def svd(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Thin singular value decomposition of (..., m, n)."""

    def decompose(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        left, singular, right = jnp.linalg.svd(a, full_matrices=False)
        return left, singular, right

    return one_by_one_on_cpu(decompose, a)


def singular_values(a: jax.Array) -> jax.Array:
    """Singular values (..., min(m, n)), descending, of (..., m, n), without vectors."""

    def decompose(a: jax.Array) -> jax.Array:
        return jnp.linalg.svd(a, compute_uv=False)

    return one_by_one_on_cpu(decompose, a)


def qr(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Orthogonal and upper triangular factor of square (..., d, d)."""

    def decompose(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        orthogonal, triangular = jnp.linalg.qr(a)
        return orthogonal, triangular

    return one_by_one_on_cpu(decompose, a)
