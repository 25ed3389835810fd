"""Steepest descent in the largest entry: signSGD, and Signum with momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim_jax.steepest_descent.descent import Mask, descend
from optim_jax.steepest_descent.first_moment import (
    average,
    needs_buffer,
    read_decay_rate,
    wide_dtype,
    zero_moment,
)
from optim_jax.steepest_descent.precision import check_real_leaves
from optim_jax.trees.matrices import is_absent
from optim_jax.typing import Params, ScalarOrSchedule, Updates


class SignumState(NamedTuple):
    """State of `scale_by_signum`."""

    momentum: Any  # m_t like the params, mu_dtype or at least float32; None for b1 = 0


def sign_sgd(
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SignSGD: steepest descent in the :math:`\ell_\infty` norm.

    .. math::

      x_{t+1} = x_t - \gamma_t (\operatorname{sign}(g_t) + \lambda x_t)

    The sign maximises :math:`\langle g, p \rangle` over :math:`\|p\|_\infty \le 1`,
    where it is :math:`\|g\|_1`. The sign of zero is zero. There is no state but the
    counter of a schedule.

    Args:
      learning_rate: float, array or schedule of the 0-based step, >= 0: the change of
        every entry.
      weight_decay: decoupled decay :math:`\lambda`, multiplied by the learning rate,
        >= 0.
      mask: which leaves are decayed: a tree or prefix of bools, or a function from
        params to one.

    Returns:
      An `optax.GradientTransformationExtraArgs` whose `update` needs params.

    Raises:
      ValueError: an argument is out of range; a leaf is not real floating-point.

    References:
      Bernstein, Wang, Azizzadenesheli, Anandkumar, 2018,
      https://arxiv.org/abs/1802.04434.
      Naganuma, Gupta, Briki, Mitliagkas, Rish, Raman, Shi, 2026,
      https://arxiv.org/abs/2602.03001.
    """
    direction = scale_by_signum(0.0)
    return descend("signSGD", direction, learning_rate, weight_decay, mask)


def signum(
    learning_rate: ScalarOrSchedule,
    b1: float | jax.Array = 0.9,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    mu_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Signum: the sign of an average of gradients, with decoupled decay.

    .. math::

      m_{t+1} = b_1 m_t + (1 - b_1) g_t, \quad
      x_{t+1} = x_t - \gamma_t (\operatorname{sign}(m_{t+1}) + \lambda x_t)

    Args:
      learning_rate: float, array or schedule of the 0-based step, >= 0: the change of
        every entry.
      b1: decay of the average in [0, 1). The number 0 keeps no buffer; with
        `optax.inject_hyperparams` name `b1` among `static_args` for that.
      weight_decay: decoupled decay :math:`\lambda`, multiplied by the learning rate,
        >= 0.
      mask: which leaves are decayed: a tree or prefix of bools, or a function from
        params to one.
      mu_dtype: dtype of the average; None means that of the params, and float32 for
        half-precision leaves.

    Returns:
      An `optax.GradientTransformationExtraArgs` whose `update` needs params. Its state
      holds a `SignumState`: 4 bytes per parameter for float32 leaves.

    Raises:
      ValueError: an argument is out of range; a leaf is not real floating-point.

    References:
      Bernstein, Wang, Azizzadenesheli, Anandkumar, 2018,
      https://arxiv.org/abs/1802.04434.
      Naganuma, Gupta, Briki, Mitliagkas, Rish, Raman, Shi, 2026,
      https://arxiv.org/abs/2602.03001.
    """
    direction = scale_by_signum(b1, mu_dtype=mu_dtype)
    return descend("Signum", direction, learning_rate, weight_decay, mask)


def scale_by_signum(
    b1: float | jax.Array = 0.9, *, mu_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""The direction of `signum`, :math:`\operatorname{sign}(m_{t+1})`, ascending.

    The average starts at zero and is not debiased, which would not change its sign.

    Args:
      b1: decay of the average in [0, 1). The number 0 keeps no buffer.
      mu_dtype: dtype of the average, as in `signum`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `SignumState`. A leaf without a
      gradient (None) keeps its average.

    Raises:
      ValueError: `b1` is out of range; a leaf is not real floating-point.
    """
    b1 = read_decay_rate(b1)

    def init(params: Params) -> SignumState:
        check_real_leaves("scale_by_signum", params)
        if not needs_buffer(b1):
            return SignumState(None)
        return SignumState(jax.tree.map(lambda p: zero_moment(p, mu_dtype), params))

    def update(
        updates: Updates, state: Any, params: Any = None, **_: Any
    ) -> tuple[Updates, SignumState]:
        del params
        if not needs_buffer(b1):
            return jax.tree.map(jnp.sign, updates), state

        def move(moment: jax.Array, gradient: Any) -> Any:
            if is_absent(gradient):
                return moment
            return average(moment, gradient.astype(wide_dtype(gradient)), b1)

        def sign(gradient: Any, moment: jax.Array) -> Any:
            return jnp.sign(moment).astype(gradient.dtype)

        moments = jax.tree.map(move, state.momentum, updates)
        directions = jax.tree.map(
            lambda g, m: g if is_absent(g) else sign(g, m),
            updates,
            moments,
            is_leaf=is_absent,
        )
        moments = jax.tree.map(
            lambda new, old: new.astype(old.dtype), moments, state.momentum
        )
        return directions, SignumState(moments)

    return optax.GradientTransformationExtraArgs(init, update)
