"""The pairs of L-BFGS: ring buffers over the parameters and their Gram matrices.

Everything that needs a pass over the parameters is here: products of a vector with all
stored vectors, and the writing of a pair. The rest is algebra of m-by-m matrices.

Shape legend: m = memory size, ... = shape of one parameter leaf.
"""

import functools
import numbers
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from optim_jax.trees.mesh_axes import explicit_mesh
from optim_jax.trees.paths import named_leaves
from optim_jax.typing import Params
from optim_jax.validation import check_inexact_leaves


class LBFGSMemory(NamedTuple):
    r"""The last m pairs :math:`s_i = w_{i+1} - w_i`, :math:`y_i` = change of gradient.

    Slot i of all buffers holds one pair; slots are filled from 0 and then overwritten,
    the oldest first. The Gram matrices belong to the vectors as they are stored, after
    rounding to the buffers' dtype. Rows and columns of empty slots are zero.

    Attributes:
      s: tree of (m, ...) steps.
      y: tree of (m, ...) gradient differences.
      ss: (m, m) products :math:`s_i^\top s_j`, in the accumulation dtype: float64 if a
        leaf is, else float32.
      sy: (m, m) products :math:`s_i^\top y_j`.
      yy: (m, m) products :math:`y_i^\top y_j`.
      head: int32, the slot that is written next. The chronological index j, oldest
        first, sits in slot (head - count + j) mod m.
      count: int32, number of stored pairs, at most m.
      gamma: :math:`s^\top y / y^\top y` of the newest pair, 1 without one: the scale of
        the matrix :math:`H_0 = \gamma I` that the pairs update.
    """

    s: Any
    y: Any
    ss: jax.Array
    sy: jax.Array
    yy: jax.Array
    head: jax.Array
    count: jax.Array
    gamma: jax.Array


class Products(NamedTuple):
    """What the algebra needs to know of a vector v, or of a batch of them.

    Attributes:
      s: (*batch, m) products of the stored s with v, in slot order.
      y: (*batch, m) products of the stored y with v.
      square: (*batch,) squared Euclidean norm of v.
    """

    s: jax.Array
    y: jax.Array
    square: jax.Array


