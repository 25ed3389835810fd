"""Causal self-attention with grouped queries, packed rows and a key-value cache.

Shapes: B rows, T queries, S cached positions, H query heads, K key-value heads
(K divides H), D features of a head.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from models.layers.activation_sharding import BATCH, MODEL, shard_activation
from models.layers.dot_product import grouped_attention
from models.layers.projection import Projection
from models.layers.rotary import Rotation, rotate


class KeyValueCache(NamedTuple):
    """Keys and values of the positions seen so far, of one layer."""

    key: jax.Array  # [B, S, K, D], compute dtype, already rotated
    value: jax.Array  # [B, S, K, D], compute dtype


class GroupedQueryAttention(nnx.Module):
    """Attention whose K key-value heads each serve H/K query heads (arXiv:2305.13245).

    The four projections are 2-D kernels `[in, out]`, heads side by side in `out`, so
    that methods for matrices see the matrices of the papers.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int,
        *,
        dtype: jax.typing.DTypeLike,
        param_dtype: jax.typing.DTypeLike,
        kernel_init: nnx.Initializer,
        output_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        self.head_dim = d_model // num_heads
        width, kv_width = num_heads * self.head_dim, num_kv_heads * self.head_dim

        linear = functools.partial(
            Projection, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.query = linear(d_model, width, kernel_init=kernel_init)
        self.key = linear(d_model, kv_width, kernel_init=kernel_init)
        self.value = linear(d_model, kv_width, kernel_init=kernel_init)
        self.output = linear(width, d_model, kernel_init=output_init)

    def __call__(self, x: jax.Array, rotation: Rotation, mask: jax.Array) -> jax.Array:
        """Attends within the rows of `x`.

        Args:
          x: activations `[B, T, d_model]`.
          rotation: of the T positions.
          mask: boolean `[B or 1, 1, T, T]`, True where a query may see a key.

        Returns:
          Activations `[B, T, d_model]`.
        """
        query, key, value = self._heads(x, rotation)
        return self._merge(grouped_attention(query, key, value, mask))

    def extend(
        self,
        x: jax.Array,
        rotation: Rotation,
        cache: KeyValueCache,
        start: jax.Array,
        mask: jax.Array,
    ) -> tuple[jax.Array, KeyValueCache]:
        """Attends from new positions to the cache and to themselves.

        Args:
          x: activations `[B, T, d_model]` of positions `start .. start + T`.
          rotation: of these positions.
          cache: of the positions before `start`.
          start: int32 scalar.
          mask: boolean `[1, 1, T, S]`, True where a query may see a cached position.

        Returns:
          Activations `[B, T, d_model]` and the cache with the new positions.
        """
        query, key, value = self._heads(x, rotation)
        write = jax.lax.dynamic_update_slice_in_dim
        cache = KeyValueCache(
            write(cache.key, key, start, axis=1),
            write(cache.value, value, start, axis=1),
        )
        mixed = grouped_attention(query, cache.key, cache.value, mask)
        return self._merge(mixed), cache

    def _heads(self, x, rotation):
        def split(y):
            heads = y.reshape(*y.shape[:-1], -1, self.head_dim)
            return shard_activation(heads, BATCH, None, MODEL, None)

        query = rotate(split(self.query(x)), rotation)
        key = rotate(split(self.key(x)), rotation)
        return query, key, split(self.value(x))

    def _merge(self, mixed):
        return self.output(mixed.reshape(*mixed.shape[:-2], -1))


def causal_mask(length: int, segment_ids: jax.Array | None = None) -> jax.Array:
    """Lets a position see itself and what is before it, in its own packed example.

    Args:
      length: positions of a row, T.
      segment_ids: `[B, T]`, which packed example a position belongs to; None: one.

    Returns:
      A boolean mask `[B or 1, 1, T, T]`.
    """
    mask = jnp.tril(jnp.ones((length, length), bool))[None, None]
    if segment_ids is None:
        return mask
    return mask & (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]


def cache_mask(start: jax.Array, queries: int, length: int, window: int) -> jax.Array:
    """Which of `length` cached positions `queries` new ones may see, `[1, 1, T, S]`.

    Query `start + t` sees itself and the `window - 1` positions before it. Rotary
    embedding depends on distances alone, so a window of the training length keeps
    every distance among those that were trained, however long the text grows.
    """
    query = start + jnp.arange(queries, dtype=jnp.int32)[:, None]
    key = jnp.arange(length, dtype=jnp.int32)[None, :]
    return ((key <= query) & (key > query - window))[None, None]
