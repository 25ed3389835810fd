"""The core of attention: softmax(q k^T / sqrt(D)) v with grouped queries.

Shapes: B rows, T queries, S keys, H query heads, K key-value heads, G = H / K query
heads per key-value head, D features of a head.
"""

import jax
import jax.numpy as jnp

# Finite, so that a row without a visible key gives a mean and not NaN.
_HIDDEN = -1e30


def grouped_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
    """Mixes values by the softmax of the scores; the softmax is float32.

    The same function as `jax.nn.dot_product_attention`, arranged for speed on CPUs:
    the query heads that share a key-value head are one matrix product, and the sum of
    the softmax divides the mixed values `[T, D]` in place of the scores `[T, S]`. That
    takes a tenth to a fifth off the training step of the small presets.

    Args:
      query: `[B, T, H, D]`.
      key: `[B, S, K, D]`, K divides H.
      value: `[B, S, K, D]`.
      mask: boolean `[B or 1, 1, T, S]`, True where a query may see a key.

    Returns:
      `[B, T, H, D]` in the type of `value`.
    """
    b, t, h, d = query.shape
    s, k = key.shape[1:3]
    g = h // k
    query = query * jnp.asarray(d**-0.5, query.dtype)
    query = query.reshape(b, t, k, g, d).transpose(0, 2, 3, 1, 4)
    query = query.reshape(b, k, g * t, d)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)

    scores = jnp.einsum(
        "bkrd,bksd->bkrs", query, key, preferred_element_type=jnp.float32
    )
    scores = jnp.where(mask[:, :, None], scores.reshape(b, k, g, t, s), _HIDDEN)
    # A constant shift: its gradient cancels.
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    likelihoods = jnp.exp(scores - peak)
    total = jnp.sum(likelihoods, axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "bkrs,bksd->bkrd",
        likelihoods.astype(value.dtype).reshape(b, k, g * t, s),
        value,
        preferred_element_type=jnp.float32,
    )
    mixed = mixed.reshape(b, k, g, t, d) / total
    return mixed.transpose(0, 3, 1, 2, 4).reshape(b, t, h, d).astype(value.dtype)
