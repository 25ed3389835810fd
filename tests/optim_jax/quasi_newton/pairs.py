"""Pairs of a strictly convex loss over a small tree, and H written out densely."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from optim_jax.quasi_newton.memory import init_memory, store_pair

SHAPES = {"kernel": (3, 2), "layer": {"bias": (5,), "scale": ()}}
DIMENSION = 12


def make_tree(vector, dtype=None):
    """A vector of 12 entries as a tree of a matrix, a vector and a scalar."""
    vector = jnp.asarray(vector, dtype)
    return {
        "kernel": vector[:6].reshape(3, 2),
        "layer": {"bias": vector[6:11], "scale": vector[11]},
    }


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def draw_vector(seed):
    return np.random.default_rng([seed, 1]).normal(size=DIMENSION)


def draw_pairs(count, seed=0):
    """Rows s and y = A s; the matrix A changes, with eigenvalues from 1/2 to 100."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(DIMENSION, DIMENSION)))[0]
    s = rng.normal(size=(count, DIMENSION)) * rng.uniform(0.1, 3.0, size=(count, 1))
    # One matrix for all pairs would make the products of s and y symmetric.
    eigenvalues = np.geomspace(1.0, 50.0, DIMENSION)
    eigenvalues = eigenvalues * rng.uniform(0.5, 2.0, size=(count, DIMENSION))
    return s, (s @ basis * eigenvalues) @ basis.T


def make_memory(s, y, memory_size=5, dtype=None, **options):
    """A memory into which all pairs have been pushed, the first row first."""
    template = make_tree(np.zeros(DIMENSION), dtype)
    memory = init_memory(template, memory_size, **options)
    for step, change in zip(s, y, strict=True):
        pair = make_tree(step, dtype), make_tree(change, dtype)
        memory = jitted_store(memory, *pair)
    return memory


jitted_store = jax.jit(store_pair)


def dense_inverse(s, y, memory_size=5):
    """H by the recursion over the last pairs, from gamma of the newest one."""
    s, y = s[-memory_size:], y[-memory_size:]
    eye = np.eye(DIMENSION)
    if not len(s):
        return eye
    inverse = eye * (s[-1] @ y[-1]) / (y[-1] @ y[-1])
    for step, change in zip(s, y, strict=True):
        rho = 1.0 / (step @ change)
        factor = eye - rho * np.outer(step, change)
        inverse = factor @ inverse @ factor.T + rho * np.outer(step, step)
    return inverse


def columns(apply, memory, **options):
    """The matrix of a product with a memory, e.g. `apply_hessian`."""
    return np.asarray(_columns(apply, tuple(options.items()), memory))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _columns(apply, options, memory):
    dtype = memory.gamma.dtype

    def column(row):
        return ravel_pytree(apply(memory, make_tree(row), **dict(options)))[0]

    # Not vmap, which turns a conditional into both of its branches.
    return jax.lax.map(column, jnp.eye(DIMENSION, dtype=dtype)).T
