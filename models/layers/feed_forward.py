"""Gated feed-forward layer."""

import functools

import jax
from flax import nnx

from models.layers.activation_sharding import BATCH, MODEL, shard_activation
from models.layers.projection import Projection


class SwiGLU(nnx.Module):
    """`down(silu(gate(x)) * up(x))`, no biases (arXiv:2002.05202, eq. 6)."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        dtype: jax.typing.DTypeLike,
        param_dtype: jax.typing.DTypeLike,
        kernel_init: nnx.Initializer,
        output_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        linear = functools.partial(
            Projection, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.gate = linear(d_model, d_ff, kernel_init=kernel_init)
        self.up = linear(d_model, d_ff, kernel_init=kernel_init)
        self.down = linear(d_ff, d_model, kernel_init=output_init)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, T, d_model]` to `[B, T, d_model]`."""
        hidden = jax.nn.silu(self.gate(x)) * self.up(x)
        return self.down(shard_activation(hidden, BATCH, None, MODEL))
