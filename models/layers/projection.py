"""Linear maps without bias."""

import jax
from flax import nnx


class Projection(nnx.Linear):
    """`x @ kernel` with a 2-D kernel `[in, out]` and no bias.

    Leading axes are merged before the product and restored after it: a product of two
    matrices takes a faster path on CPUs than one with `[B, T, in]` on the left, forward
    and backward, with bitwise equal results (a third off the step of the nano preset).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_init: nnx.Initializer,
        dtype: jax.typing.DTypeLike,
        param_dtype: jax.typing.DTypeLike,
        preferred_element_type: jax.typing.DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_features,
            out_features,
            use_bias=False,
            dtype=dtype,
            param_dtype=param_dtype,
            preferred_element_type=preferred_element_type,
            kernel_init=kernel_init,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., in]` to `[..., out]`."""
        rows = super().__call__(x.reshape(-1, x.shape[-1]))
        return rows.reshape(*x.shape[:-1], rows.shape[-1])
