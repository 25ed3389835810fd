r"""Derivatives of all per-sample losses along one direction.

Let :math:`\ell(w)` be the vector of b losses. The rows of its Jacobian are the
gradients :math:`g_i^T`, so one product with a vector u, forward mode, returns every
:math:`g_i^T u`: the cost is about that of one gradient of the mean, the memory that of
the activations, and no gradient of a sample is ever formed. The loss must be a function
of its sample alone: no normalisation over the batch, fixed keys in stochastic layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxprs_in_params

from optim_jax.quasi_newton.memory import tree_dot
from optim_jax.trees.mesh_axes import explicit_mesh

# What JAX raises for an operation without a derivative or a transpose. A mistake of the
# caller raises earlier, where the losses are evaluated without one.
NO_RULE = (TypeError, ValueError, NotImplementedError, AssertionError)

GRADIENTS_AT_ONCE = 16


def directional_derivatives(
    per_sample_losses: Callable[[Any], jax.Array], params: Any, u: Any
) -> jax.Array:
    r"""All :math:`g_i^T u`, from one Jacobian-vector product.

    Where an operation has a reverse-mode derivative only (`jax.custom_vjp`), the
    pullback of the losses, a linear map, is transposed, which costs about two gradients
    of the mean. Where that fails too, for pullbacks that are not linear or have no
    transpose, the gradients of the samples are formed a few at a time, at the cost of b
    gradients of the mean.

    Args:
      per_sample_losses: function from params to (b,) losses.
      params: tree of real floating-point arrays.
      u: direction, a tree like the params; cast to their dtypes.

    Returns:
      (b,) products in the dtype of the losses.

    Raises:
      ValueError: the function does not return one real loss per sample.
      TypeError: the losses have neither a forward- nor a reverse-mode derivative.
    """
    losses = sample_losses(per_sample_losses, params)
    u = jax.tree.map(lambda p, leaf: leaf.astype(jnp.result_type(p)), params, u)

    def forward(params: Any, u: Any) -> jax.Array:
        return jax.jvp(per_sample_losses, (params,), (u,))[1]

    try:
        if not _only_reverse(jax.make_jaxpr(forward)(params, u).jaxpr):
            return forward(params, u)
        forward_error: Exception = TypeError("an operation has a custom_vjp only")
    except NO_RULE as error:
        forward_error = error
    try:
        _, pullback = jax.vjp(per_sample_losses, params)
        # Evaluated, because some operations refuse only there.
        jax.eval_shape(pullback, losses)
    except NO_RULE as error:
        raise TypeError(
            "per_sample_losses has no derivative in forward mode "
            f"({_first_line(forward_error)}) nor in reverse mode "
            f"({_first_line(error)})"
        ) from error
    try:
        transpose = jax.linear_transpose(lambda ct: pullback(ct)[0], losses)
        return transpose(u)[0]
    except NO_RULE:
        return map_gradients(
            per_sample_losses, params, lambda gradient: tree_dot(gradient, u)
        ).astype(losses.dtype)


def map_gradients(
    per_sample_losses: Callable[[Any], jax.Array],
    params: Any,
    function: Callable[[Any], jax.Array],
) -> jax.Array:
    """Applies a function to the gradient of every sample, a few samples at a time.

    Each gradient is a pullback through the losses of the whole sample: b times the cost
    of a gradient of the mean.

    Args:
      per_sample_losses: function from params to (b,) losses.
      params: tree of arrays.
      function: from a gradient, a tree like the params, to an array.

    Returns:
      (b, ...) array of the results.
    """
    losses, pullback = jax.vjp(per_sample_losses, params)
    positions = jnp.arange(losses.shape[0])

    def of_sample(position: jax.Array) -> jax.Array:
        return function(pullback(as_cotangent(positions == position, losses))[0])

    return lax.map(of_sample, positions, batch_size=GRADIENTS_AT_ONCE)


def as_cotangent(values: jax.Array, losses: jax.Array) -> jax.Array:
    """Casts replicated numbers to what the pullback of the losses takes."""
    values = values.astype(losses.dtype)
    if explicit_mesh(losses) is None:
        return values
    return jax.sharding.reshard(values, jax.typeof(losses).sharding.spec)


def sample_losses(
    per_sample_losses: Callable[[Any], jax.Array], params: Any
) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the losses, checked without computing them.

    Raises:
      ValueError: they are not a vector of real floating-point numbers.
    """
    losses = jax.eval_shape(per_sample_losses, params)
    if not isinstance(losses, jax.ShapeDtypeStruct):
        raise ValueError(
            "return one loss per sample, a single array of shape (b,); got "
            f"{type(losses).__name__}"
        )
    check_per_sample(losses.shape, None)
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(
            f"return one loss per sample, real floating-point; got {losses.dtype}"
        )
    return losses


def check_per_sample(losses_shape: tuple[int, ...], batch_size: int | None) -> None:
    """Refuses losses that are not one number per sample.

    Args:
      losses_shape: shape of what the loss function returned.
      batch_size: number of samples it was given; None for any.

    Raises:
      ValueError: the shape is not (batch_size,).
    """
    shape = tuple(losses_shape)
    if shape == ():
        raise ValueError(
            "return one loss per sample, not their mean or sum: the per-sample losses "
            f"must have shape ({_length(batch_size)},), got a scalar"
        )
    if len(shape) != 1 or batch_size not in (None, shape[0]):
        raise ValueError(
            "return one loss per sample: the per-sample losses must have shape "
            f"({_length(batch_size)},), got {shape}"
        )


def _only_reverse(jaxpr: Any) -> bool:
    """Whether a forward-mode derivative needs one that there is in reverse mode only.

    Of a `jax.custom_vjp` function, JAX traces a tangent, as an equation that cannot be
    compiled.
    """
    return any(
        equation.primitive.name == "custom_lin"
        or any(_only_reverse(inner) for inner in jaxprs_in_params(equation.params))
        for equation in jaxpr.eqns
    )


def _length(batch_size: int | None) -> str:
    return "b" if batch_size is None else str(batch_size)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
