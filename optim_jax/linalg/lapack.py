"""Batched decompositions that cannot deadlock on CPUs.

XLA hands the matrices of a batch to the thread pool that its own programs run on, and
waits for them on a thread of that pool. A few decompositions at once, as a program of
independent ones or several devices of one process have them, then occupy all threads
with waiting, and none is left to work. A single matrix is decomposed on the thread that
asks for it. On CPUs the matrices of a batch therefore come one after the other;
elsewhere the batch stays whole.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def eigh(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues (..., d), ascending, and eigenvectors of symmetric (..., d, d)."""

    def decompose(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        eigenvalues, eigenvectors = jnp.linalg.eigh(a, symmetrize_input=True)
        return eigenvalues, eigenvectors

    return _one_by_one_on_cpu(decompose, a)


def svd(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Thin singular value decomposition of (..., m, n)."""

    def decompose(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        left, singular, right = jnp.linalg.svd(a, full_matrices=False)
        return left, singular, right

    return _one_by_one_on_cpu(decompose, a)


def qr(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Orthogonal and upper triangular factor of square (..., d, d)."""

    def decompose(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        orthogonal, triangular = jnp.linalg.qr(a)
        return orthogonal, triangular

    return _one_by_one_on_cpu(decompose, a)


def _one_by_one_on_cpu(function: Callable[[jax.Array], Any], a: jax.Array) -> Any:
    batch = a.shape[:-2]
    if a.size == 0 or a.size == a.shape[-2] * a.shape[-1]:
        return function(a)

    def one_by_one(a: jax.Array) -> Any:
        results = jax.lax.map(function, a.reshape(-1, *a.shape[-2:]))
        return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), results)

    return jax.lax.platform_dependent(a, cpu=one_by_one, default=function)
