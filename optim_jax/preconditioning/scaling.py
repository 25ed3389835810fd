"""Directions of Shampoo and SOAP as transformations to chain."""

from typing import Any

import jax.numpy as jnp

from optim_jax.preconditioning.options import make_hyperparameters, make_options
from optim_jax.preconditioning.preconditioners import (
    EigenvalueCorrected,
    Graft,
    Preconditioner,
    RootInverse,
)
from optim_jax.preconditioning.transformation import (
    BlockGradientTransformation,
    build_transformation,
)


def scale_by_shampoo(
    *,
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: Any = None,
    eps: Any = 1e-12,
    relative_epsilon: float = 1e-6,
    max_preconditioner_dim: float = 1024,
    target_dimensionality: float = 1,
    matrix_axes: Any = None,
    precondition_1d: bool = True,
    skip_dims_larger_than: float | None = None,
    precondition_frequency: Any = 1,
    start_preconditioning_step: Any = -1,
    bias_correction: bool = True,
    grafting: str | Graft | None = None,
    preconditioner: Preconditioner = RootInverse(),  # noqa: B008 (frozen)
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
) -> BlockGradientTransformation:
    """Shampoo's direction alone: no learning rate, decay or momentum.

    The statistics need raw gradients and the direction filtered ones, so the first
    moment (`b1`, `b3`) is kept here and no trace belongs in front of it. The arguments
    are those of `shampoo`; only `grafting` has another default.

    Returns:
      A `BlockGradientTransformation`: an `optax.GradientTransformationExtraArgs` with
      the state `ShampooState`, and a function `plan` from params to a `Plan`. The
      updates point uphill; `optax.scale_by_learning_rate` turns them.

    Raises:
      ValueError: an argument is out of range, or does not go with another.
    """
    options = make_options(
        relative_epsilon=relative_epsilon,
        max_preconditioner_dim=max_preconditioner_dim,
        target_dimensionality=target_dimensionality,
        precondition_1d=precondition_1d,
        skip_dims_larger_than=skip_dims_larger_than,
        precondition_frequency=precondition_frequency,
        bias_correction=bias_correction,
        grafting=grafting,
        preconditioner=preconditioner,
        refresh=refresh,
        mesh=mesh,
        axis=axis,
        comm_dtype=comm_dtype,
        factor_dtype=factor_dtype,
        inverse_dtype=inverse_dtype,
        mu_dtype=mu_dtype,
        precision=precision,
        skip_nonfinite=skip_nonfinite,
    )
    hyperparameters = make_hyperparameters(
        b1=b1,
        b2=b2,
        b3=b3,
        eps=eps,
        precondition_frequency=precondition_frequency,
        start_preconditioning_step=start_preconditioning_step,
        preconditioner=preconditioner,
        grafting=grafting,
    )
    return build_transformation(options, hyperparameters, matrix_axes, param_specs)


def scale_by_soap(
    *,
    b1: Any = 0.95,
    b2: Any = 0.95,
    b3: Any = None,
    eps: Any = 1e-8,
    relative_epsilon: float = 1e-6,
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
) -> BlockGradientTransformation:
    """SOAP's direction alone: `scale_by_shampoo` with the defaults of `soap`."""
    return scale_by_shampoo(
        b1=b1,
        b2=b2,
        b3=b3,
        eps=eps,
        relative_epsilon=relative_epsilon,
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
    )
