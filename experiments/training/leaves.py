"""The array leaves of a tree: their paths, shapes and checksums.

What a checkpoint records about a state, so that another model and a damaged file
are told apart and named.
"""

import collections
from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.trees import paths


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path, as `params/layer_0/kernel`.

    Dictionary keys, field names and positions look alike, so that part of a tree can
    be asked for as a plain dict. Leaves that are no arrays become arrays.
    """
    named = paths.named_leaves(tree)
    repeated = [n for n, c in collections.Counter(n for n, _ in named).items() if c > 1]
    if repeated:
        raise ValueError(f"two leaves of the state have the path {repeated[0]!r}")
    abstract = jax.ShapeDtypeStruct
    return {
        name: leaf if isinstance(leaf, jax.Array | abstract) else jnp.asarray(leaf)
        for name, leaf in named
    }


def signature(leaf: Any) -> list:
    """Shape and dtype, as JSON holds them."""
    return [list(leaf.shape), str(leaf.dtype)]


def first_difference(saved: dict[str, list], wanted: dict[str, Any]) -> str:
    """The first wanted leaf that is not like the saved one; empty if all are.

    Args:
      saved: signatures by path; may hold more than is wanted.
      wanted: arrays or abstract arrays by path.
    """
    for name, leaf in wanted.items():
        asked = f"shape {tuple(leaf.shape)} {leaf.dtype}"
        if name not in saved:
            return f"leaf {name!r} is not in it, wanted with {asked}"
        if saved[name] != signature(leaf):
            shape, dtype = saved[name]
            return (
                f"leaf {name!r} was saved with shape {tuple(shape)} {dtype}, "
                f"wanted with {asked}"
            )
    return ""


def checksums(leaves: dict[str, jax.Array]) -> dict[str, int]:
    """The sum of each leaf's bits, as words, modulo 2³².

    Integer sums wrap and commute, so that the value does not depend on how an array
    is laid out over devices. On several processes all must call this together.
    """
    # One after the other: each sum over a sharded leaf is a program with a collective,
    # and on several CPU devices two such programs in flight can block each other.
    return {name: int(_bit_sum(_bits(leaf))) for name, leaf in leaves.items()}


def _bits(leaf: jax.Array) -> jax.Array:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


@jax.jit
def _bit_sum(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return 3 * _bit_sum(x.real) + _bit_sum(x.imag)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        if x.dtype.itemsize == 8:
            x = jax.lax.bitcast_convert_type(x, jnp.uint32)
        return jnp.sum(x.astype(jnp.uint32), dtype=jnp.uint32)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(x, word)  # 8 bytes: two words
    return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)
