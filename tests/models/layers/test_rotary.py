import jax
import jax.numpy as jnp
import numpy as np

from models.layers.rotary import rotate, rotation_at


def test_turns_pairs_half_a_head_apart():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
    positions = jnp.arange(5)[None]
    turned = rotate(x, rotation_at(positions, 8, 1e4))
    angle = np.arange(5)[:, None] * 1e4 ** (-np.arange(4) / 4)
    z = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)[None, :, None]
    np.testing.assert_allclose(turned[..., :4], z.real, atol=1e-5)
    np.testing.assert_allclose(turned[..., 4:], z.imag, atol=1e-5)


def test_scores_depend_on_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 6, 2, 16))

    def scores(first):
        rotation = rotation_at(first + jnp.arange(6)[None], 16, 1e4)
        return jnp.einsum("bthd,bshd->bhts", rotate(q, rotation), rotate(k, rotation))

    np.testing.assert_allclose(scores(0), scores(300), atol=1e-3)
    assert np.abs(scores(0) - jnp.einsum("bthd,bshd->bhts", q, k)).max() > 0.1


def test_keeps_the_type_with_float32_angles():
    x = jnp.ones((1, 1, 1, 8), jnp.bfloat16)
    rotation = rotation_at(jnp.array([[10_001]]), 8, 5e5)
    assert rotation.cos.dtype == jnp.float32
    assert rotate(x, rotation).dtype == jnp.bfloat16
    np.testing.assert_allclose(rotation.cos[0, 0, 0, 0], np.cos(10_001), atol=1e-5)
