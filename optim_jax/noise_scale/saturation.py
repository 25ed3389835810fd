r"""The value that a noise scale takes on pure noise, and whether it is near it.

The mean of n gradients of W samples carries noise itself. Without any true gradient the
measured noise scale is then not infinite but a constant times W.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.noise_scale.layout import Layout, layout_of
from optim_jax.noise_scale.measurement import NoiseScale
from optim_jax.noise_scale.moment_types import Moments
from optim_jax.validation import check_choice

# Relative distance from the saturated value that counts as saturated.
SATURATION_BAND = 0.1
# From here on the series is used; its first omitted term is below 2e-11.
_SERIES_FROM = 32
_QUADRATURE_NODES = 512


def c4(count: Any) -> jax.Array:
    r"""Mean of a standard deviation estimated from n Gaussian draws, over the true one.

    .. math::

      c_4(n) = \sqrt{\frac{2}{n - 1}} \, \frac{\Gamma(n / 2)}{\Gamma((n - 1) / 2)}

    Args:
      count: n >= 2, an integer, which may be traced; smaller ones are taken as 2.

    Returns:
      Float array of the shape of `count`: 0.7979 for 2, 0.9213 for 4, near 1 - 1/(4n).
    """
    freedom = jnp.maximum(jnp.asarray(count, jnp.result_type(float)) - 1.0, 1.0)
    # Differences of large logarithms lose digits: beyond a few draws, a series.
    few = jnp.minimum(freedom, _SERIES_FROM)
    log_ratio = jax.lax.lgamma((few + 1.0) / 2.0) - jax.lax.lgamma(few / 2.0)
    exact = jnp.sqrt(2.0 / few) * jnp.exp(log_ratio)
    x = 1.0 / jnp.maximum(freedom, _SERIES_FROM)
    coefficients = (-399 / 8192, -21 / 2048, 5 / 128, 1 / 32, -1 / 4, 1.0)
    series = jnp.polyval(jnp.asarray(coefficients, x.dtype), x)
    return jnp.where(freedom < _SERIES_FROM, exact, series)


def marchenko_pastur_sqrt_mean(aspect: Any) -> jax.Array:
    r"""Mean root of the eigenvalues of a sample covariance of white noise.

    For m variables, N samples and y = m / N, as both grow,

    .. math::

      \operatorname{mean}_i \sqrt{\lambda_i} \to
      \frac2\pi \int_0^\pi \frac{\sin^2 t}{\sqrt{1 + y + 2 \sqrt y \cos t}} \, dt .

    The trace of the root of an estimated covariance is low by this factor when m rows
    of N = (n - 1) n_c independent entries make it up. It is also the nuclear norm of an
    m x N matrix of standard normal entries, over :math:`m \sqrt N`.

    Args:
      aspect: y > 0, which may be traced.

    Returns:
      Array of the shape of `aspect`: 8 / (3 pi) = 0.8488 for 1, near 1 - y / 8.

    References:
      Marchenko, Pastur, 1967. Its use here is derived, not read in arXiv 2602.03001.
    """
    y = jnp.asarray(aspect, jnp.result_type(float))[..., None]
    # Gauss-Chebyshev quadrature of the second kind.
    t = np.pi * np.arange(1, _QUADRATURE_NODES + 1) / (_QUADRATURE_NODES + 1)
    weights = jnp.asarray(2.0 / (_QUADRATURE_NODES + 1) * np.sin(t) ** 2, y.dtype)
    # (1 - sqrt y)^2 + 4 sqrt(y) cos^2(t/2): positive at y = 1 in any precision.
    half_cosine = jnp.asarray(np.cos(t / 2.0) ** 2, y.dtype)
    root = jnp.sqrt(y)
    eigenvalue = jnp.square(1.0 - root) + 4.0 * root * half_cosine
    return jnp.sum(weights / jnp.sqrt(eigenvalue), axis=-1)


def saturation_factor(
    grads: Any,
    count: Any,
    *,
    geometry: str,
    matrix_axes: Any = None,
    side: str = "min",
    mask: Any = None,
    sqrt_bias: str = "none",
) -> jax.Array:
    r"""Noise scale of pure Gaussian noise, over the number of samples.

    * `l2`: 1.
    * `sign`: :math:`\frac\pi2 c_4(n)^2`, 1.463 for n = 8.
    * `spectral`: for a single square matrix
      :math:`(\mathrm{mp}(1 / (n - 1)) / \mathrm{mp}(1))^2`, 1.338 for n = 8, with mp
      of `marchenko_pastur_sqrt_mean`; otherwise 1, which wide matrices tend to.

    It is that of `noise_scale` with `signal="mean"`. With the noise of `direct_noise`
    the factor is 1, and estimates of the signal without bias do not saturate.

    Args:
      grads: gradients, or anything with their shapes, such as `Moments.mean`.
      count: n, number of draws; may be traced.
      geometry: as in `moments_from_stacked`.
      matrix_axes: as in `moments_from_stacked`.
      side: as in `moments_from_stacked`.
      mask: as in `moments_from_stacked`.
      sqrt_bias: as in `noise_scale`; `"gaussian"` leaves out :math:`c_4`.

    Returns:
      Scalar.

    Raises:
      ValueError: the layout does not fit.

    References:
      Derived, not read in arXiv 2602.03001.
    """
    layout = layout_of(grads, geometry, matrix_axes, side, mask)
    check_choice("sqrt_bias", sqrt_bias, ("none", "gaussian"))
    one = jnp.ones((), layout.dtype)
    if geometry == "sign":
        bias = one if sqrt_bias == "gaussian" else c4(count).astype(layout.dtype)
        return math.pi / 2.0 * jnp.square(bias)
    if geometry == "spectral" and _is_one_square_matrix(layout):
        aspect = 1.0 / jnp.maximum(jnp.asarray(count, layout.dtype) - 1.0, 1.0)
        ratio = marchenko_pastur_sqrt_mean(aspect) / marchenko_pastur_sqrt_mean(1.0)
        return jnp.square(ratio).astype(layout.dtype)
    return one


def is_saturated(
    measurement: NoiseScale,
    moments: Moments,
    *,
    geometry: str,
    matrix_axes: Any = None,
    side: str = "min",
    mask: Any = None,
    sqrt_bias: str = "none",
) -> jax.Array:
    """Whether a measurement says no more than that its batch was too small.

    True where the value is within 10 %, from above or below, of `saturation_factor`
    times the samples of all draws. Log it beside every measurement.

    Args:
      measurement: of `noise_scale` with `signal="mean"`.
      moments: those it was taken from; count, weight and the shapes of the mean are
        read.
      geometry: as in `moments_from_stacked`.
      matrix_axes: as in `moments_from_stacked`.
      side: as in `moments_from_stacked`.
      mask: as in `moments_from_stacked`.
      sqrt_bias: as in `noise_scale`.

    Returns:
      bool (); False where the measurement is not valid.

    Raises:
      ValueError: the layout does not fit.
    """
    factor = saturation_factor(
        moments.mean,
        moments.count,
        geometry=geometry,
        matrix_axes=matrix_axes,
        side=side,
        mask=mask,
        sqrt_bias=sqrt_bias,
    )
    saturated = factor * moments.weight
    near = jnp.abs(measurement.value - saturated) <= SATURATION_BAND * saturated
    return measurement.valid & near


def _is_one_square_matrix(layout: Layout) -> bool:
    counted = [leaf for leaf in layout.leaves if leaf.counts]
    matrices = sum(math.prod(leaf.batch_shape) for leaf in counted)
    return matrices == 1 and counted[0].matrix_shape[0] == counted[0].matrix_shape[1]
