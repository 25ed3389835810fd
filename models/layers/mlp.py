"""Multilayer perceptron of click models: affine layers with ReLU between them."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def _kernel_init(key, shape, dtype):
    """Normal with variance `2 / (fan_in + fan_out)`."""
    return math.sqrt(2.0 / sum(shape)) * jax.random.normal(key, shape, dtype)


def _bias_init(key, shape, dtype):
    """Normal with variance `1 / fan_out`: the published model's biases are random."""
    return math.sqrt(1.0 / shape[0]) * jax.random.normal(key, shape, dtype)


class Affine(nnx.Linear):
    """`x @ kernel + bias`, the product in `dtype`, the sum in the bias's own type.

    So the gradient of the bias, a sum over the batch, is not taken in half precision.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, in]` to `[B, out]`."""
        x, kernel = self.promote_dtype((x, self.kernel[...]), dtype=self.dtype)
        bias = self.bias[...]
        return (x @ kernel).astype(bias.dtype) + bias


class MLP(nnx.Module):
    """`widths[0] -> widths[1] -> …`, ReLU after every layer or all but the last.

    The laws of the initial weights are those of DLRM (arXiv:1906.00091).

    Args:
      widths: of the input and of every layer's output.
      relu_last: whether the last layer ends in a ReLU too.
      dtype: of the products of all layers but the last: of logits in half precision
        many would be equal. None: that of the weights.
      rngs: of the initial weights.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        relu_last: bool,
        dtype: jax.typing.DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.depth = len(widths) - 1
        self.relu_last = relu_last
        for index in range(self.depth):
            layer = Affine(
                widths[index],
                widths[index + 1],
                kernel_init=_kernel_init,
                bias_init=_bias_init,
                dtype=dtype if index + 1 < self.depth else None,
                param_dtype=jnp.float32,
                rngs=rngs,
            )
            setattr(self, f"layer_{index}", layer)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, widths[0]]` to `[B, widths[-1]]`."""
        for index in range(self.depth):
            x = getattr(self, f"layer_{index}")(x)
            if self.relu_last or index + 1 < self.depth:
                x = jax.nn.relu(x)
        return x


def init_mlp(key: jax.Array, widths: Sequence[int]) -> dict[str, dict[str, jax.Array]]:
    """Initial weights: `layer_i` with `kernel` [in, out] and `bias` [out]."""
    mlp = MLP(widths, relu_last=True, rngs=nnx.Rngs(params=key))
    return nnx.to_pure_dict(nnx.state(mlp))


@functools.lru_cache
def _graphdef(widths: tuple[int, ...], relu_last: bool, dtype: Any) -> nnx.GraphDef:
    return nnx.graphdef(
        nnx.eval_shape(
            lambda: MLP(widths, relu_last=relu_last, dtype=dtype, rngs=nnx.Rngs(0))
        )
    )


def apply_mlp(
    params: dict[str, dict[str, jax.Array]],
    x: jax.Array,
    *,
    relu_last: bool,
    dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """The perceptron with these weights.

    Args:
      params: as from `init_mlp`.
      x: `[B, in]`.
      relu_last: whether the last layer ends in a ReLU too.
      dtype: of the products of all layers but the last; None: that of the weights.

    Returns:
      `[B, out]` in the type of the biases.
    """
    kernels = [params[f"layer_{index}"]["kernel"] for index in range(len(params))]
    widths = (kernels[0].shape[0], *(kernel.shape[1] for kernel in kernels))
    graphdef = _graphdef(widths, relu_last, dtype)
    return nnx.merge(graphdef, params)(x)


def mlp_params(widths: Sequence[int]) -> int:
    """Number of weights and biases."""
    return sum(a * b + b for a, b in itertools.pairwise(widths))


def mlp_flops(widths: Sequence[int]) -> int:
    """Multiply-adds of one row, forward, counted as two operations each."""
    return sum(2 * a * b for a, b in itertools.pairwise(widths))
