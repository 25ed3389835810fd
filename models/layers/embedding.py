"""Token embedding table."""

import jax
import jax.numpy as jnp
from flax import nnx


class TokenEmbedding(nnx.Module):
    """A table `[vocab_size, d_model]`: rows for inputs and, when tied, for logits."""

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        *,
        dtype: jax.typing.DTypeLike,
        param_dtype: jax.typing.DTypeLike,
        embedding_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        shape = (vocab_size, d_model)
        self.embedding = nnx.Param(embedding_init(rngs.params(), shape, param_dtype))
        self.dtype = dtype

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Looks up `tokens` `[B, T]` -> `[B, T, d_model]`; ids are clipped."""
        # A one-hot product is no faster on a CPU, forward and backward, even with
        # 256 rows.
        table = self.embedding[...].astype(self.dtype)
        return jnp.take(table, tokens, axis=0, mode="clip")

    def attend(self, x: jax.Array) -> jax.Array:
        """Returns `x @ table^T` `[B, T, vocab_size]`, accumulated in float32."""
        table = self.embedding[...].astype(self.dtype)
        rows = jnp.matmul(
            x.reshape(-1, x.shape[-1]), table.T, preferred_element_type=jnp.float32
        )
        return rows.reshape(*x.shape[:-1], rows.shape[-1])
