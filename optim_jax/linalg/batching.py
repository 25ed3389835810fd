"""The matrices of a stack one after the other on CPUs, all at once elsewhere."""

from collections.abc import Callable
from typing import Any

import jax


def one_by_one_on_cpu(function: Callable[[jax.Array], Any], a: jax.Array) -> Any:
    """Applies a function of matrices (..., m, n), on CPUs to one at a time.

    A CPU gains nothing from a batch that one matrix does not give. An iteration on one
    matrix stays in the cache, and decompositions of batches may deadlock, see `lapack`.

    Args:
      function: from matrices (..., m, n) to arrays with the same batch axes.
      a: (..., m, n).
    """
    batch = a.shape[:-2]
    if a.size == 0 or a.size == a.shape[-2] * a.shape[-1]:
        return function(a)

    def one_by_one(a: jax.Array) -> Any:
        results = jax.lax.map(function, a.reshape(-1, *a.shape[-2:]))
        return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), results)

    return jax.lax.platform_dependent(a, cpu=one_by_one, default=function)
