"""What a caller hands to the solver, checked before anything is compiled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.quasi_newton.directional_derivatives import check_per_sample


def check_counters(population: int | None, max_epochs: float) -> None:
    """Refuses a budget that the counters of samples cannot hold."""
    limit = np.iinfo(jnp.result_type(int)).max
    budget = (population or 0) * max_epochs
    if np.isfinite(budget) and budget > limit:
        raise ValueError(
            f"max_epochs={max_epochs:g} of {population} samples "
            f"are {budget:.3g} gradients, more than the counters hold ({limit}); "
            "lower max_epochs or enable 64-bit types (jax_enable_x64)"
        )


def check_loss(
    loss: Callable[[Any, Any], Any], params: Any, batch: Any, *, has_aux: bool
) -> None:
    """Refuses a loss that is not one real number per sample.

    Args:
      loss: what the caller gave.
      params: first point.
      batch: tree of shapes with a leading axis of samples.
      has_aux: whether it returns auxiliary outputs too.
    """
    count = jax.tree.leaves(batch)[0].shape[0]
    output = jax.eval_shape(loss, params, batch)
    if has_aux:
        if not (isinstance(output, tuple) and len(output) == 2):
            raise ValueError(
                "with has_aux=True per_sample_loss must return (losses, aux), got "
                f"{jax.tree.structure(output)}"
            )
        output, aux = output
        for leaf in jax.tree.leaves(aux):
            if leaf.shape[:1] != (count,):
                raise ValueError(
                    "the auxiliary outputs must hold one entry per sample, got "
                    f"shape {leaf.shape} for a batch of {count}"
                )
    if len(jax.tree.leaves(output)) != 1 or not hasattr(output, "shape"):
        raise ValueError(
            "per_sample_loss must return one loss per sample, got "
            f"{jax.tree.structure(output)}; with auxiliary outputs set has_aux=True"
        )
    check_per_sample(output.shape, count)
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise ValueError(
            "per_sample_loss must return one loss per sample, real floating-point, "
            f"got {output.dtype}"
        )


def checked_permutation(perm: Any, population: int | None) -> jax.Array:
    """A permutation of the data as int32."""
    if population is None:
        raise ValueError("perm needs data of a known size, got a stream")
    perm = np.asarray(perm)
    expected = np.arange(population)
    if perm.shape != expected.shape or not np.array_equal(np.sort(perm), expected):
        raise ValueError(
            f"perm must be a permutation of 0..{population - 1}, got shape "
            f"{perm.shape} of {perm.dtype}"
        )
    return jnp.asarray(perm, jnp.int32)


def raw_key(key: Any) -> np.ndarray:
    """Key data of a typed or raw PRNG key."""
    if jnp.issubdtype(getattr(key, "dtype", np.int32), jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    data = np.asarray(key)
    if data.dtype != np.uint32 or data.shape != (2,):
        raise ValueError(
            "key must be a PRNG key such as jax.random.key(0), got "
            f"{data.dtype} of shape {data.shape}"
        )
    return data
