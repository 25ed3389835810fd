r"""The recursion of primal averaging on one array.

Three sequences: z takes the base optimizer's updates, x is the average of z, and y,
where gradients are taken, lies between them:

.. math::

  y_t = \mu_y x_t + (1 - \mu_y) z_t, \quad
  z_{t+1} = z_t + u_t, \quad
  x_{t+1} = \mu_x x_t + (1 - \mu_x) z_{t+1}.

Only y and z are kept. Symbols: c = 1 - mu_x; u = the base's update (learning rate and
sign included); shrink = learning rate times weight decay.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

Scalar = float | jax.Array


def increment_of_y(
    z_next: jax.Array, y: jax.Array, u: jax.Array, c: Scalar, mu_y: Scalar
) -> jax.Array:
    """Returns the increment of y that belongs to the step z_next = z + u.

    It is c (z - y) + (1 - mu_x mu_y) u, written in terms of the new z: the two are
    equal, and this one lets the compiler overwrite a donated z first.
    """
    return c * (z_next - y) + (1.0 - c) * (1.0 - mu_y) * u


def move_mu_y(
    z: jax.Array, y: jax.Array, mu_y_old: Scalar, mu_y_new: Scalar
) -> jax.Array:
    """Returns the increment of y that puts it at a new mu_y while x stays.

    It is (mu_y_new - mu_y_old) (x - z), where x - z = (y - z) / mu_y_old.
    """
    return (mu_y_new - mu_y_old) / mu_y_old * (y - z)


def averaged_point(y: jax.Array, z: jax.Array, mu_y: Scalar) -> jax.Array:
    """Recovers x from y and z."""
    return y + (1.0 - 1.0 / mu_y) * (z - y)


def gradient_point(x: jax.Array, z: jax.Array, mu_y: Scalar) -> jax.Array:
    """Recovers y from x and z."""
    return x + (1.0 - mu_y) * (z - x)


def advance_displacement(
    w: jax.Array, u: jax.Array, mu_x: Scalar, mu_y_old: Scalar, mu_y_new: Scalar
) -> tuple[jax.Array, jax.Array]:
    """Advances w = z - x; needs neither the parameters nor a division by mu_y.

    Returns:
      The increment of y, u + mu_y_old w - mu_y_new w_next with the two terms in w
      combined first, and the new w.
    """
    w_next = mu_x * (w + u)
    increment = mu_y_old * (1.0 - mu_x) * w + (1.0 - mu_x * mu_y_old) * u
    return increment + (mu_y_old - mu_y_new) * w_next, w_next


# A decay rule maps (z, y, u, shrink) to what the recursion is given instead of
# (z, y, u), and to the move of y that this substitution leaves out.
DecayRule = Callable[
    [jax.Array, jax.Array, jax.Array, Scalar],
    tuple[jax.Array, jax.Array, jax.Array, jax.Array | None],
]


def _shrink_z(z, y, u, shrink):
    return (1.0 - shrink) * z, y, u, None


def _shrink_y(z, y, u, shrink):
    return z, (1.0 - shrink) * y, u, -shrink * y


def _coupled_z(z, y, u, shrink):
    return z, y, u - shrink * z, None


def _coupled_y(z, y, u, shrink):
    return z, y, u - shrink * y, None


DECAY_RULES: dict[str, DecayRule] = {
    "shrink_z": _shrink_z,
    "shrink_y": _shrink_y,
    "coupled_z": _coupled_z,
    "coupled_y": _coupled_y,
}


class Coefficients(NamedTuple):
    """The scalars of one step.

    Attributes:
      c: 1 - mu_x.
      mu_y: the mu_y at which y lies before the step.
      mu_y_next: the one at which it shall lie after; `None` if it is constant.
      shrink: learning rate times weight decay; `None` without decay.
    """

    c: Scalar
    mu_y: Scalar
    mu_y_next: Scalar | None
    shrink: Scalar | None


def step_z(
    z: jax.Array,
    y: jax.Array,
    u: jax.Array,
    shrink: Scalar | None,
    decay_rule: DecayRule | None,
) -> jax.Array:
    """Returns z after the step.

    Args:
      z: base sequence.
      y: point where the gradient was taken.
      u: update of the base, without the decay of `decay_rule`.
      shrink: learning rate times weight decay.
      decay_rule: one of `DECAY_RULES`, or `None`.
    """
    if decay_rule is not None and shrink is not None:
        z, _, u, _ = decay_rule(z, y, u, shrink)
    return z + u


def step_y(
    z: jax.Array,
    z_next: jax.Array,
    y: jax.Array,
    u: jax.Array,
    coefficients: Coefficients,
    decay_rule: DecayRule | None,
) -> jax.Array:
    """Returns the increment of y, decay and change of mu_y included.

    Args:
      z: base sequence before the step.
      z_next: what `step_z` returned.
      y: point where the gradient was taken.
      u: update of the base, without the decay of `decay_rule`.
      coefficients: the scalars of this step.
      decay_rule: one of `DECAY_RULES`, or `None`.
    """
    c, mu_y, mu_y_next, shrink = coefficients
    drift = None
    if decay_rule is not None and shrink is not None:
        _, y, u, drift = decay_rule(z, y, u, shrink)
    increment = increment_of_y(z_next, y, u, c, mu_y)
    if mu_y_next is not None:
        increment = increment + move_mu_y(z_next, y + increment, mu_y, mu_y_next)
    return increment if drift is None else increment + drift
