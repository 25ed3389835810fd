"""Arrays of integers, read from NumPy, JAX or Python sequences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def read_integers(name: str, values: Any) -> Any:
    """Refuses anything but integers.

    Args:
      name: for the message.
      values: NumPy or JAX array, number, or nested sequence; an empty list counts as
        integers.

    Returns:
      JAX arrays as they are; anything else as a NumPy array: int64, or uint64 if it
      was that.

    Raises:
      TypeError: the values are floats, booleans or no numbers.
    """
    if not isinstance(values, jax.Array):
        is_empty_list = isinstance(values, list | tuple) and not values
        values = np.asarray(values, np.int64 if is_empty_list else None)
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {values.dtype}")
    if isinstance(values, jax.Array) or values.dtype == np.uint64:
        return values
    return values.astype(np.int64)