def init_memory(
    params: Params, memory_size: int = 10, *, memory_dtype: Any = None
) -> LBFGSMemory:
    """An empty memory, with which the inverse Hessian is the identity.

    It holds 2 m numbers per parameter. The buffers lie where the parameters lie, with
    the axis of the slots replicated.

    Args:
      params: tree of real floating-point arrays, or their shapes.
      memory_size: number m of pairs kept, >= 1.
      memory_dtype: floating-point dtype of the buffers; None means the dtype of each
        leaf, and float32 for half-precision leaves.

    Returns:
      A memory without pairs.

    Raises:
      ValueError: `memory_size` is not an integer >= 1, `memory_dtype` is not a real
        floating-point dtype, or a leaf is an integer array; the message names it.
      TypeError: a leaf is complex; the message names it.
    """
    check_memory_size(memory_size)
    check_memory_dtype(memory_dtype)
    check_real_leaves("L-BFGS", params)
    dtype, everywhere = accumulation_dtype(params), _replicated(params)

    def buffers() -> Any:
        return jax.tree.map(
            lambda leaf: _empty_slots(leaf, memory_size, memory_dtype), params
        )

    def zeros(shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.zeros(shape, dtype, device=everywhere)

    return LBFGSMemory(
        s=buffers(),
        y=buffers(),
        ss=zeros((memory_size, memory_size), dtype),
        sy=zeros((memory_size, memory_size), dtype),
        yy=zeros((memory_size, memory_size), dtype),
        head=zeros((), jnp.int32),
        count=zeros((), jnp.int32),
        gamma=jnp.ones((), dtype, device=everywhere),
    )


def clear_memory(memory: LBFGSMemory) -> LBFGSMemory:
    """Forgets all pairs; the buffers keep what they hold, which nothing reads."""
    return memory._replace(
        ss=jnp.zeros_like(memory.ss),
        sy=jnp.zeros_like(memory.sy),
        yy=jnp.zeros_like(memory.yy),
        head=jnp.zeros_like(memory.head),
        count=jnp.zeros_like(memory.count),
        gamma=jnp.ones_like(memory.gamma),
    )


def inner_products(memory: LBFGSMemory, v: Any) -> Products:
    """Products of a vector with everything stored: one pass over the leaves.

    Over sharded leaves that is one reduction of 2 m + 1 numbers.

    Args:
      memory: the pairs.
      v: tree like the parameters.

    Returns:
      The products in the accumulation dtype, zero for empty slots.
    """
    dtype, stored = memory.sy.dtype, stored_slots(memory)
    p, q, square = [], [], []
    for s, y, leaf in _leaves(memory.s, memory.y, v):
        leaf = leaf.astype(dtype)
        p.append(contract(s.astype(dtype), leaf))
        q.append(contract(y.astype(dtype), leaf))
        square.append(contract(leaf, leaf))
    return Products(
        s=jnp.where(stored, _total(p, dtype), 0),
        y=jnp.where(stored, _total(q, dtype), 0),
        square=_total(square, dtype),
    )


def store_pair(
    memory: LBFGSMemory, s: Any, y: Any, *, where: bool | jax.Array = True
) -> LBFGSMemory:
    """Writes a pair over the oldest one, without asking whether it is a good one.

    Args:
      memory: the pairs.
      s: step, a tree like the parameters.
      y: gradient difference, likewise.
      where: whether to store it; False leaves the memory as it is.

    Returns:
      The memory with the pair, as rounded to the dtype of the buffers, and with its
      products and its gamma. A pair that is not finite or has s'y = 0 is not stored.
    """
    s, y = as_stored(memory.s, s), as_stored(memory.y, y)
    products = pair_products(memory, s, y)
    return write_pair(memory, s, y, products, where & is_storable(products))


class PairProducts(NamedTuple):
    """Products of a new pair with everything stored and with itself."""

    s: Products
    y: Products
    sy: jax.Array


def as_stored(buffers: Any, v: Any) -> Any:
    """A vector rounded to the dtypes in which the buffers hold it."""
    return jax.tree.map(lambda buffer, leaf: leaf.astype(buffer.dtype), buffers, v)


def pair_products(memory: LBFGSMemory, s: Any, y: Any) -> PairProducts:
    """Products of a pair; pass it as it is stored."""
    # On a CPU two products with a vector are faster than one with a matrix of two.
    of_s, of_y = inner_products(memory, s), inner_products(memory, y)
    return PairProducts(of_s, of_y, tree_dot(s, y).astype(memory.sy.dtype))


def is_storable(products: PairProducts) -> jax.Array:
    """Whether a pair, its products and its gamma are finite, and gamma is not zero."""
    of_s, of_y, sy = products
    gamma = sy / of_y.square
    crossed = jnp.sum(of_s.s + of_s.y + of_y.s + of_y.y)
    finite = jnp.isfinite(crossed + of_s.square + of_y.square + gamma)
    return finite & (gamma != 0)


def write_pair(
    memory: LBFGSMemory, s: Any, y: Any, products: PairProducts, where: jax.Array
) -> LBFGSMemory:
    """Writes a pair, given as stored and with its products, where it is to be.

    Only one slot of the buffers is touched. As `where` depends on products with the
    buffers, all reading comes before the writing, and a loop updates them in place.
    """
    size, head = memory.sy.shape[0], memory.head
    slot = jnp.arange(size)
    written = (slot == head) & where

    def write(buffers: Any, v: Any) -> Any:
        def put(buffer: jax.Array, leaf: jax.Array) -> jax.Array:
            old = lax.dynamic_index_in_dim(buffer, head, keepdims=False)
            new = jnp.where(where, leaf, old)
            return lax.dynamic_update_index_in_dim(buffer, new, head, 0)

        return jax.tree.map(put, buffers, v)

    def border(gram: jax.Array, row: Any, column: Any, corner: Any) -> jax.Array:
        row = jnp.where(slot == head, corner, row)
        gram = jnp.where(written[None, :], column[:, None], gram)
        return jnp.where(written[:, None], row[None, :], gram)

    of_s, of_y, sy = products
    return LBFGSMemory(
        s=write(memory.s, s),
        y=write(memory.y, y),
        ss=border(memory.ss, of_s.s, of_s.s, of_s.square),
        sy=border(memory.sy, of_s.y, of_y.s, sy),
        yy=border(memory.yy, of_y.y, of_y.y, of_y.square),
        head=jnp.where(where, jnp.where(head >= size - 1, 0, head + 1), head),
        count=memory.count + (where & (memory.count < size)),
        gamma=jnp.where(where, sy / of_y.square, memory.gamma),
    )


def stored_slots(memory: LBFGSMemory) -> jax.Array:
    """(m,) bool: which slots hold a pair; they are filled from slot 0."""
    return jnp.arange(memory.sy.shape[0]) < memory.count


def tree_dot(a: Any, b: Any) -> jax.Array:
    """Inner product over all leaves, in at least float32."""
    dtype = accumulation_dtype(a)
    products = [contract(x.astype(dtype), y.astype(dtype)) for x, y in _leaves(a, b)]
    return _total(products, dtype)


def contract(stack: jax.Array, leaf: jax.Array) -> jax.Array:
    """Products of a leaf with each entry of a stack of such leaves, at full precision.

    Args:
      stack: (*n, ...).
      leaf: (...).

    Returns:
      (*n,) array.
    """
    extra = stack.ndim - leaf.ndim
    axes = (tuple(range(extra, stack.ndim)), tuple(range(leaf.ndim)))
    # Where shardings are part of the type, a sum over sharded axes must say that the
    # result is replicated.
    is_typed = explicit_mesh((stack, leaf)) is not None
    return lax.dot_general(
        stack,
        leaf,
        (axes, ((), ())),
        precision=lax.Precision.HIGHEST,
        out_sharding=PartitionSpec(*(None,) * extra) if is_typed else None,
    )


def _total(terms: list[jax.Array], dtype: Any) -> jax.Array:
    """Sum over the leaves, zero for a tree without leaves."""
    return sum(terms[1:], terms[0]) if terms else jnp.zeros((), dtype)


def wide_dtype(leaf: Any) -> Any:
    """The leaf's dtype, or float32 for a half-precision leaf."""
    return jnp.promote_types(jnp.result_type(leaf), jnp.float32)


def accumulation_dtype(tree: Any) -> Any:
    """float64 if a leaf is, else float32."""
    # Of the dtypes: a weakly typed float64 leaf alone would give way to float32.
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.promote_types, dtypes, jnp.float32)


