r"""L-BFGS in the space of the stored vectors: every result is a combination of them.

The inverse Hessian H applied to a vector v is :math:`\gamma v + S^\top c_s + Y^\top
c_y` with coefficients that depend on v only through its products with the rows of S and
Y. So do the products of Hv itself, and everything that is made of them: applications of
H in a row and norms of results cost no pass over the parameters.

With the pairs in chronological order, R the upper triangle of :math:`S Y^\top` with its
diagonal D, :math:`p = S v` and :math:`q = Y v`,

.. math::

  t = R^{-1} p, \quad
  c_s = R^{-\top} \left( (D + \gamma Y Y^\top) t - \gamma q \right), \quad
  c_y = -\gamma t,

which is the compact representation of Byrd, Nocedal, Schnabel, 1994, "Representations
of quasi-Newton matrices and their use in limited memory methods", equation (3.1),
multiplied out from the right. Arrays stay in slot order on the outside.

Shape legend: m = memory size.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optim_jax.quasi_newton.memory import LBFGSMemory, Products, stored_slots


class Combination(NamedTuple):
    """The vector gamma v + sum_i s[i] s_i + sum_i y[i] y_i, for some vector v.

    Attributes:
      gamma: (*batch,) coefficient of v.
      s: (*batch, m) coefficients of the steps, in slot order.
      y: (*batch, m) coefficients of the gradient differences.
    """

    gamma: jax.Array
    s: jax.Array
    y: jax.Array


def inverse_hessian_combination(memory: LBFGSMemory, products: Products) -> Combination:
    """H v, from the products of v. Of an empty memory it is v.

    Args:
      memory: the pairs.
      products: of v, without batch axes (use `jax.vmap` for those).

    Returns:
      The coefficients, zero for empty slots.
    """
    gamma, stored = memory.gamma, stored_slots(memory)
    factor = _triangular_factor(memory)
    shift = memory.head
    p = jnp.where(stored, products.s, 0)
    t = _to_slots(_solve(factor, _from_slots(p, shift)), shift)
    middle = gamma * memory.yy + jnp.where(_on_diagonal(memory.sy), memory.sy, 0)
    right = _times(middle, t) - gamma * jnp.where(stored, products.y, 0)
    s = _to_slots(_solve(factor, _from_slots(right, shift), transpose=True), shift)
    return Combination(gamma, s, -gamma * t)


def image_products(
    memory: LBFGSMemory, combination: Combination, products: Products
) -> Products:
    """The products of a combination of v, from those of v.

    Args:
      memory: the pairs.
      combination: coefficients of the vector, e.g. of H v.
      products: of v.
    """
    gamma, s, y = combination
    p, q, square = products
    new_p = gamma * p + _times(memory.ss, s) + _times(memory.sy, y)
    new_q = gamma * q + _times(memory.sy.T, s) + _times(memory.yy, y)
    inner = gamma * square + jnp.sum(s * p + y * q)
    return Products(new_p, new_q, gamma * inner + jnp.sum(s * new_p + y * new_q))


def compose(outer: Combination, inner: Combination) -> Combination:
    """The combination of v that is `outer` of the vector that is `inner` of v."""
    gamma = jnp.expand_dims(outer.gamma, -1)
    return Combination(
        gamma=outer.gamma * inner.gamma,
        s=outer.s + gamma * inner.s,
        y=outer.y + gamma * inner.y,
    )


def quadratic_form(combination: Combination, products: Products) -> jax.Array:
    """Inner product of v with a combination of v; with H v it is v'Hv."""
    gamma, s, y = combination
    return gamma * products.square + jnp.sum(s * products.s + y * products.y, -1)


def combine(memory: LBFGSMemory, combination: Combination, v: Any) -> Any:
    """Writes a combination out: one pass over the leaves.

    Args:
      memory: the pairs.
      combination: the coefficients, without batch axes.
      v: tree like the parameters.

    Returns:
      A tree like v, in its dtypes.
    """
    gamma, coefficients_s, coefficients_y = combination
    dtype = memory.sy.dtype

    def write(s: jax.Array, y: jax.Array, leaf: jax.Array) -> jax.Array:
        result = gamma * leaf.astype(dtype)
        result += _mix(coefficients_s, s.astype(dtype))
        result += _mix(coefficients_y, y.astype(dtype))
        return result.astype(leaf.dtype)

    return jax.tree.map(write, memory.s, memory.y, v)


def is_reliable(memory: LBFGSMemory, combination: Combination) -> jax.Array:
    r"""Whether coefficients of H v may be trusted, or the two-loop recursion is due.

    They may not if one is not finite, or if R is near to singular: if some
    :math:`s_i^\top y_i / \|y_i\|` is below :math:`10^{-6}` times the largest
    :math:`|s_i^\top y_j| / \|y_j\|` of a newer pair j. This is the limit in float32; in
    float64 it is as many digits above the rounding error.
    """
    lengths = _from_slots(jnp.sqrt(diagonal(memory.yy)), memory.head)
    factor = jnp.abs(_triangular_factor(memory)) / jnp.where(lengths > 0, lengths, 1)
    scaled = diagonal(factor) / jnp.max(factor, axis=1)
    eps = float(jnp.finfo(memory.sy.dtype).eps)
    smallest = 1e-6 * eps / float(jnp.finfo(jnp.float32).eps)
    finite = jnp.isfinite(jnp.sum(combination.s) + jnp.sum(combination.y))
    return finite & jnp.all(scaled >= smallest)


def diagonal(gram: jax.Array) -> jax.Array:
    """The diagonal, as a sum that fuses where a gather would not."""
    return jnp.sum(jnp.where(_on_diagonal(gram), gram, 0), axis=-1)


def _on_diagonal(gram: jax.Array) -> jax.Array:
    slot = jnp.arange(gram.shape[0])
    return slot[:, None] == slot[None, :]


def _triangular_factor(memory: LBFGSMemory) -> jax.Array:
    """R in chronological order; empty slots come first, as rows of the identity."""
    size = memory.sy.shape[0]
    ordered = _from_slots(_from_slots(memory.sy, memory.head).T, memory.head).T
    row, column = jnp.arange(size)[:, None], jnp.arange(size)[None, :]
    empty = (row == column) & (ordered == 0)
    return jnp.where(row <= column, ordered + empty, 0)


def _solve(factor: jax.Array, b: jax.Array, transpose: bool = False) -> jax.Array:
    """Solves R x = b or R' x = b."""
    return lax.linalg.triangular_solve(
        factor, b[:, None], left_side=True, lower=False, transpose_a=transpose
    )[:, 0]


def _from_slots(x: jax.Array, head: jax.Array) -> jax.Array:
    """Reorders axis 0 from slots to time: the slot written next holds the oldest."""
    size = x.shape[0]
    return lax.dynamic_slice_in_dim(jnp.concatenate([x, x]), head, size)


def _to_slots(x: jax.Array, head: jax.Array) -> jax.Array:
    """The inverse of `_from_slots`."""
    size = x.shape[0]
    return lax.dynamic_slice_in_dim(jnp.concatenate([x, x]), size - head, size)


def _times(gram: jax.Array, coefficients: jax.Array) -> jax.Array:
    """Gram matrix times coefficients as a sum that fuses and is never rounded down."""
    return jnp.sum(gram * coefficients, axis=-1)


def _mix(coefficients: jax.Array, stack: jax.Array) -> jax.Array:
    """Sum over the slots of coefficient times stored leaf."""
    return lax.dot_general(
        coefficients, stack, (((0,), (0,)), ((), ())), precision=lax.Precision.HIGHEST
    )
