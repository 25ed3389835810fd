r"""Steps from polynomials through the trials, and backtracking by them.

The polynomials live on one line: values F at steps, slopes F' where they are known.
Where a polynomial has no minimiser the functions return NaN or a step outside the
interval of interest; the caller bounds it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.quasi_newton.line_search.backtracking import Sample, backtrack
from optim_jax.quasi_newton.line_search.trial import (
    Evaluate,
    Ray,
    SearchResult,
    Trial,
    check_search_options,
    prepare,
)

# A new step relative to the one before it.
SHORTEST, LONGEST = 1e-3, 0.6


def armijo_interpolated(
    evaluate: Evaluate,
    start: Trial,
    slope: Any,
    init_step: Any,
    *,
    c1: Any = 1e-4,
    factor: Any = 0.5,
    max_trials: Any = 10,
    min_step: Any = 1e-8,
) -> SearchResult:
    r"""Backtracking to the Armijo condition with steps from interpolation.

    The first rejected step is multiplied by `factor`. The next one gives way to the
    minimiser of the quadratic through F(0), F'(0) and its value, later ones to that of
    the cubic through F(0), F'(0) and the last two values, if both are finite. The new
    step is kept within [0.001, 0.6] times the rejected one. After a value that is not
    finite, and where the polynomial has no minimiser, the step is multiplied by
    `factor`.

    Args:
      evaluate: step -> `Trial`, traced once; the slope of a trial is not read.
      start: the trial at step 0; its `aux` only gives the structure.
      slope: float (), the derivative F'(0) < 0.
      init_step: float (), the first step > 0.
      c1: fraction of the slope that must be attained, in (0, 1).
      factor: of the steps that are not interpolated, in (0, 1).
      max_trials: most evaluations, >= 1.
      min_step: a shorter step is only tried as the first one, >= 0.

    Returns:
      A `SearchResult`.

    Raises:
      ValueError: an option is out of range.

    References:
      Nocedal and Wright, Numerical Optimization, 2006, section 3.5.
    """
    check_search_options(c1=c1, factor=factor, max_trials=max_trials, min_step=min_step)

    def shorten(
        ray: Ray, trials: jax.Array, latest: Sample, previous: Sample
    ) -> jax.Array:
        value = ray.start.value.astype(latest.value.dtype)
        quadratic = quadratic_minimiser(value, ray.slope, latest)
        cubic = cubic_minimiser(value, ray.slope, latest, previous)
        has_cubic = (trials > 2) & jnp.isfinite(previous.value)
        found = jnp.where(has_cubic, cubic, quadratic)
        bounded = jnp.clip(found, SHORTEST * latest.step, LONGEST * latest.step)
        usable = (trials > 1) & jnp.isfinite(latest.value) & jnp.isfinite(found)
        return jnp.where(usable, bounded, factor * latest.step)

    return backtrack(
        evaluate, prepare(start, slope, init_step, c1), shorten, max_trials, min_step
    )


def quadratic_minimiser(
    value: jax.Array, slope: jax.Array, sample: Sample
) -> jax.Array:
    r"""The minimiser of the quadratic through F(0), F'(0) and F(t).

    .. math::

      \frac{-F'(0)\, t^2}{2 (F(t) - F(0) - F'(0) t)}

    Args:
      value: float (), F(0).
      slope: float (), F'(0).
      sample: t and F(t).

    Returns:
      float (); the minimiser only where F(t) lies above the tangent at 0.
    """
    rise = sample.value - value - slope * sample.step
    return -slope * sample.step**2 / (2.0 * rise)


def cubic_minimiser(
    value: jax.Array, slope: jax.Array, latest: Sample, previous: Sample
) -> jax.Array:
    r"""The minimiser of the cubic through F(0), F'(0), F(t) and F(u).

    With :math:`F(x) = F(0) + F'(0) x + b x^2 + a x^3` it is
    :math:`-F'(0) / (b + \sqrt{b^2 - 3 a F'(0)})`, the form of the root of the
    derivative that does not cancel and holds for a = 0 too.

    Args:
      value: float (), F(0).
      slope: float (), F'(0) < 0.
      latest: t and F(t).
      previous: u and F(u), u != t.

    Returns:
      float (); NaN where the cubic has no minimiser beyond 0.
    """
    t, u = latest.step, previous.step
    curvature_t = (latest.value - value - slope * t) / t**2
    curvature_u = (previous.value - value - slope * u) / u**2
    a = (curvature_t - curvature_u) / (t - u)
    b = (t * curvature_u - u * curvature_t) / (t - u)
    denominator = b + jnp.sqrt(b**2 - 3.0 * a * slope)
    return jnp.where(denominator > 0.0, -slope / denominator, jnp.nan)


def hermite_minimiser(
    low: Sample, low_slope: jax.Array, high: Sample, high_slope: jax.Array
) -> jax.Array:
    r"""The minimiser of the cubic with given values and slopes at two steps.

    Args:
      low: the left step and its value.
      low_slope: float (), the derivative there.
      high: the right step and its value.
      high_slope: float (), the derivative there.

    Returns:
      float (); NaN where the cubic has no minimiser.

    References:
      Nocedal and Wright, Numerical Optimization, 2006, equation (3.59).
    """
    width = high.step - low.step
    first = low_slope + high_slope - 3.0 * (high.value - low.value) / width
    second = jnp.sqrt(first**2 - low_slope * high_slope)
    fraction = (high_slope + second - first) / (high_slope - low_slope + 2.0 * second)
    return high.step - width * fraction
