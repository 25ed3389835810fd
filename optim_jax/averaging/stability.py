r"""Linear stability of primal averaging around a base with momentum, and its memory."""

import math

from optim_jax.validation import check_decay_rate, check_value


def mu_x_from_inner_steps(inner_steps: float, momentum: float = 0.9) -> float:
    r"""Returns the smoothing of x that matches a number of DiLoCo inner steps.

    :math:`\mu_x = \text{momentum}^{1/H}`: after H steps the memory of x has faded by
    DiLoCo's outer momentum.

    Args:
      inner_steps: H > 0; 16, 32 and 64 are the usual ones.
      momentum: outer momentum in (0, 1).

    Returns:
      mu_x in (0, 1), e.g. 0.9967 for 32 steps.

    Raises:
      ValueError: an argument is out of range.

    References:
      Defazio et al., Smoothing DiLoCo with Primal Averaging, 2025, arXiv 2512.17131.
    """
    check_value(
        "inner_steps", inner_steps, "finite and > 0", lambda v: 0 < v < math.inf
    )
    check_value("momentum", momentum, "in (0, 1)", lambda v: 0.0 < v < 1.0)
    return float(momentum) ** (1.0 / float(inner_steps))


def inner_steps_from_mu_x(mu_x: float, momentum: float = 0.9) -> float:
    """Returns the number of DiLoCo inner steps that a smoothing of x matches.

    Args:
      mu_x: smoothing of x in (0, 1).
      momentum: outer momentum in (0, 1).

    Returns:
      H, not rounded; the inverse of `mu_x_from_inner_steps`.

    Raises:
      ValueError: an argument is out of range.
    """
    check_value("mu_x", mu_x, "in (0, 1)", lambda v: 0.0 < v < 1.0)
    check_value("momentum", momentum, "in (0, 1)", lambda v: 0.0 < v < 1.0)
    return math.log(momentum) / math.log(mu_x)


def stability_limit(b1: float, mu_x: float, mu_y: float) -> float:
    r"""Returns the smallest learning rate times curvature that is unstable.

    The recursion is that of primal averaging around a base with the momentum of Adam,
    without bias correction, on a quadratic of curvature :math:`h / lr`:

    .. math::

      y = \mu_y x + (1 - \mu_y) z, \quad m \leftarrow b_1 m + (1 - b_1) h y, \quad
      z \leftarrow z - m, \quad x \leftarrow \mu_x x + (1 - \mu_x) z.

    With :math:`k = (1 - b_1) h` its characteristic polynomial is

    .. math::

      (\lambda - 1)(\lambda - b_1)(\lambda - \mu_x)
      + k \lambda \left[(1 - \mu_x \mu_y) \lambda - \mu_x (1 - \mu_y)\right],

    and Jury's conditions for roots inside the unit circle are linear in k: the limit
    is the first k that breaks one of them. The base alone (mu_x = 0) has the limit
    2 (1 + b1) / (1 - b1). This analysis is derived here, not read in the paper.

    Args:
      b1: momentum of the base in [0, 1).
      mu_x: smoothing of x in [0, 1).
      mu_y: interpolation between z and x in [0, 1].

    Returns:
      The limit; for larger values the spectral radius exceeds 1.

    Raises:
      ValueError: an argument is out of range.
    """
    check_decay_rate("b1", b1)
    check_decay_rate("mu_x", mu_x)
    check_value("mu_y", mu_y, "in [0, 1]", lambda v: 0.0 <= v <= 1.0)
    b1, mu_x, mu_y = float(b1), float(mu_x), float(mu_y)

    # A root leaves through -1.
    limits = [2 * (1 + b1) * (1 + mu_x) / (1 + mu_x - 2 * mu_x * mu_y)]
    # A complex pair leaves: |a0 a2 - a1| = 1 - a0^2 with a0 a2 - a1 = const + slope k.
    slope = mu_x * (1 - mu_y) - b1 * mu_x * (1 - mu_x * mu_y)
    if slope > 0:
        limits.append((1 - b1 * mu_x) * (1 + b1) * (1 + mu_x) / slope)
    elif slope < 0:
        limits.append((1 - b1 * mu_x) * (1 - b1) * (1 - mu_x) / -slope)
    return min(limits) / (1 - b1)
