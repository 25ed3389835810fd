r"""First trial step of the line search, and the scale of a step without a memory.

For gradients with Lipschitz constant L,

.. math::

  E F(w^+) \le F - \alpha \nabla F^T H \nabla F
    + \tfrac{L \alpha^2}{2} E \|H g\|^2, \qquad
  E \|H g\|^2 = \|H \nabla F\|^2
    \Big(1 + \frac{\operatorname{Var}(H g_i)}{b \|H \nabla F\|^2}\Big).

The step that is promised what a unit step would be with exact gradients is one over
that last factor. With the true gradient replaced by the sampled one and H treated as a
multiple of the identity it is

.. math:: \alpha_0 = \Big(1 + \frac{\operatorname{Var}(g_i)}{b \|g\|^2}\Big)^{-1}.

References:
  Bollapragada, Mudigere, Nocedal, Shi, Tang, 2018,
  https://arxiv.org/abs/1802.05374, equation 14.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.validation import check_choice

INIT_STEPS = ("variance", "variance_unbiased", "unit", "previous", "projected")
FIRST_STEPS = ("unit", "capped", "normalized")


def initial_step(
    rule: str,
    *,
    gradient_variance: Any,
    gradient_square: Any,
    variance: Any,
    r: Any,
    batch_size: Any,
    previous: Any,
    min_step: Any = 1e-3,
) -> jax.Array:
    r"""First trial step :math:`\alpha_0`.

    With :math:`\rho = \operatorname{Var}(g_i) / (b \|g\|^2)`:

    * `"variance"`: :math:`1 / (1 + \rho)`, the rule of the paper. Near one half where g
      is noise only, since then :math:`\|g\|^2 \approx \operatorname{Var}(g_i) / b`.
    * `"variance_unbiased"`: :math:`\max(\alpha_\min, 1 - \rho)`, which is the same rule
      with the noise taken out of :math:`\|g\|^2`; goes to zero with the signal.
    * `"projected"`: :math:`1 / (1 + V / (b r^2))` with the variance V of
      :math:`g_i^T H^2 g` and :math:`r = \|H g\|^2`; needs no variance of gradients.
    * `"unit"`: 1. `"previous"`: the accepted step of the iteration before.

    Args:
      rule: one of `INIT_STEPS`. Arguments that a rule does not name may be None.
      gradient_variance: Var(g_i), >= 0.
      gradient_square: :math:`\|g\|^2`.
      variance: V, of :math:`g_i^T H^2 g` about r.
      r: :math:`\|H g\|^2`.
      batch_size: b, may be traced.
      previous: the accepted step of the iteration before.
      min_step: :math:`\alpha_\min` of `"variance_unbiased"`, in (0, 1].

    Returns:
      The step. That a full batch begins at 1 is left to the caller.

    Raises:
      ValueError: `rule` is unknown.

    References:
      `"variance"`: arXiv 1802.05374, equation 14. `"projected"` and the value of
      `min_step` are this project's choices.
    """
    check_choice("init_step", rule, INIT_STEPS)
    if rule == "unit":
        return jnp.ones(())
    if rule == "previous":
        return jnp.asarray(previous)
    if rule == "projected":
        # Divided twice: r^2 underflows in float32 sooner than the quotients.
        return _damped(jnp.asarray(variance) / _positive(r), jnp.asarray(r), batch_size)
    variance = jnp.asarray(gradient_variance)
    if rule == "variance":
        return _damped(variance, jnp.asarray(gradient_square), batch_size)
    noise = variance / (batch_size * jnp.asarray(gradient_square))
    return jnp.maximum(min_step, 1 - jnp.where(variance == 0, 0, noise))


def first_step_scale(rule: str, gradient_square: Any) -> jax.Array:
    r"""Factor f of a step :math:`p = -f g` taken with an empty memory.

    Args:
      rule: `"unit"`: 1; `"capped"`: :math:`\min(1, 1 / \|g\|)`, as Optax's L-BFGS;
        `"normalized"`: :math:`1 / \|g\|`, under which a run does not depend on the
        scale of the loss.
      gradient_square: :math:`\|g\|^2`.

    Returns:
      The factor; 1 for a zero gradient.

    Raises:
      ValueError: `rule` is unknown.
    """
    check_choice("first_step", rule, FIRST_STEPS)
    square = jnp.asarray(gradient_square)
    if rule == "unit":
        return jnp.ones_like(square)
    if rule == "capped":
        square = jnp.maximum(square, 1)
    return 1 / jnp.sqrt(_positive(square))


def _damped(noise: jax.Array, signal: jax.Array, batch_size: Any) -> jax.Array:
    """1 / (1 + noise / (b signal)), without noise and signal 1."""
    damped = batch_size * signal
    return damped / _positive(damped + noise) + (damped + noise == 0)


def _positive(value: Any) -> jax.Array:
    """Replaces zero by one, so that a quotient 0 / 0 is 0."""
    value = jnp.asarray(value)
    return jnp.where(value == 0, 1, value)
