import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.layers.attention import cache_mask, causal_mask
from models.layers.dot_product import grouped_attention as eager_attention

grouped_attention = jax.jit(eager_attention)


def draw(heads, kv_heads, queries=7, keys=7, dtype=jnp.float32):
    a, b, c = jax.random.split(jax.random.key(0), 3)
    return (
        jax.random.normal(a, (2, queries, heads, 8), dtype),
        jax.random.normal(b, (2, keys, kv_heads, 8), dtype),
        jax.random.normal(c, (2, keys, kv_heads, 8), dtype),
    )


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("packed", [False, True])
def test_equals_the_attention_of_jax_with_its_gradients(heads, kv_heads, packed):
    segment_ids = jnp.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 3, 3, 0]])
    mask = causal_mask(7, segment_ids if packed else None)
    same = segment_ids[:, :, None] == segment_ids[:, None, :]

    def own(q, k, v):
        return jnp.sum(jnp.sin(grouped_attention(q, k, v, mask)))

    def reference(q, k, v):
        mixed = jax.nn.dot_product_attention(
            q, k, v, mask=same[:, None] if packed else None, is_causal=True
        )
        return jnp.sum(jnp.sin(mixed))

    arrays = draw(heads, kv_heads)
    value, gradients = jax.jit(jax.value_and_grad(own, (0, 1, 2)))(*arrays)
    grad = jax.jit(jax.value_and_grad(reference, (0, 1, 2)))
    expected, expected_gradients = grad(*arrays)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for a, b in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_large_scores_stay_finite():
    query, key, value = draw(2, 2)
    mixed = grouped_attention(100 * query, 100 * key, value, causal_mask(7))
    assert np.isfinite(mixed).all()
    np.testing.assert_array_equal(mixed[:, 0], value[:, 0])


def test_a_row_that_sees_nothing_is_a_mean():
    query, key, value = draw(2, 2)
    mixed = grouped_attention(query, key, value, jnp.zeros((1, 1, 7, 7), bool))
    mean = jnp.broadcast_to(value.mean(1, keepdims=True), value.shape)
    np.testing.assert_allclose(mixed, mean, atol=1e-6)


def test_bfloat16_values_give_bfloat16():
    arrays = draw(4, 2)
    exact = grouped_attention(*arrays, causal_mask(7))
    half = grouped_attention(*(x.astype(jnp.bfloat16) for x in arrays), causal_mask(7))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), exact, atol=0.05)


def test_cache_mask_is_causal_with_a_window():
    mask = cache_mask(jnp.int32(3), queries=2, length=6, window=3)
    np.testing.assert_array_equal(
        mask[0, 0].astype(int), [[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]]
    )
