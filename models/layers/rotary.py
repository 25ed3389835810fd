"""Rotary position embedding (arXiv:2104.09864), half-split layout.

Feature `i` of a head is paired with feature `i + D/2` and the pair is turned by
`position * theta^(-2i/D)`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rotation(NamedTuple):
    """The turn of every pair at every position; computed once, used by all layers."""

    cos: jax.Array  # [B or 1, T, 1, D], float32, the two halves equal
    sin: jax.Array  # [B or 1, T, 1, D], float32, negated in the first half


def rotation_at(positions: jax.Array, head_dim: int, theta: float) -> Rotation:
    """Returns the rotation for `positions` `[B or 1, T]`; angles are float32."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequencies = (theta**-exponents).reshape(1, 1, 1, -1)
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return Rotation(
        jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    )


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Turns the heads `x` `[B, T, H, D]` in float32; the result has the type of `x`.

    Swapping the halves and one sum read less memory than four products of halves.
    """
    wide = x.astype(jnp.float32)
    swapped = jnp.roll(wide, x.shape[-1] // 2, axis=-1)
    return (wide * rotation.cos + swapped * rotation.sin).astype(x.dtype)
