"""Symmetric matrices as their upper triangles, for storage."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _namespace(array: Any) -> Any:
    return jnp if isinstance(array, jax.Array) else np


def pack_symmetric(a: Any) -> Any:
    """Keeps the upper triangle, row by row.

    Args:
      a: symmetric matrices (..., d, d), a NumPy or JAX array.

    Returns:
      Array (..., d (d + 1) / 2) of the same kind.

    Raises:
      ValueError: the matrices are not square.
    """
    shape = np.shape(a)
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise ValueError(f"a must have the shape (..., d, d), got {shape}")
    rows, columns = np.triu_indices(shape[-1])
    return _namespace(a).asarray(a)[..., rows, columns]


def unpack_symmetric(packed: Any) -> Any:
    """Restores symmetric matrices; the inverse of `pack_symmetric`.

    Args:
      packed: upper triangles (..., d (d + 1) / 2), row by row.

    Returns:
      Array (..., d, d) of the same kind.

    Raises:
      ValueError: the last axis has no such length.
    """
    shape = np.shape(packed)
    length = shape[-1] if shape else 0
    dim = (math.isqrt(8 * length + 1) - 1) // 2
    if not shape or dim * (dim + 1) // 2 != length:
        raise ValueError(
            f"packed must have d (d + 1) / 2 entries in its last axis, got {shape}"
        )
    position = np.zeros((dim, dim), np.int64)
    rows, columns = np.triu_indices(dim)
    position[rows, columns] = position[columns, rows] = np.arange(length)
    return _namespace(packed).asarray(packed)[..., position]
