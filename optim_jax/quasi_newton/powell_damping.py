"""Powell's damping: a gradient difference bent until the curvature is positive."""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.quasi_newton.memory import tree_dot
from optim_jax.validation import check_constant, check_value


def damp_pair(s: Any, y: Any, bs: Any, eps: float | jax.Array) -> tuple[Any, jax.Array]:
    r"""Mixes B s into y where the curvature along s is too small.

    .. math::

      \bar y = \theta y + (1 - \theta) B s, \quad
      \theta = \frac{(1 - \epsilon) s^\top B s}{s^\top B s - s^\top y}
      \text{ if } s^\top y < \epsilon s^\top B s \text{, else } 1

    Then :math:`s^\top \bar y = \epsilon s^\top B s` exactly where anything is damped.
    Everything made of the pair, the scale :math:`\gamma` of :math:`H_0` included, must
    come from :math:`\bar y`: with :math:`s^\top y < 0` the scale would be negative.

    Args:
      s: step, a tree of arrays.
      y: gradient difference along it.
      bs: B s for the present Hessian approximation B; where s'Bs is not positive,
        nothing is damped.
      eps: curvature that is kept, as a part of s'Bs, in (0, 1).

    Returns:
      The damped y, in the dtypes of y, and theta, 1 where y is unchanged.

    Raises:
      ValueError: `eps` is not in (0, 1).

    References:
      Powell, 1978, "Algorithms for nonlinear constraints that use Lagrangian
      functions"; procedure 18.2 of Nocedal, Wright, "Numerical Optimization".
    """
    check_damping_eps(eps)
    return mix(y, bs, tree_dot(s, y), tree_dot(s, bs), eps)


def mix(
    y: Any, bs: Any, sy: jax.Array, sbs: jax.Array, eps: float | jax.Array
) -> tuple[Any, jax.Array]:
    """The damped y and theta, from s'y and s'Bs."""
    eps = jnp.asarray(eps, sbs.dtype)
    is_low = (sy < eps * sbs) & (sbs > 0)
    theta = jnp.where(is_low, (1 - eps) * sbs / jnp.where(is_low, sbs - sy, 1), 1)

    def damp(leaf: jax.Array, image: jax.Array) -> jax.Array:
        mixed = theta * leaf + (1 - theta) * image
        return jnp.where(is_low, mixed, leaf).astype(leaf.dtype)

    return jax.tree.map(damp, y, bs), theta


def check_damping_eps(eps: float | jax.Array) -> None:
    """Refuses a part of the curvature that damping could not keep."""
    check_constant("eps", eps)
    check_value("eps", eps, "in (0, 1) for damping", lambda v: 0.0 < v < 1.0)
