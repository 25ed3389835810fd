"""Normalisation with float32 statistics."""

import jax
import jax.numpy as jnp
from flax import nnx


class RMSNorm(nnx.Module):
    """`x / sqrt(mean(x^2) + eps) * scale` over the last axis (arXiv:1910.07467, eq. 4).

    Statistics and the product are float32; the result is cast to `dtype`.
    """

    def __init__(
        self,
        features: int,
        *,
        eps: float,
        dtype: jax.typing.DTypeLike,
        param_dtype: jax.typing.DTypeLike,
    ):
        self.scale = nnx.Param(jnp.ones((features,), param_dtype))
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis of `x`."""
        x = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32)
        scale = scale.reshape((1,) * (x.ndim - 1) + (-1,))
        return (x * inverse * scale).astype(self.dtype)
