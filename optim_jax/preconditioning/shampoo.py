"""The ready-made optimizers: Shampoo, SOAP and KL-Shampoo."""

from typing import Any

import jax.numpy as jnp
import optax

from optim_jax.preconditioning.finite import widened_and_finite
from optim_jax.preconditioning.momentum import scale_by_momentum
from optim_jax.preconditioning.preconditioners import (
    EigenvalueCorrected,
    Graft,
    KLRootInverse,
    Momentum,
    Preconditioner,
    RootInverse,
)
from optim_jax.preconditioning.scaling import scale_by_shampoo
from optim_jax.typing import ScalarOrSchedule
from optim_jax.validation import check_value
from optim_jax.weight_decay import WeightDecayType, add_decay, decay_coefficient

# What `optax.inject_hyperparams` must not trace: it changes shapes or code.
SHAMPOO_STATIC_ARGS = (
    "relative_epsilon",
    "weight_decay_type",
    "mask",
    "max_preconditioner_dim",
    "target_dimensionality",
    "matrix_axes",
    "precondition_1d",
    "skip_dims_larger_than",
    "start_preconditioning_step",
    "bias_correction",
    "grafting",
    "preconditioner",
    "momentum",
    "refresh",
    "mesh",
    "axis",
    "param_specs",
    "comm_dtype",
    "factor_dtype",
    "inverse_dtype",
    "mu_dtype",
    "precision",
    "skip_nonfinite",
    "exact_reference_defaults",
)

# The published rule takes roots of order 2 on both sides of a matrix.
KL_SHAMPOO = KLRootInverse(inverse_exponent_override={2: 0.5})

# What the authors' code starts from, where ours differs.
_REFERENCE_DEFAULTS = {"b2": 1.0, "grafting": None, "relative_epsilon": 0.0}


