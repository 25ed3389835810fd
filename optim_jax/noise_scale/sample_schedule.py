"""Learning rates that follow the samples seen instead of the steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optim_jax.noise_scale.batch_grid import INT32_MAX, is_int
from optim_jax.validation import check_inexact_leaves


def schedule_by_samples(
    schedule: Callable[[Any], Any], batch0: int
) -> Callable[[Any], Any]:
    r"""Turns a schedule of steps into a schedule of samples.

    .. math::

      \eta(n) = \text{schedule}(n / B_0),

    not rounded: a run with a constant batch :math:`B_0` that evaluates it at the
    samples before the step follows `schedule`. The paper's runs evaluate it at the
    samples before the step plus :math:`B_0`.

    Args:
      schedule: step -> value, for real steps, as the schedules of Optax are.
      batch0: :math:`B_0 \ge 1`, samples per step that `schedule` was written for.

    Returns:
      Function of the samples seen, a number or an array.

    Raises:
      ValueError: an argument is not as described.

    References:
      Naganuma et al., 2026, arXiv 2602.03001: the schedules are given in fractions of
      the sample budget.
    """
    if not callable(schedule):
        raise ValueError(f"schedule must be a function of the step, got {schedule!r}")
    if not is_int(batch0) or not 1 <= batch0 <= INT32_MAX:
        raise ValueError(f"batch0 must be an int from 1 to {INT32_MAX}, got {batch0!r}")
    batch0 = int(batch0)

    def by_samples(samples: Any) -> Any:
        dtype = jnp.result_type(samples)
        if not isinstance(samples, jax.Array) or not jnp.issubdtype(dtype, jnp.integer):
            return schedule(samples / batch0)
        # Whole steps stay exact where the samples are too many for a float32.
        whole, rest = samples // batch0, samples % batch0
        return schedule(whole + rest / batch0)

    return by_samples


def scale_by_batch_lr(
    sample_schedule: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the updates by the learning-rate factor of the batch size.

    .. math::

      u \leftarrow \omega \, \eta(n) \, u

    with :math:`\omega` the extra argument `lr_scale`, e.g. that of `BatchSizeState`,
    and :math:`\eta(n)` the schedule at the extra argument `samples_seen`, if there is
    a schedule. The sign stays: the descent is in the optimizer's own learning rate.

    Args:
      sample_schedule: samples -> factor, e.g. from `schedule_by_samples`, or None.
        `optax.inject_hyperparams` needs it among `static_args`.

    Returns:
      An `optax.GradientTransformationExtraArgs` without state whose `update` needs
      `lr_scale`, and `samples_seen` if there is a schedule.

    Raises:
      ValueError: `sample_schedule` is no function, or a needed argument is missing or
        not a scalar.

    References:
      Naganuma et al., 2026, arXiv 2602.03001, Algorithm 1.
    """
    if sample_schedule is not None and not callable(sample_schedule):
        raise ValueError(
            "sample_schedule must be None or a function of the samples seen, got "
            f"{sample_schedule!r}"
        )

    def init(params: optax.Params) -> optax.EmptyState:
        check_inexact_leaves("scale_by_batch_lr", params)
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        lr_scale: Any = None,
        samples_seen: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        _check_scalar("lr_scale", lr_scale)
        # An array of this type does not round the factor to a half-precision leaf's.
        factor = jnp.asarray(lr_scale, jnp.result_type(float))
        if sample_schedule is not None:
            _check_scalar("samples_seen", samples_seen)
            factor = factor * sample_schedule(samples_seen)
        return jax.tree.map(lambda u: (u * factor).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _check_scalar(name: str, value: Any) -> None:
    if value is None:
        raise ValueError(
            f"scale_by_batch_lr needs {name}: call update(grads, state, params, "
            f"{name}=...)"
        )
    if jnp.shape(value) != ():
        raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(value)}")
