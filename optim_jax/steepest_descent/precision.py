"""Half-precision leaves are stepped in float32; complex ones have no sign or polar."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optim_jax.steepest_descent.first_moment import wide_dtype
from optim_jax.trees.paths import named_leaves
from optim_jax.validation import check_inexact_leaves


def check_real_leaves(name: str, params: Any) -> None:
    """Refuses leaves that are not real floating-point.

    Args:
      name: of the transformation, for the message.
      params: tree of arrays.

    Raises:
      ValueError: a leaf is an integer, boolean or complex array; the message names it.
    """
    check_inexact_leaves(name, params)
    for leaf_path, leaf in named_leaves(params):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise ValueError(
                f"{name} is defined for real leaves only, but leaf {leaf_path!r} is "
                f"{jnp.result_type(leaf)}; route it elsewhere with optax.partition"
            )


def in_single_precision(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Runs a transformation on float32 copies of half-precision leaves.

    Its statistics are then float32, and only the finished update is rounded. Wider
    leaves are not touched.
    """
    inner = optax.with_extra_args_support(inner)

    def widen(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(wide_dtype(leaf)), tree)

    def init(params: optax.Params) -> Any:
        # Shapes will do: no transformation of this folder reads values.
        wide = jax.tree.map(
            lambda leaf: (
                leaf
                if leaf.dtype == wide_dtype(leaf)
                else jnp.zeros_like(leaf, dtype=wide_dtype(leaf))
            ),
            params,
        )
        return inner.init(wide)

    def update(
        updates: optax.Updates, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        wide_params = None if params is None else widen(params)
        found, state = inner.update(widen(updates), state, wide_params, **extra_args)
        found = jax.tree.map(lambda new, old: new.astype(old.dtype), found, updates)
        return found, state

    return optax.GradientTransformationExtraArgs(init, update)