def shampoo(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: Any = None,
    eps: Any = 1e-12,
    relative_epsilon: float = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_type: WeightDecayType = "decoupled",
    mask: Any = None,
    peak_lr: Any = None,
    max_preconditioner_dim: float = 1024,
    target_dimensionality: float = 1,
    matrix_axes: Any = None,
    precondition_1d: bool = True,
    skip_dims_larger_than: float | None = None,
    precondition_frequency: Any = 1,
    start_preconditioning_step: Any = -1,
    bias_correction: bool = True,
    grafting: str | Graft | None = "adam",
    preconditioner: Preconditioner = RootInverse(),  # noqa: B008 (frozen)
    momentum: Momentum | None = None,
    refresh: str = "cond",
    mesh: Any = None,
    axis: Any = None,
    param_specs: Any = None,
    comm_dtype: Any = None,
    factor_dtype: Any = jnp.float32,
    inverse_dtype: Any = jnp.float32,
    mu_dtype: Any = None,
    precision: str = "highest",
    skip_nonfinite: bool = True,
    exact_reference_defaults: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Distributed Shampoo: gradients preconditioned along every dim of a block.

    For a matrix block with gradient G and filtered gradient :math:`\hat G`,

    .. math::

      L \leftarrow \beta_2 L + (1 - \beta_2) G G^T, \quad
      R \leftarrow \beta_2 R + (1 - \beta_2) G^T G, \quad
      W \leftarrow W - \eta L^{-1/4} \hat G R^{-1/4},

    where the roots are refreshed every `precondition_frequency` steps and, with
    grafting, each block's update gets the norm of another method's. A block of order o
    has o factors and roots of order 2 o. For example, change this::

      optimizer = optax.adamw(schedule, weight_decay=0.1)

    to::

      optimizer = optim_jax.shampoo(
          schedule, weight_decay=0.1, precondition_frequency=10
      )

    With Adam grafting, the default, Adam's learning rate is the place to start.

    Small matrices become vectors. Neighbouring dims are merged while their product is
    at most `max_preconditioner_dim`, so a (16, 32) kernel is a vector of 512 entries
    with one full factor, a better approximation than two sides. Whoever expects two
    sides sets `target_dimensionality=2`. `plan_preconditioners` prints what becomes of
    each leaf.

    Shampoo's matrix products cost about 8 * max_preconditioner_dim FLOPs per parameter
    and step, whatever the batch: it is cheap where a step sees many tokens.

    Sharding. With a `mesh`, blocks and their statistics are spread over its axes, and
    the directions are gathered once per step; the result is that of one device.

    Args:
      learning_rate: step size, or a schedule of the 0-based step.
      b1: decay of the first moment in [0, 1); 0 means that there is none.
      b2: decay of the factors in [0, 1]; 1 sums them up (AdaGrad).
      b3: weight in [0, 1) of the old moment in the direction; None means `b1`.
      eps: added to the eigenvalues of the factors, > 0.
      relative_epsilon: r in [0, 1); the perturbation is at least r times the Frobenius
        norm of the factor, which keeps float32 roots of singular factors out of the
        rounding noise. 0 leaves `eps` alone.
      weight_decay: decay >= 0, or a schedule of the 0-based step.
      weight_decay_type: `"l2"` adds it to the gradient, `"decoupled"` shrinks by
        learning_rate * weight_decay, `"independent"` by weight_decay * learning_rate /
        peak_lr, `"corrected"` by weight_decay * learning_rate^2 / peak_lr.
      mask: which leaves decay: a tree or prefix of bools, or a function from params.
      peak_lr: largest learning rate, > 0, for the last two types; None means a
        `learning_rate` that is one number.
      max_preconditioner_dim: merging limit and block size, an integer >= 1 or inf.
      target_dimensionality: merging stops at this many dims; inf merges nothing.
      matrix_axes: tree of `MatrixAxes` like the params, None for single leaves as they
        are stored, or a function from params to it. A matrix leaf is seen as
        (batch, outputs, inputs), and every batch entry is a parameter of its own.
      precondition_1d: False gives no factor to leaves with at most one dim above 1:
        their direction is the filtered gradient, grafted, or Adam's under SOAP.
      skip_dims_larger_than: merged dims above this get no factor; None for no limit.
      precondition_frequency: steps between refreshes, >= 1.
      start_preconditioning_step: step (from 1) of the first refresh, at least the
        frequency; -1 means the frequency. Before it the grafting method acts.
      bias_correction: of the first moment and the factors.
      grafting: `"sgd"`, `"adagrad"`, `"rmsprop"`, `"adam"`, a `Graft`, or None. Adam by
        name shares `b2` and has eps 1e-8.
      preconditioner: `RootInverse()`, or another one of the constructors here.
      momentum: a `Momentum` on the finished direction, or None.
      refresh: `"cond"` refreshes everything every so many steps; `"staggered"` a share
        at each step; `"external"` never: call `refresh_preconditioners`.
      mesh: mesh to spread blocks over; None for no sharding.
      axis: name or names of its axes to use; None for all.
      param_specs: tree of `PartitionSpec` like the params, the sharding of the
        updates; None for replicated.
      comm_dtype: dtype of the directions when they are gathered; None for their own.
      factor_dtype: dtype of the factors and of SOAP's second moment.
      inverse_dtype: dtype of roots and bases, and of the products with them.
      mu_dtype: dtype of the first moment; None for the params', at least float32.
      precision: of these products: `"highest"`, `"high"` or `"default"`. Statistics
        and solvers always use the highest.
      skip_nonfinite: a leaf whose gradient holds a non-finite number keeps its state
        and its parameters for this step, which is counted.
      exact_reference_defaults: the defaults of the authors' code: b2 = 1, no grafting,
        no relative epsilon.

    Returns:
      An `optax.GradientTransformationExtraArgs`; see `ShampooState` for its state.

    Raises:
      ValueError: an argument is out of range, or does not go with another. What needs
        the shapes of the leaves is checked in `init`.

    References:
      Shi et al., 2023, https://arxiv.org/abs/2309.06497;
      Gupta, Koren, Singer, 2018, https://arxiv.org/abs/1802.09568.
    """
    if exact_reference_defaults:
        given = {"b2": b2, "grafting": grafting, "relative_epsilon": relative_epsilon}
        b2, grafting, relative_epsilon = _reference_defaults(
            given, b2=0.999, grafting="adam"
        )
    check_value(
        "learning_rate", learning_rate, "finite", lambda v: abs(v) < float("inf")
    )
    coefficient = decay_coefficient(
        weight_decay_type, weight_decay, learning_rate, peak_lr
    )
    if momentum is not None and not isinstance(momentum, Momentum):
        raise ValueError(f"momentum must be None or a Momentum, got {momentum!r}")
    direction = scale_by_shampoo(
        b1=b1,
        b2=b2,
        b3=b3,
        eps=eps,
        relative_epsilon=relative_epsilon,
        grafting=grafting,
        max_preconditioner_dim=max_preconditioner_dim,
        target_dimensionality=target_dimensionality,
        matrix_axes=matrix_axes,
        precondition_1d=precondition_1d,
        skip_dims_larger_than=skip_dims_larger_than,
        precondition_frequency=precondition_frequency,
        start_preconditioning_step=start_preconditioning_step,
        bias_correction=bias_correction,
        preconditioner=preconditioner,
        refresh=refresh,
        mesh=mesh,
        axis=axis,
        param_specs=param_specs,
        comm_dtype=comm_dtype,
        factor_dtype=factor_dtype,
        inverse_dtype=inverse_dtype,
        mu_dtype=mu_dtype,
        precision=precision,
        skip_nonfinite=False,  # decided for the whole chain
    )
    decays = callable(weight_decay) or not (
        isinstance(weight_decay, (int, float)) and weight_decay == 0.0
    )
    decay = add_decay(coefficient, mask) if decays else None
    before = weight_decay_type == "l2"
    members = [
        decay if before else None,
        direction,
        None if before else decay,
        None if momentum is None else scale_by_momentum(momentum),
        optax.scale_by_learning_rate(learning_rate),  # type: ignore[arg-type]
    ]
    chain = optax.chain(*(member for member in members if member is not None))
    return widened_and_finite(chain, skip_nonfinite=skip_nonfinite)


def soap(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Any = 0.95,
    b2: Any = 0.95,
    b3: Any = None,
    eps: Any = 1e-8,
    relative_epsilon: float = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_type: WeightDecayType = "decoupled",
    mask: Any = None,
    peak_lr: Any = None,
    max_preconditioner_dim: float = 1024,
    target_dimensionality: float = 1,
    matrix_axes: Any = None,
    precondition_1d: bool = True,
    skip_dims_larger_than: float | None = None,
    precondition_frequency: Any = 10,
    start_preconditioning_step: Any = -1,
    bias_correction: bool = True,
    grafting: str | Graft | None = None,
    preconditioner: Preconditioner = EigenvalueCorrected(),  # noqa: B008 (frozen)
    momentum: Momentum | None = None,
    refresh: str = "cond",
    mesh: Any = None,
    axis: Any = None,
    param_specs: Any = None,
    comm_dtype: Any = None,
    factor_dtype: Any = jnp.float32,
    inverse_dtype: Any = jnp.float32,
    mu_dtype: Any = None,
    precision: str = "highest",
    skip_nonfinite: bool = True,
    exact_reference_defaults: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""SOAP: Adam in the eigenbasis of Shampoo's factors.

    For a matrix block with gradient G, filtered gradient :math:`\hat G` and bases
    :math:`Q_L, Q_R` of the factors of `shampoo`,

    .. math::

      V \leftarrow \beta_2 V + (1 - \beta_2) (Q_L^T G Q_R)^2, \quad
      W \leftarrow W - \eta\, Q_L \frac{Q_L^T \hat G Q_R}{\sqrt V + \epsilon} Q_R^T.

    Until the first refresh the bases are identities and this is Adam; Adam's learning
    rates and decays carry over. It is `shampoo` with other defaults: `b1` and `b2` of
    0.95, `eps` 1e-8, which is also added to the root of V, bases refreshed every 10
    steps, no grafting, and `preconditioner=EigenvalueCorrected()`. The second moment
    follows every step's basis; it is not rotated when the basis changes.

    The eigenbasis of a singular factor is not unique. In the first steps of a vector,
    or where gradients have few rows, rounding alone picks it, and runs on different
    meshes then differ by more than rounding.

    Args, returns and errors are those of `shampoo`.

    References:
      Vyas et al., 2024, https://arxiv.org/abs/2409.11321.
    """
    if exact_reference_defaults:
        given = {"b2": b2, "grafting": grafting, "relative_epsilon": relative_epsilon}
        b2, grafting, relative_epsilon = _reference_defaults(
            given, b2=0.95, grafting=None
        )
    return shampoo(
        learning_rate,
        b1=b1,
        b2=b2,
        b3=b3,
        eps=eps,
        relative_epsilon=relative_epsilon,
        weight_decay=weight_decay,
        weight_decay_type=weight_decay_type,
        mask=mask,
        peak_lr=peak_lr,
        max_preconditioner_dim=max_preconditioner_dim,
        target_dimensionality=target_dimensionality,
        matrix_axes=matrix_axes,
        precondition_1d=precondition_1d,
        skip_dims_larger_than=skip_dims_larger_than,
        precondition_frequency=precondition_frequency,
        start_preconditioning_step=start_preconditioning_step,
        bias_correction=bias_correction,
        grafting=grafting,
        preconditioner=preconditioner,
        momentum=momentum,
        refresh=refresh,
        mesh=mesh,
        axis=axis,
        param_specs=param_specs,
        comm_dtype=comm_dtype,
        factor_dtype=factor_dtype,
        inverse_dtype=inverse_dtype,
        mu_dtype=mu_dtype,
        precision=precision,
        skip_nonfinite=skip_nonfinite,
        exact_reference_defaults=exact_reference_defaults,
    )


def kl_shampoo(
    learning_rate: ScalarOrSchedule,
    *,
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: Any = None,
    eps: Any = 1e-12,
    relative_epsilon: float = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_type: WeightDecayType = "decoupled",
    mask: Any = None,
    peak_lr: Any = None,
    max_preconditioner_dim: float = 1024,
    target_dimensionality: float = 1,
    matrix_axes: Any = None,
    precondition_1d: bool = True,
    skip_dims_larger_than: float | None = None,
    precondition_frequency: Any = 1,
    start_preconditioning_step: Any = -1,
    bias_correction: bool = True,
    grafting: str | Graft | None = None,
    preconditioner: Preconditioner = KL_SHAMPOO,
    momentum: Momentum | None = None,
    refresh: str = "cond",
    mesh: Any = None,
    axis: Any = None,
    param_specs: Any = None,
    comm_dtype: Any = None,
    factor_dtype: Any = jnp.float32,
    inverse_dtype: Any = jnp.float32,
    mu_dtype: Any = None,
    precision: str = "highest",
    skip_nonfinite: bool = True,
    exact_reference_defaults: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""KL-Shampoo: factors that fit the covariance in Kullback-Leibler divergence.

    Each factor is the average of outer products of the gradient preconditioned on the
    other side,

    .. math::

      L \leftarrow \beta_2 L + (1 - \beta_2) G R^{-1} G^T, \quad
      R \leftarrow \beta_2 R + (1 - \beta_2) G^T L^{-1} G, \quad
      W \leftarrow W - \eta L^{-1/2} \hat G R^{-1/2},

    with the roots of the last refresh and no division by the dims. It is `shampoo`
    with no grafting and
    `preconditioner=KLRootInverse(inverse_exponent_override={2: 0.5})`; with the
    exponents of Shampoo, 1/4, the statistics would be :math:`G R^{-1/2} G^T`.

    Args, returns and errors are those of `shampoo`.

    References:
      Lin et al., 2025, https://arxiv.org/abs/2509.03378.
    """
    if exact_reference_defaults:
        given = {"b2": b2, "grafting": grafting, "relative_epsilon": relative_epsilon}
        b2, grafting, relative_epsilon = _reference_defaults(
            given, b2=0.999, grafting=None
        )
    return shampoo(
        learning_rate,
        b1=b1,
        b2=b2,
        b3=b3,
        eps=eps,
        relative_epsilon=relative_epsilon,
        weight_decay=weight_decay,
        weight_decay_type=weight_decay_type,
        mask=mask,
        peak_lr=peak_lr,
        max_preconditioner_dim=max_preconditioner_dim,
        target_dimensionality=target_dimensionality,
        matrix_axes=matrix_axes,
        precondition_1d=precondition_1d,
        skip_dims_larger_than=skip_dims_larger_than,
        precondition_frequency=precondition_frequency,
        start_preconditioning_step=start_preconditioning_step,
        bias_correction=bias_correction,
        grafting=grafting,
        preconditioner=preconditioner,
        momentum=momentum,
        refresh=refresh,
        mesh=mesh,
        axis=axis,
        param_specs=param_specs,
        comm_dtype=comm_dtype,
        factor_dtype=factor_dtype,
        inverse_dtype=inverse_dtype,
        mu_dtype=mu_dtype,
        precision=precision,
        skip_nonfinite=skip_nonfinite,
        exact_reference_defaults=exact_reference_defaults,
    )


def _reference_defaults(
    given: dict[str, Any], *, b2: float, grafting: str | None
) -> tuple[float, None, float]:
    """The defaults of the authors' code, unless one was given another value.

    Args:
      given: what the caller passed, or our defaults.
      b2: our default.
      grafting: our default.

    Raises:
      ValueError: a value is neither our default nor theirs.
    """
    ours = {"b2": b2, "grafting": grafting, "relative_epsilon": 1e-6}
    for name, theirs in _REFERENCE_DEFAULTS.items():
        value = given[name]
        if value is not ours[name] and value != ours[name] and value != theirs:
            raise ValueError(
                f"exact_reference_defaults=True sets {name}={theirs!r}, but "
                f"{name}={value!r} was given as well"
            )
    return 1.0, None, 0.0