def check_memory_size(memory_size: Any) -> None:
    """Refuses a number of pairs that is not an integer >= 1."""
    is_integer = isinstance(memory_size, numbers.Integral)
    if not is_integer or isinstance(memory_size, bool) or memory_size < 1:
        raise ValueError(f"memory_size must be an integer >= 1, got {memory_size!r}")


def check_memory_dtype(memory_dtype: Any) -> None:
    """Refuses a dtype of the buffers that is not None or real floating-point."""
    try:
        is_allowed = memory_dtype is None or jnp.issubdtype(memory_dtype, jnp.floating)
    except TypeError:
        is_allowed = False
    if not is_allowed:
        raise ValueError(
            f"memory_dtype must be None or a floating-point dtype, got {memory_dtype!r}"
        )


def check_real_leaves(name: str, params: Params) -> None:
    """Refuses leaves that have no curvature of the kind used here.

    Raises:
      ValueError: a leaf is an integer or boolean array.
      TypeError: a leaf is complex.
    """
    check_inexact_leaves(name, params)
    for leaf_path, leaf in named_leaves(params):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(
                f"{name} does not support complex parameters, but leaf {leaf_path!r} "
                f"is {jnp.result_type(leaf)}; store real and imaginary parts as leaves"
            )


def _leaves(*trees: Any) -> Any:
    return zip(*(jax.tree.leaves(tree) for tree in trees), strict=True)


def _replicated(params: Any) -> NamedSharding | None:
    """Where small arrays lie from the first step on: on all devices of the leaves."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            if isinstance(leaf.sharding, NamedSharding):
                return NamedSharding(leaf.sharding.mesh, PartitionSpec())
    return None


def _empty_slots(leaf: Any, memory_size: int, memory_dtype: Any) -> jax.Array:
    """(m, ...) zeros that are laid out as the leaf is."""
    zeros = jnp.zeros_like(leaf, memory_dtype or wide_dtype(leaf))
    return jnp.broadcast_to(zeros, (memory_size, *zeros.shape))
