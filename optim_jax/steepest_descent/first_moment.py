"""The exponential average of gradients, Nesterov's look ahead and the bias of both."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.validation import as_static, check_constant, check_decay_rate


def read_decay_rate(b1: Any) -> Any:
    """Checks the decay rate of a first moment.

    Returns:
      A Python float, or an array that may change between steps.

    Raises:
      ValueError: it is a schedule or not in [0, 1).
    """
    check_constant("b1", b1)
    check_decay_rate("b1", b1)
    return as_static("b1", b1)


def needs_buffer(b1: Any) -> bool:
    """Whether the average differs from the gradient; an array may become nonzero."""
    return not (isinstance(b1, float) and b1 == 0.0)


def wide_dtype(leaf: Any) -> Any:
    """The leaf's dtype, or float32 for a half-precision leaf."""
    return jnp.promote_types(jnp.result_type(leaf), jnp.float32)


def zero_moment(leaf: Any, mu_dtype: Any) -> jax.Array:
    """A moment that starts at zero, where the leaf lies."""
    return jnp.zeros_like(leaf, dtype=mu_dtype or wide_dtype(leaf))


def average(moment: jax.Array, gradient: jax.Array, b1: Any) -> jax.Array:
    r""":math:`m_t = b_1 m_{t-1} + (1 - b_1) g_t`, not rounded to the moment's dtype."""
    b1 = scalar_like(b1, gradient)
    return (1.0 - b1) * gradient + b1 * moment


def debiased(
    moment: jax.Array, gradient: jax.Array, b1: Any, count: jax.Array, nesterov: bool
) -> jax.Array:
    r"""The average without the bias of its start at zero, as in `optax.contrib.muon`.

    After step t = 1, 2, ..., :math:`m_t / (1 - b_1^t)`, or with Nesterov's look ahead

    .. math::

      b_1 \frac{m_t}{1 - b_1^{t+1}} + (1 - b_1) \frac{g_t}{1 - b_1^t}.

    Args:
      moment: m_t.
      gradient: g_t.
      b1: decay rate, not the number 0, with which m_t is g_t.
      count: t.
      nesterov: whether to look ahead.
    """
    b1, t = scalar_like(b1, gradient), count.astype(gradient.dtype)
    if not nesterov:
        return moment / _one_minus_power(b1, t)
    ahead = b1 * (moment / _one_minus_power(b1, t + 1.0))
    return ahead + (1.0 - b1) * (gradient / _one_minus_power(b1, t))


def scalar_like(scalar: Any, array: jax.Array) -> Any:
    """A scalar that does not promote an array; Python floats never do."""
    return scalar if isinstance(scalar, float) else jnp.asarray(scalar, array.dtype)


def _one_minus_power(base: Any, exponent: jax.Array) -> jax.Array:
    """1 - base^exponent without cancellation; base a float > 0 or an array."""
    log = math.log(base) if isinstance(base, float) else jnp.log(base)
    return -jnp.expm1(exponent * log)
