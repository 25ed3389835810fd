"""Generalized Primal Averaging and Schedule-Free around any base optimizer."""

from typing import Any, Literal

import optax

from optim_jax.averaging.iterates import (
    average_primal,
    make_decay,
    make_precision,
)
from optim_jax.averaging.weights import exponential_weight, running_mean_weight
from optim_jax.typing import ScalarOrSchedule
from optim_jax.validation import check_decay_rate, check_nonnegative

DecayMode = Literal["shrink_z", "shrink_y", "coupled_z", "coupled_y"]
Mask = Any  # tree or prefix of bools, or params -> such a tree


def gpa(
    base: optax.GradientTransformation,
    *,
    mu_x: ScalarOrSchedule = 0.9967,
    mu_y: ScalarOrSchedule = 0.7,
    base_params: Literal["z", "y"] = "z",
    weight_decay: ScalarOrSchedule = 0.0,
    decay_mode: DecayMode = "shrink_z",
    learning_rate: ScalarOrSchedule | None = None,
    mask: Mask = None,
    state_dtype: Any = None,
    master: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Generalized Primal Averaging (GPA) around a base optimizer.

    Per leaf, with u the base's update (learning rate and sign included),

    .. math::

      y_t = \mu_y x_t + (1 - \mu_y) z_t, \quad
      u_t = \text{base}(\nabla f(y_t)), \quad
      z_{t+1} = z_t + u_t, \quad
      x_{t+1} = \mu_x x_t + (1 - \mu_x) z_{t+1}.

    The params that you hold, differentiate and pass to `update` are y. Evaluate, report
    and ship x. For example, change this::

      optimizer = optax.adamw(schedule)
      loss(params)

    to::

      optimizer = optim_jax.gpa(optax.adamw(schedule))
      loss(optim_jax.gpa_eval_params(state, params))

    GPA needs a learning-rate schedule, and usually a larger learning rate than the base
    alone. It must come last in a chain: whatever edits its updates (clipping, extra
    decay) changes y but not z and moves x by 1/mu_y times the edit. Gradient clipping
    goes before it or inside the base.

    Momentum inside the base and GPA are two momenta in series; see `stability_limit`.
    Bases that evaluate the loss along their step (L-BFGS with a line search, Polyak's
    step, SAM) would see it at y and move z: they are not supported, and refused where
    their state shows it. For mu_y below 0.5, or where half-precision rounding of y
    matters, prefer `scale_by_primal_averaging`, which does not divide by mu_y.

    Weight decay. A base that decays its parameters sees z (`base_params="z"`), as in
    the recurrence of the paper, or y (`"y"`), as in Optax's Schedule-Free.
    `weight_decay` here comes on top; with shrink = learning_rate * weight_decay:

    * `"shrink_z"`: z is replaced by (1 - shrink) z while y stays (the authors' code);
    * `"shrink_y"`: y is replaced by (1 - shrink) y while z stays;
    * `"coupled_z"`: u gains - shrink z;
    * `"coupled_y"`: u gains - shrink y.

    They are not interchangeable: for instance `"shrink_y"` never decays z.

    Args:
      base: any Optax transformation that returns finished updates. It carries its own
        learning rate. Its statistics of half-precision leaves are float32.
      mu_x: smoothing of x in [0, 1), or a schedule of the 0-based step;
        `mu_x_from_inner_steps` translates a number of DiLoCo inner steps.
      mu_y: how close y sits to x, in (0, 1], or a schedule of the 0-based step. When it
        changes, y moves and x stays.
      base_params: which sequence the base is given as params, `"z"` or `"y"`.
      weight_decay: decay >= 0 of the wrapper itself; needs `learning_rate`.
      decay_mode: one of the four modes above.
      learning_rate: what `weight_decay` is multiplied with; otherwise unused.
      mask: which leaves the wrapper decays: a tree or prefix of bools, or a function
        from params to one.
      state_dtype: dtype of z for real leaves; None means that of the params, and
        float32 for half-precision leaves.
      master: whether to keep y in at least float32 in the state: True for all leaves,
        False for none, None for half-precision leaves. Parameters that change behind
        the optimizer's back are overwritten from the master: call `init` again.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `GPAState`. Its `init` uses the
      values of the params, and its `update` needs params.

    Raises:
      ValueError: an argument is out of range.

    References:
      Defazio, Mishchenko, Raman, Shi, Xiao, 2025, https://arxiv.org/abs/2512.17131.
    """
    check_decay_rate("mu_x", mu_x)
    return average_primal(
        "gpa",
        base,
        exponential_weight(mu_x),
        mu_y=mu_y,
        base_params=base_params,
        decay=make_decay(weight_decay, learning_rate, decay_mode, mask),
        precision=make_precision(state_dtype, master),
    )


def schedule_free(
    base: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    mu_y: ScalarOrSchedule = 0.9,
    weight_pow: ScalarOrSchedule = 0.0,
    weight_lr_power: ScalarOrSchedule = 2.0,
    use_max_lr: bool = True,
    base_params: Literal["z", "y"] = "z",
    weight_decay: ScalarOrSchedule = 0.0,
    decay_mode: DecayMode = "shrink_z",
    mask: Mask = None,
    state_dtype: Any = None,
    master: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Schedule-Free learning as primal averaging with a running mean.

    The recursion of `gpa` with :math:`\mu_{x,k} = 1 - c_k`, where for the k-th step,
    k = 1, 2, ...,

    .. math::

      c_k = \omega_k / \sum_{i \le k} \omega_i, \quad
      \omega_k = k^r \left(\max_{i \le k} \gamma_i\right)^p.

    r is `weight_pow`, p `weight_lr_power`, :math:`\gamma` the learning rate and `mu_y`
    the interpolation that Schedule-Free calls beta. As long as the sum of the weights
    is 0 (a warmup that starts at 0), c is 0.

    Args:
      base: any Optax transformation with its own learning rate; set the momentum of
        Adam to 0 for the classic method.
      learning_rate: learning rate of the base, float, array or schedule; gives the
        weights and multiplies `weight_decay`.
      mu_y: how close y sits to x, in (0, 1].
      weight_pow: r >= 0.
      weight_lr_power: p >= 0.
      use_max_lr: False takes the current learning rate instead of its running maximum.
      base_params: as in `gpa`.
      weight_decay: as in `gpa`.
      decay_mode: as in `gpa`.
      mask: as in `gpa`.
      state_dtype: as in `gpa`.
      master: as in `gpa`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `GPAState`.

    Raises:
      ValueError: an argument is out of range.

    References:
      Defazio et al., The Road Less Scheduled, 2024, https://arxiv.org/abs/2405.15682.
      Defazio, Mishchenko, Raman, Shi, Xiao, 2025, https://arxiv.org/abs/2512.17131.
    """
    check_nonnegative(
        learning_rate=learning_rate,
        weight_pow=weight_pow,
        weight_lr_power=weight_lr_power,
    )
    return average_primal(
        "schedule_free",
        base,
        running_mean_weight(learning_rate, weight_pow, weight_lr_power, use_max_lr),
        mu_y=mu_y,
        base_params=base_params,
        decay=make_decay(weight_decay, learning_rate, decay_mode, mask),
        precision=make_precision(state_dtype, master),
    )
