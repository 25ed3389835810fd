"""A transformation that watches the gradient noise scale and lets gradients pass."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim_jax.noise_scale.averages import average, count_if, read
from optim_jax.noise_scale.batch_grid import is_int
from optim_jax.noise_scale.draw_sources import (
    Estimator,
    Measure,
    from_moments,
    from_ranks,
    from_stack,
)
from optim_jax.noise_scale.layout import GEOMETRIES, METHODS, SIDES
from optim_jax.noise_scale.measurement import NoiseScale
from optim_jax.validation import (
    as_static,
    check_choice,
    check_constant,
    check_decay_rate,
    check_inexact_leaves,
    check_value,
)


class NoiseScaleState(NamedTuple):
    """State of `track_noise_scale`.

    After a step it is a measurement for the `update` of a `batch_size_controller` whose
    `every` is the same.

    Attributes:
      count: int32 (), steps taken.
      ticks: int32 (), measurements that entered the averages.
      skipped: int32 (), measurements refused as invalid or not finite.
      noise_sq: float32 (), squared dual norm of the noise in the last measurement that
        was not refused; zero before the first.
      signal_sq: float32 (), likewise of the signal; may be negative.
      value: float32 (), their ratio, the noise scale in samples; may be infinite.
      noise_ema: float32 (), average of `noise_sq` that began at zero and is not divided
        by 1 - ema_noise^ticks.
      signal_ema: float32 (), likewise of `signal_sq`.
      valid: bool (), whether the last measurement was not refused.
    """

    count: jax.Array
    ticks: jax.Array
    skipped: jax.Array
    noise_sq: jax.Array
    signal_sq: jax.Array
    value: jax.Array
    noise_ema: jax.Array
    signal_ema: jax.Array
    valid: jax.Array


def track_noise_scale(
    geometry: str,
    *,
    axis_name: Any = None,
    stacked: bool = False,
    every: Any = 100,
    ema_noise: Any = 0.9,
    ema_signal: Any = 0.9,
    matrix_axes: Any = None,
    side: str = "min",
    mask: Any = None,
    block_weights: Any = None,
    signal: str = "mean",
    noise: str = "moments",
    sqrt_bias: str = "none",
    method: str = "eigh",
) -> optax.GradientTransformationExtraArgs:
    r"""Measures the gradient noise scale every few steps.

    It belongs first in a chain, before clipping and momentum: the noise scale is that
    of raw mini-batch gradients. A measurement needs several independent gradients, the
    draws, from exactly one of three sources:

    * `axis_name`, inside `jax.shard_map`: the updates are the mean gradient of this
      rank, one draw each, and the result is their weighted mean;
    * `stacked=True`: the leaves are (n, ...), the result is the weighted mean over axis
      0;
    * the extra argument `moments` of the update, e.g. from `moments_push` over
      micro-batches: the updates are averaged already and pass unchanged.

    Means are taken in float32 (float64 for such gradients) and returned in the dtype of
    the gradients. Otherwise gradients pass as they are, NaN included. A measurement is
    taken when the 0-based step is a multiple of `every`; between measurements only the
    mean is computed. With `axis_name` every step reduces the gradients once, and a
    measurement the squares of their size too (under `spectral` the Gram matrices);
    alignment and direct noise reduce a mean of their own.

    The gradients of the ranks must be their own. With `check_vma=True`, the default of
    `jax.shard_map`, differentiating with respect to replicated parameters gives
    gradients that are summed over the axis already, whose noise is 0: make the
    parameters vary by `jax.lax.pcast(params, axis_name, to="varying")` first. The state
    is to be replicated.

    Two averages with the raw, zero-started recursion
    :math:`e \leftarrow \beta e + (1 - \beta) x` are for the metrics;
    `batch_size_controller` keeps its own. A measurement that is invalid or not finite
    is counted in `skipped` and leaves values and averages as they were.

    Args:
      geometry: `"l2"` (SGD), `"sign"` (Signum, Adam) or `"spectral"` (specSGD, Muon).
      axis_name: mapped axis of the ranks, or a tuple of them.
      stacked: whether the updates stack the draws along axis 0.
      every: F >= 1, steps from one measurement to the next.
      ema_noise: decay rate of the average of the noise in [0, 1).
      ema_signal: decay rate of the average of the signal in [0, 1).
      matrix_axes: as in `moments_from_stacked`; required under `spectral`. A function
        must be named to `optax.inject_hyperparams` among `static_args`.
      side: as in `moments_from_stacked`.
      mask: as in `moments_from_stacked`, `static_args` included.
      block_weights: as in `noise_scale`.
      signal: `"mean"` and `"debiased"` as in `noise_scale`, or `"alignment"` for
        :math:`\tilde s |\tilde s|` of `alignment_signal`, which needs the draws: not
        with `moments`.
      noise: `"moments"` as in `noise_scale`, or `"direct"` for the square of
        `direct_noise`, which needs the draws.
      sqrt_bias: as in `noise_scale`; with `noise="direct"` it must be `"none"`.
      method: as in `noise_scale`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `NoiseScaleState` and the extra
      arguments `samples_per_grad`, samples behind a draw (a scalar; with `stacked` also
      one per draw; default 1; not read with `moments`), and `moments`.

    Raises:
      ValueError: an argument is out of range, or two sources of draws are given; in
        `init`, a parameter is an integer; in `update`, there is no source, one draw
        only, or the layout does not fit.

    References:
      Naganuma et al., Adaptive Batch Sizes Using Non-Euclidean Gradient Noise Scales
      for Stochastic Sign and Spectral Descent, 2026, arXiv 2602.03001. Of the options,
      only `ema_noise`, `ema_signal` and `every` are the paper's.
    """
    _check_choices(geometry, side, signal, noise, sqrt_bias, method)
    _check_sources(axis_name, stacked, signal, noise)
    _check_every(every)
    for name, decay in (("ema_noise", ema_noise), ("ema_signal", ema_signal)):
        check_constant(name, decay)
        check_decay_rate(name, decay)
    decays = (as_static("ema_noise", ema_noise), as_static("ema_signal", ema_signal))
    period = jnp.asarray(every, jnp.int32) if isinstance(every, jax.Array) else every
    estimator = Estimator(
        geometry,
        matrix_axes,
        side,
        mask,
        block_weights,
        signal,
        noise,
        sqrt_bias,
        method,
    )

    def init(params: optax.Params) -> NoiseScaleState:
        check_inexact_leaves("track_noise_scale", params)
        return _initial_state()

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        samples_per_grad: Any = 1.0,
        moments: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, NoiseScaleState]:
        del params, extra_args
        _check_given(axis_name, stacked, moments)
        if moments is not None:
            updates, measure = from_moments(estimator, updates, moments)
        else:
            check_inexact_leaves("track_noise_scale", updates)
            if stacked:
                updates, measure = from_stack(estimator, updates, samples_per_grad)
            else:
                updates, measure = from_ranks(
                    estimator, updates, axis_name, samples_per_grad
                )
        return updates, _next_state(state, measure, period, decays)

    return optax.GradientTransformationExtraArgs(init, update)


def _initial_state() -> NoiseScaleState:
    def zero(dtype: Any) -> jax.Array:
        return jnp.zeros([], dtype)

    return NoiseScaleState(
        count=zero(jnp.int32),
        ticks=zero(jnp.int32),
        skipped=zero(jnp.int32),
        noise_sq=zero(jnp.float32),
        signal_sq=zero(jnp.float32),
        value=zero(jnp.float32),
        noise_ema=zero(jnp.float32),
        signal_ema=zero(jnp.float32),
        valid=zero(bool),
    )


def _next_state(
    state: NoiseScaleState, measure: Measure, every: Any, decays: tuple[Any, Any]
) -> NoiseScaleState:
    """The state with a measurement where one is due; all of it inside the branch."""
    measured = jax.lax.cond(
        state.count % every == 0,
        lambda state: _enter(state, measure(), decays),
        lambda state: state,
        state,
    )
    return measured._replace(count=jnp.asarray(optax.safe_increment(state.count)))


def _enter(
    state: NoiseScaleState, measurement: NoiseScale, decays: tuple[Any, Any]
) -> NoiseScaleState:
    """The state after a measurement, which may be refused."""
    noise, signal, usable = read(measurement)
    entered = state._replace(
        noise_sq=noise,
        signal_sq=signal,
        value=measurement.value.astype(jnp.float32),
        noise_ema=average(state.noise_ema, noise, decays[0]),
        signal_ema=average(state.signal_ema, signal, decays[1]),
    )
    kept = jax.tree.map(lambda new, old: jnp.where(usable, new, old), entered, state)
    return kept._replace(
        ticks=count_if(usable, state.ticks),
        skipped=count_if(~usable, state.skipped),
        valid=usable,
    )


def _check_choices(
    geometry: str, side: str, signal: str, noise: str, sqrt_bias: str, method: str
) -> None:
    check_choice("geometry", geometry, GEOMETRIES)
    check_choice("side", side, SIDES)
    check_choice("signal", signal, ("mean", "debiased", "alignment"))
    check_choice("noise", noise, ("moments", "direct"))
    check_choice("sqrt_bias", sqrt_bias, ("none", "gaussian"))
    check_choice("method", method, METHODS)
    if noise == "direct" and sqrt_bias != "none":
        raise ValueError(
            "sqrt_bias must be 'none' with noise='direct', which takes no root of a "
            f"variance, got {sqrt_bias!r}"
        )


def _check_sources(axis_name: Any, stacked: Any, signal: str, noise: str) -> None:
    """Checks what is known of the source of the draws before the first update."""
    if not isinstance(stacked, bool):
        raise ValueError(f"stacked must be a bool, got {stacked!r}")
    if stacked and axis_name is not None:
        raise ValueError(
            f"give axis_name or stacked=True, got both: axis_name={axis_name!r}"
        )
    if stacked or axis_name is not None:
        return
    for name, value, only in (
        ("signal", signal, "alignment"),
        ("noise", noise, "direct"),
    ):
        if value == only:
            raise ValueError(
                f"{name}={value!r} compares draws with each other: give axis_name or "
                "stacked=True; moments do not hold them"
            )


def _check_given(axis_name: Any, stacked: bool, moments: Any) -> None:
    """Checks that there is one source of draws in an update."""
    own = f"axis_name={axis_name!r}" if axis_name is not None else None
    own = "stacked=True" if stacked else own
    if moments is None and own is None:
        raise ValueError(
            "track_noise_scale needs several draws, got one gradient: give axis_name "
            "or stacked=True, or call update(grads, state, params, moments=...)"
        )
    if moments is not None and own is not None:
        raise ValueError(f"give {own} or the extra argument moments, got both")


def _check_every(every: Any) -> None:
    """Accepts an int >= 1, or a scalar array, which `inject_hyperparams` makes."""
    if not isinstance(every, jax.Array) and not is_int(every):
        raise ValueError(f"every must be an int >= 1, got {every!r}")
    check_value("every", every, "an int >= 1", lambda v: v >= 1 and v == int(v))
