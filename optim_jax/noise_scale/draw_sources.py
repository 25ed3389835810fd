"""The three places where a gradient transformation finds the draws of a measurement.

Each source averages the draws at once and returns the measurement as a function, so
that a step which measures nothing computes nothing but the mean.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optim_jax.noise_scale.draws import (
    along_draws,
    check_number_of_draws,
    counted_draws,
    quotient,
    weights_of_draws,
)
from optim_jax.noise_scale.estimate import noise_scale
from optim_jax.noise_scale.geometry import second_moment, signed_square
from optim_jax.noise_scale.layout import Layout, layout_of, layout_of_draws
from optim_jax.noise_scale.measurement import NoiseScale, measurement_of
from optim_jax.noise_scale.moment_types import Moments, pack_moments
from optim_jax.noise_scale.moments import moments_from_stacked
from optim_jax.noise_scale.resampling import alignment_signal, direct_noise

Measure = Callable[[], NoiseScale]


@dataclasses.dataclass(frozen=True)
class Estimator:
    """How draws become a noise and a signal; fields as in `track_noise_scale`."""

    geometry: str
    matrix_axes: Any = None
    side: str = "min"
    mask: Any = None
    block_weights: Any = None
    signal: str = "mean"
    noise: str = "moments"
    sqrt_bias: str = "none"
    method: str = "eigh"

    @property
    def layout(self) -> dict[str, Any]:
        """The keyword arguments that all functions of the moments share."""
        return {
            "geometry": self.geometry,
            "matrix_axes": self.matrix_axes,
            "side": self.side,
            "mask": self.mask,
        }

    @property
    def needs_draws(self) -> bool:
        """Whether moments are not enough."""
        return self.signal == "alignment" or self.noise == "direct"

    def of_moments(self, moments: Moments) -> NoiseScale:
        """The measurement from moments alone."""
        return noise_scale(
            moments,
            block_weights=self.block_weights,
            signal="mean" if self.signal == "alignment" else self.signal,
            sqrt_bias=self.sqrt_bias,
            method=self.method,
            **self.layout,
        )

    def of_draws(
        self, moments: Moments, stacked: Any, sample_weights: Any, axis_name: Any = None
    ) -> NoiseScale:
        """The measurement from moments and the draws behind them."""
        measured = self.of_moments(moments)
        if not self.needs_draws:
            return measured
        arguments = self.layout | {
            "sample_weights": sample_weights,
            "axis_name": axis_name,
            "block_weights": self.block_weights,
            "method": self.method,
        }
        noise_sq, signal_sq = measured.noise_sq, measured.signal_sq
        if self.noise == "direct":
            noise_sq = jnp.square(direct_noise(stacked, **arguments))
        if self.signal == "alignment":
            signal_sq = signed_square(alignment_signal(stacked, **arguments))
        return measurement_of(noise_sq, signal_sq, moments.count)


def from_ranks(
    estimator: Estimator, grads: optax.Updates, axis_name: Any, weight: Any
) -> tuple[optax.Updates, Measure]:
    """One draw per rank of a mapped axis.

    `moments_psum` would reduce the mean within the measurement once more.

    Args:
      estimator: how to measure.
      grads: mean gradient of this rank.
      axis_name: mapped axis, or a tuple of them.
      weight: samples behind it.

    Returns:
      The weighted mean over the ranks in the gradients' dtypes, and the measurement,
      which reduces the squared deviations.

    Raises:
      ValueError: the axis has one rank, or the layout or the weight does not fit.
    """
    layout = layout_of(grads, **estimator.layout)
    check_number_of_draws(jax.lax.psum(1, axis_name), f"axis {axis_name!r}")
    weights = weights_of_draws(weight, 1, layout.dtype)
    total = jax.lax.psum(weights[0], axis_name)
    draws = [
        counted_draws(jnp.asarray(grad)[None], weights, leaf)
        for leaf, grad in zip(layout.leaves, layout.flatten(grads), strict=True)
    ]
    sums = [weights[0].astype(draw.dtype) * draw[0] for draw in draws]
    means = [
        quotient(part, total.astype(part.dtype))
        for part in jax.lax.psum(sums, axis_name)
    ]

    def measure() -> NoiseScale:
        squares = [
            second_moment(draw - mean, weights, leaf) if leaf.counts else None
            for leaf, draw, mean in zip(layout.leaves, draws, means, strict=True)
        ]
        count = jnp.sum(weights > 0.0, dtype=jnp.int32)
        squares, count = jax.lax.psum((squares, count), axis_name)
        moments = pack_moments(layout, zip(means, squares, strict=True), count, total)
        stacked = jax.tree.map(lambda grad: jnp.asarray(grad)[None], grads)
        return estimator.of_draws(moments, stacked, weight, axis_name)

    return _like(grads, layout, means), measure


def from_stack(
    estimator: Estimator, grads: optax.Updates, sample_weights: Any
) -> tuple[optax.Updates, Measure]:
    """Draws along axis 0 of the leaves.

    Args:
      estimator: how to measure.
      grads: leaves (n, ...), n >= 2.
      sample_weights: samples behind each draw, a scalar or (n,).

    Returns:
      The weighted mean over axis 0 in the gradients' dtypes, and the measurement.

    Raises:
      ValueError: there is one draw, or the layout or the weights do not fit.
    """
    layout, number = layout_of_draws(
        grads,
        estimator.geometry,
        estimator.matrix_axes,
        estimator.side,
        estimator.mask,
    )
    check_number_of_draws(number, "axis 0 of the gradients")
    weights = weights_of_draws(sample_weights, number, layout.dtype)
    shares = quotient(weights, jnp.sum(weights))
    means = []
    for leaf, grad in zip(layout.leaves, layout.flatten(grads), strict=True):
        draws = counted_draws(grad, weights, leaf)
        share = along_draws(shares.astype(draws.dtype), draws)
        means.append(jnp.sum(share * draws, axis=0))

    def measure() -> NoiseScale:
        moments = moments_from_stacked(
            grads, sample_weights=weights, **estimator.layout
        )
        return estimator.of_draws(moments, grads, weights)

    return _like(grads, layout, means), measure


def from_moments(
    estimator: Estimator, grads: optax.Updates, moments: Moments
) -> tuple[optax.Updates, Measure]:
    """Moments that the caller has gathered; the gradients are averaged already.

    Raises:
      ValueError: `moments` is something else.
    """
    if not isinstance(moments, Moments):
        raise ValueError(
            "moments must be what the functions moments_... return, got "
            f"{type(moments).__name__}"
        )
    return grads, lambda: estimator.of_moments(moments)


def _like(grads: optax.Updates, layout: Layout, means: list[jax.Array]) -> Any:
    """The means as a tree in the dtypes of the gradients."""
    return layout.unflatten(
        mean.astype(jnp.result_type(grad))
        for mean, grad in zip(means, layout.flatten(grads), strict=True)
    )
