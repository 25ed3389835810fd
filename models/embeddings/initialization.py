"""Initial leaves: combined embeddings start with mean 0 and a full table's variance."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from models.embeddings.components import component_shapes, dense_shapes
from models.embeddings.table_config import TableConfig

# Numbers drawn at a time. On a CPU the counters of the generator take three times the
# memory of what it returns.
_BLOCK = 2**20
# Half-width of the rows near one of init="ones": small, and enough to tell them apart.
_ONES_NOISE = 0.01


def init_table(config: TableConfig, key: jax.Array) -> dict[str, Any]:
    r"""Draws the leaves of one table, float32.

    With n = `rows`, a row of a full table is U(-1/sqrt(n), 1/sqrt(n)), of variance
    1 / (3n). The parts of a compressed table are symmetric and uniform such that what
    is made of them has mean 0 and that variance:

    * `hash`, `concat`, `features`, the hot rows of `frequency`, the first part of
      `path`, `mixed`: half-width 1 / sqrt(n). `init="hash_rows"` takes the rows stored
      in place of n; `init="glorot"` sqrt(6 / (n + d)) for a `mixed` table by itself.
    * `add` of k parts: 1 / sqrt(k n).
    * `mult` of k parts: sqrt(3) (3n)^(-1 / (2k)). With `init="ones"` the first part
      has half-width 1 / sqrt(n) and the others are 1 + U(-0.01, 0.01).
    * `init="reference_qr"`: both parts U(1/sqrt(n), 1), as the original
      implementation has it: its products start near 0.3, not around zero.

    The projection of `mixed` is Glorot-uniform. The functions of `path` are this
    project's choice: hidden kernels of half-width sqrt(6/D), output kernels of
    half-width sqrt(3/h), zero biases, which keep the variance of their argument; with
    `path_residual` the output kernels are zero, so that a function starts as the
    identity.

    Args:
      config: the table.
      key: JAX random key. A table of more than 2**20 numbers is drawn block by block
        into one buffer, so that little more than the table is ever in memory.

    Returns:
      All leaves by name, see `component_shapes` and `dense_shapes`.

    References:
      Shi, Mudigere, Naumov, Yang, 2020, https://arxiv.org/abs/1909.02107. The laws for
      `add` and `mult` are this project's derivation.
    """
    shapes = component_shapes(config)
    keys = jax.random.split(key, len(shapes) + 1)
    leaves: dict[str, Any] = {}
    for leaf_key, (leaf, shape) in zip(keys[1:], shapes.items(), strict=True):
        leaves[leaf] = _uniform(leaf_key, shape, *_range_of(config, leaf))
    dense = dense_shapes(config)
    if "projection" in dense:
        bound = math.sqrt(6.0 / sum(dense["projection"]))
        leaves["projection"] = _uniform(keys[0], dense["projection"], -bound, bound)
    if "functions" in dense:
        leaves["functions"] = {
            part: _functions(config, jax.random.fold_in(keys[0], number), stacks)
            for number, (part, stacks) in enumerate(dense["functions"].items())
        }
    return leaves


def _range_of(config: TableConfig, leaf: str) -> tuple[float, float]:
    """Ends of the uniform law of a row-indexed leaf."""
    n, parts = config.rows, len(config.part_rows)
    bound = 1.0 / math.sqrt(n)
    if leaf == "table" and config.is_compressed:
        if config.init == "hash_rows":
            bound = 1.0 / math.sqrt(config.stored_hash_rows)
        if config.init == "glorot":
            bound = math.sqrt(6.0 / sum(component_shapes(config)["table"]))
    elif config.built_method not in ("full", "path", "features") and leaf != "hot":
        if config.init == "reference_qr":
            return bound, 1.0
        if config.init == "ones":
            if leaf not in ("quotient", "part_0"):
                return 1.0 - _ONES_NOISE, 1.0 + _ONES_NOISE
        elif config.op == "add":
            bound = 1.0 / math.sqrt(parts * n)
        elif config.op == "mult":
            bound = math.sqrt(3.0) * (3.0 * n) ** (-0.5 / parts)
    return -bound, bound


@functools.partial(jax.jit, static_argnums=1)
def _uniform(
    key: jax.Array, shape: tuple[int, ...], low: float, high: float
) -> jax.Array:
    rows, per_row = shape[0], math.prod(shape[1:])
    block = max(_BLOCK // per_row, 1)
    if rows <= block:
        return jax.random.uniform(key, shape, jnp.float32, low, high)

    def fill(number: jax.Array, table: jax.Array) -> jax.Array:
        block_key = jax.random.fold_in(key, number)
        block_shape = (block, *shape[1:])
        values = jax.random.uniform(block_key, block_shape, jnp.float32, low, high)
        # The last block reaches back over rows of the one before it.
        first = jnp.minimum(number * block, rows - block)
        return jax.lax.dynamic_update_slice_in_dim(table, values, first, axis=0)

    return jax.lax.fori_loop(0, -(-rows // block), fill, jnp.zeros(shape, jnp.float32))


def _functions(
    config: TableConfig, key: jax.Array, shapes: dict[str, tuple[int, ...]]
) -> dict[str, jax.Array]:
    """Stacked perceptrons of one partition."""
    bounds = {
        "hidden_kernel": math.sqrt(6.0 / config.dim),
        "output_kernel": math.sqrt(3.0 / config.path_hidden),
    }
    if config.path_residual:
        del bounds["output_kernel"]
    leaves = {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes.items()}
    for number, (name, bound) in enumerate(bounds.items()):
        leaf_key = jax.random.fold_in(key, number)
        leaves[name] = _uniform(leaf_key, shapes[name], -bound, bound)
    return leaves
