"""The noise scale: squared dual norm of the noise over that of the signal."""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.noise_scale.geometry import (
    dual_norm_terms,
    noise_term,
    squared_norm,
)
from optim_jax.noise_scale.layout import METHODS, Layout, layout_of
from optim_jax.noise_scale.measurement import NoiseScale, measurement_of
from optim_jax.noise_scale.moment_types import Moments, check_moments, parts_of
from optim_jax.noise_scale.saturation import c4
from optim_jax.validation import check_choice


def noise_scale(
    moments: Moments,
    *,
    geometry: str,
    matrix_axes: Any = None,
    side: str = "min",
    mask: Any = None,
    block_weights: Any = None,
    signal: str = "mean",
    sqrt_bias: str = "none",
    per_leaf: bool = False,
    method: str = "eigh",
) -> NoiseScale:
    r"""Gradient noise scale of the draws in some moments.

    With the variance :math:`\sigma^2` and covariance C of the gradient of one sample,
    summed over leaves l before squaring,

    .. math::

      \mathcal B_{\ell_2} = \frac{\sum_i \sigma_i^2}{\|\bar g\|_2^2}, \quad
      \mathcal B_{\ell_1} = \frac{(\sum_i \sigma_i)^2}{\|\bar g\|_1^2}, \quad
      \mathcal B_{S_1} = \frac{(\sum_l \operatorname{tr} C_l^{1/2})^2}
      {(\sum_l \|\bar G_l\|_{S_1})^2},

    for `l2` (SGD), `sign` (Signum, Adam) and `spectral` (specSGD, Muon).

    The mean gradient still carries noise, so the value saturates at about the number of
    samples W (`is_saturated`). Under `l2` the exact remedy is `signal="debiased"`,
    :math:`\|\bar g\|_2^2 - \sum_i \sigma_i^2 / W`, which may be negative: average it
    before dividing. For the others there is `alignment_signal`.

    Args:
      moments: of at least two draws.
      geometry: as the moments were gathered, but `l2` and `sign` read each other's.
      matrix_axes: as the moments were gathered.
      side: as the moments were gathered.
      mask: as the moments were gathered.
      block_weights: multiplier >= 0 of the dual norm of each leaf, a tree or a prefix
        of one; None for ones. For `l2` squared norms take its square.
      signal: `"mean"` or `"debiased"`.
      sqrt_bias: `"none"`, or `"gaussian"` to divide the noise under `sign` by c4(n),
        the mean of an estimated standard deviation of Gaussian noise.
      per_leaf: whether to return noise and signal of each leaf.
      method: how `spectral` computes traces of roots and nuclear norms: `"eigh"`,
        decompositions, or `"matmul"`, matrix products only.

    Returns:
      The measurement.

    Raises:
      ValueError: an option is not allowed with the geometry, or the layout does not fit
        or is not that of the moments.

    References:
      arXiv 2602.03001, noise scales and their estimators. Block weights, the debiased
      signal and the correction of the root are derived, not read.
    """
    layout = layout_of(moments.mean, geometry, matrix_axes, side, mask)
    check_moments(moments, layout)
    check_choice("method", method, METHODS)
    _check_options(geometry, signal, sqrt_bias)
    divisor = jnp.maximum(moments.count - 1, 1).astype(layout.dtype)
    weights, noises, signals = [], [], []
    for (leaf, mean, second), weight in zip(
        parts_of(moments, layout), layout.block_weights(block_weights), strict=True
    ):
        if leaf.counts:
            weights.append(weight)
            noises.append(noise_term(second, leaf, geometry, method))
            signals.append(dual_norm_terms(mean[None], leaf, geometry, method)[0])
    if geometry == "l2":
        noises = [noise / divisor for noise in noises]
    else:
        root = jnp.sqrt(divisor)
        if sqrt_bias == "gaussian":
            root = root * c4(moments.count)
        noises = [noise / root for noise in noises]
    if signal == "debiased":
        samples = jnp.where(moments.weight == 0.0, 1.0, moments.weight)
        signals = [
            norm - noise / samples for norm, noise in zip(signals, noises, strict=True)
        ]
    return measurement_of(
        squared_norm(noises, weights, geometry),
        squared_norm(signals, weights, geometry),
        moments.count,
        leaf_noise=_leaf_tree(noises, layout) if per_leaf else None,
        leaf_signal=_leaf_tree(signals, layout) if per_leaf else None,
    )


def _check_options(geometry: str, signal: str, sqrt_bias: str) -> None:
    check_choice("signal", signal, ("mean", "debiased"))
    check_choice("sqrt_bias", sqrt_bias, ("none", "gaussian"))
    if signal == "debiased" and geometry != "l2":
        raise ValueError(
            f"signal='debiased' exists for geometry='l2' only, got {geometry!r}; the "
            "estimate for other norms is alignment_signal (signal='alignment')"
        )
    if sqrt_bias == "gaussian" and geometry == "spectral":
        raise ValueError(
            "sqrt_bias='gaussian' holds for coordinates, not for the trace of the root "
            "of a covariance; use sqrt_bias='none' with geometry='spectral'"
        )


def _leaf_tree(terms: list[jax.Array], layout: Layout) -> Any:
    """Dual norms of the leaves as a tree."""
    if layout.geometry == "l2":
        terms = [jnp.sign(term) * jnp.sqrt(jnp.abs(term)) for term in terms]
    remaining = iter(terms)
    return layout.unflatten(
        [next(remaining) if leaf.counts else None for leaf in layout.leaves]
    )
