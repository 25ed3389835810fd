import jax
import jax.numpy as jnp
import numpy as np

from models.layers.norms import RMSNorm


def test_divides_by_the_root_mean_square():
    norm = RMSNorm(6, eps=1e-2, dtype=jnp.float32, param_dtype=jnp.float32)
    norm.scale[...] = jnp.arange(6.0)
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 3, 6)))
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-2) * np.arange(6)
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5, atol=1e-6)


def test_statistics_are_float32_whatever_the_type():
    norm = RMSNorm(4096, eps=1e-6, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    # The sum of squares overflows float16 and stalls in bfloat16.
    x = jnp.full((1, 4096), 300.0, jnp.bfloat16)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y.astype(jnp.float32), 1.0)
    zeros = norm(jnp.zeros((1, 4096), jnp.bfloat16))
    np.testing.assert_array_equal(zeros.astype(jnp.float32), 0.0)
