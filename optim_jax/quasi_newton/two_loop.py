"""The two-loop recursion of L-BFGS, with passes over the parameters for every pair."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optim_jax.quasi_newton.memory import LBFGSMemory, tree_dot


def two_loop(memory: LBFGSMemory, v: Any) -> Any:
    r"""H v by the recursion of Nocedal.

    With :math:`\rho_i = 1 / s_i^\top y_i`, from the newest pair to the oldest
    :math:`a_i = \rho_i s_i^\top q, \; q \leftarrow q - a_i y_i` starting at q = v, then
    :math:`q \leftarrow \gamma q`, and from the oldest pair to the newest
    :math:`q \leftarrow q + (a_i - \rho_i y_i^\top q) s_i`.

    Its 2 m products depend on each other: over sharded leaves they are as many
    reductions in a row, where the compact form needs one.

    Args:
      memory: the pairs.
      v: tree like the parameters.

    Returns:
      A tree like v, in its dtypes.

    References:
      Nocedal, 1980, "Updating quasi-Newton matrices with limited storage"; algorithm
      7.4 of Nocedal, Wright, "Numerical Optimization".
    """
    size, dtype = memory.sy.shape[0], memory.sy.dtype
    curvature = jnp.diagonal(memory.sy)
    rho = jnp.where(curvature == 0, 0, 1 / jnp.where(curvature == 0, 1, curvature))

    def vectors(slot: jax.Array) -> tuple[Any, Any]:
        def read(buffer: jax.Array) -> jax.Array:
            entry = lax.dynamic_index_in_dim(buffer, slot, keepdims=False)
            return entry.astype(dtype)

        return jax.tree.map(read, memory.s), jax.tree.map(read, memory.y)

    def slot_at(j: jax.Array) -> jax.Array:
        return (memory.head + j) % size

    def backward(i: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        q, weights = carry
        slot = slot_at(size - 1 - i)
        s, y = vectors(slot)
        weight = rho[slot] * tree_dot(s, q)
        return _plus(q, -weight, y), weights.at[slot].set(weight)

    def forward(j: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        q, weights = carry
        slot = slot_at(j)
        s, y = vectors(slot)
        weight = weights[slot] - rho[slot] * tree_dot(y, q)
        return _plus(q, weight, s), weights

    q = jax.tree.map(lambda leaf: leaf.astype(dtype), v)
    carry = lax.fori_loop(0, size, backward, (q, jnp.zeros(size, dtype)))
    scaled = jax.tree.map(lambda leaf: memory.gamma * leaf, carry[0])
    q, _ = lax.fori_loop(0, size, forward, (scaled, carry[1]))
    return jax.tree.map(lambda new, old: new.astype(old.dtype), q, v)


def _plus(a: Any, factor: jax.Array, b: Any) -> Any:
    return jax.tree.map(lambda x, y: x + factor * y, a, b)
