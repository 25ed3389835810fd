"""AdamW with Generalized Primal Averaging or Schedule-Free averaging built in."""

import warnings
from typing import Any, Literal

import jax
import optax

from optim_jax.averaging.adam import adam_base
from optim_jax.averaging.iterates import (
    average_primal,
    make_decay,
    make_precision,
)
from optim_jax.averaging.primal_averaging import DecayMode, Mask
from optim_jax.averaging.stability import stability_limit
from optim_jax.averaging.weights import exponential_weight, running_mean_weight
from optim_jax.typing import ScalarOrSchedule
from optim_jax.validation import (
    check_choice,
    check_constant,
    check_decay_rate,
    check_mu_y,
    check_nonnegative,
    check_value,
    concrete,
)


def gpa_adamw(
    learning_rate: ScalarOrSchedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    decay_mode: DecayMode = "shrink_z",
    mask: Mask = None,
    mu_x: ScalarOrSchedule = 0.9967,
    mu_y: ScalarOrSchedule = 0.7,
    averaging: Literal["gpa", "schedule_free"] = "gpa",
    weight_pow: ScalarOrSchedule = 0.0,
    weight_lr_power: ScalarOrSchedule = 2.0,
    use_max_lr: bool = True,
    mu_dtype: Any = None,
    state_dtype: Any = None,
    master: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW with Generalized Primal Averaging (GPA).

    Adam's update :math:`u_t = -\gamma_t \hat m_t / (\sqrt{\hat v_t} + \epsilon)` at the
    gradient of y moves z, x averages z, and y, the params that you hold, lies between
    them: see `gpa` for the recursion, `gpa_eval_params` for x.

    The defaults are those of the authors' code, except that the learning rate has none.
    Tune it afresh: start at the tuned one of AdamW and go up 2 and 4 times. The
    schedule (warmup and cosine) stays. Keep the lag mu_x / (1 - mu_x) at 1-5 % of the
    run; b1, b2, eps and weight_decay are as for AdamW, e.g. (0.9, 0.95) for
    transformers.

    ============== ==================
    paper          argument
    ============== ==================
    :math:`\gamma` ``learning_rate``
    :math:`\mu_x`  ``mu_x``
    :math:`\mu_y`  ``mu_y``
    ============== ==================

    Differs from the paper: the default decay, `"shrink_z"`, is that of the authors'
    code, which shrinks z while y stays; `"coupled_z"` is the recurrence of the paper.

    Args:
      learning_rate: float, array or schedule of the 0-based step, >= 0.
      b1: decay of the first moment in [0, 1).
      b2: decay of the second moment in [0, 1).
      eps: added to the root of the second moment, >= 0.
      weight_decay: decoupled decay, multiplied by the learning rate, >= 0.
      decay_mode: `"shrink_z"`, `"shrink_y"`, `"coupled_z"` or `"coupled_y"`; see `gpa`.
      mask: which leaves are decayed: a tree or prefix of bools, or a function from
        params to one.
      mu_x: smoothing of x in [0, 1); 1 freezes x and is accepted with a warning.
        Ignored by Schedule-Free.
      mu_y: how close y sits to x, in (0, 1].
      averaging: `"gpa"` for constant smoothing, `"schedule_free"` for the running mean
        of `schedule_free`. The latter keeps b1; set it to 0 for the classic method.
      weight_pow: power of the step in the weights of Schedule-Free.
      weight_lr_power: power of the learning rate in these weights.
      use_max_lr: whether these weights take the running maximum of the learning rate.
      mu_dtype: dtype of the first moment; None means that of the params, and float32
        for half-precision leaves.
      state_dtype: dtype of z, as in `gpa`.
      master: whether y is kept in float32, as in `gpa`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `GPAState`: for float32 leaves
      12 bytes per parameter (both moments and z).

    Raises:
      ValueError: an argument is out of range.

    References:
      Defazio, Mishchenko, Raman, Shi, Xiao, 2025, https://arxiv.org/abs/2512.17131.
    """
    check_choice("averaging", averaging, ("gpa", "schedule_free"))
    check_mu_y(mu_y)
    check_nonnegative(
        learning_rate=learning_rate,
        eps=eps,
        weight_pow=weight_pow,
        weight_lr_power=weight_lr_power,
    )
    for constant, value in (("b1", b1), ("b2", b2), ("eps", eps)):
        check_constant(constant, value)
    check_decay_rate("b1", b1)
    check_decay_rate("b2", b2)
    check_value("mu_x", mu_x, "in [0, 1]", lambda v: 0.0 <= v <= 1.0)
    if averaging == "gpa":
        _warn_about_smoothing(b1, mu_x, mu_y)
        average_weight = exponential_weight(mu_x)
    else:
        average_weight = running_mean_weight(
            learning_rate, weight_pow, weight_lr_power, use_max_lr
        )
    base, read_update = adam_base(learning_rate, b1, b2, eps, mu_dtype)
    return average_primal(
        "gpa_adamw",
        base,
        average_weight,
        mu_y=mu_y,
        base_params="z",
        decay=make_decay(weight_decay, learning_rate, decay_mode, mask),
        precision=make_precision(state_dtype, master),
        read_update=read_update,
    )


def _warn_about_smoothing(
    b1: ScalarOrSchedule, mu_x: ScalarOrSchedule, mu_y: ScalarOrSchedule
) -> None:
    """Warns of constants that freeze x or that make the pair of momenta resonate."""
    momentum, smoothing = concrete("b1", b1), concrete("mu_x", mu_x)
    interpolation = concrete("mu_y", mu_y)
    if smoothing == 1.0:
        warnings.warn("mu_x = 1 freezes x at its initial value", stacklevel=3)
        return
    if momentum is None or smoothing is None or interpolation is None:
        return
    limit = stability_limit(momentum, smoothing, interpolation)
    base_limit = 2 * (1 + momentum) / (1 - momentum)
    if limit < base_limit * (1 - 1e-6):
        warnings.warn(
            f"b1 = {momentum:g}, mu_x = {smoothing:g} and mu_y = {interpolation:g} "
            "resonate: on a quadratic the largest stable learning rate times curvature "
            f"is {limit:.3g}, and {base_limit:.3g} without averaging; take a larger "
            "mu_x, a smaller mu_y or a smaller b1",
            stacklevel=3,
        )
