"""Products and outer products along one dim of a stack of blocks.

Shape legend: S slots, d size of the mode in question, a and c product of the dims
before and after it. Mode 0 is the first dim of a block, axis 1 of the stack.
"""

import math

import jax
import jax.numpy as jnp

Precision = str | jax.lax.Precision


def _unfold(blocks: jax.Array, mode: int) -> jax.Array:
    """(S, *block) as (S, a, d, c)."""
    shape = blocks.shape[1:]
    before, after = math.prod(shape[:mode]), math.prod(shape[mode + 1 :])
    return blocks.reshape(blocks.shape[0], before, shape[mode], after)


def _swapped(matrices: jax.Array) -> jax.Array:
    """(S, m, n) as (S, n, m), laid out so on CPU.

    XLA's CPU products run at half speed or less when their first operand is contracted
    along its rows; a transposed copy costs far less.
    """
    swapped = jnp.swapaxes(matrices, 1, 2)
    return jax.lax.platform_dependent(
        swapped, cpu=jax.lax.optimization_barrier, default=lambda array: array
    )


def mode_product(
    blocks: jax.Array,
    matrices: jax.Array,
    mode: int,
    precision: Precision,
    *,
    transposed: bool = False,
) -> jax.Array:
    """Multiplies one mode of every block by a matrix of its own.

    Args:
      blocks: (S, *block).
      matrices: (S, d, d); their rows are contracted, so that eigenvectors in columns
        give coordinates.
      mode: dim of a block.
      precision: of the products.
      transposed: contract the columns of the matrices instead of their rows.

    Returns:
      Array like `blocks`.
    """
    unfolded = _unfold(blocks, mode)
    _, before, _, after = unfolded.shape
    contracted = 2 if transposed else 1
    if before == 1:
        # (S, d, d) x (S, d, c): the matrix stays on the left, the blocks do not move.
        left = matrices if transposed else _swapped(matrices)
        product = jax.lax.dot_general(
            left, unfolded[:, 0], (((2,), (1,)), ((0,), (0,))), precision=precision
        )
    elif after == 1:
        product = jax.lax.dot_general(
            unfolded[..., 0],
            matrices,
            (((2,), (contracted,)), ((0,), (0,))),
            precision=precision,
        )
    else:
        product = jax.lax.dot_general(
            unfolded,
            matrices,
            (((2,), (contracted,)), ((0,), (0,))),
            precision=precision,
        )
        product = jnp.swapaxes(product, 2, 3)
    return product.reshape(blocks.shape)


def mode_outer(blocks: jax.Array, mode: int, precision: Precision) -> jax.Array:
    """Sums outer products of the fibres of one mode: mat(G) mat(G)^T, (S, d, d)."""
    unfolded = _unfold(blocks, mode)
    _, before, _, after = unfolded.shape
    if before == 1:
        rows, dims = unfolded[:, 0], (2,)
    elif after == 1:
        rows, dims = _swapped(unfolded[..., 0]), (2,)
    else:
        rows, dims = unfolded, (1, 3)
    return jax.lax.dot_general(
        rows, rows, ((dims, dims), ((0,), (0,))), precision=precision
    )


def scale_modes(blocks: jax.Array, scales: list[tuple[int, jax.Array]]) -> jax.Array:
    """Multiplies entries by a factor per coordinate of some modes.

    Args:
      blocks: (S, *block).
      scales: pairs (mode, (S, d)).
    """
    for mode, scale in scales:
        shape = [1] * blocks.ndim
        shape[0], shape[1 + mode] = scale.shape
        blocks = blocks * scale.reshape(shape)
    return blocks
