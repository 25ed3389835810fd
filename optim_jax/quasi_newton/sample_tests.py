r"""Is the sample large enough? Tests on scalars, and the size that would pass.

Let :math:`g_i` be the gradient of sample i of b, :math:`g` their mean and :math:`H` the
inverse-Hessian approximation. Every test compares the variance of one sample with the
square of a signal :math:`\sigma`,

.. math::

  \text{ratio} = \frac{V}{b\, \theta^2 \sigma^2} \le 1, \qquad
  b_\text{new} = \lceil \hat b \rceil, \quad \hat b = \frac{V}{\theta^2 \sigma^2}.

* ``"norm"``: :math:`V = \operatorname{Var}(g_i)` and :math:`\sigma^2 = \|g\|^2`; the
  error is small in every direction.
* ``"inner_product"``: :math:`V = \operatorname{Var}(g_i^T g)` and
  :math:`\sigma = \|g\|^2`; only the component along the gradient is controlled.
* ``"ipqn"`` and ``"ipqn_window"``: :math:`V = \operatorname{Var}(g_i^T u)` with
  :math:`u = H^2 g` and :math:`\sigma = r = \|H g\|^2`: the direction :math:`-H g` makes
  an acute angle with :math:`-H \nabla F`. For the window, g is an average of gradients.
* ``"ipqn_unbiased"``: the same with the estimate of `unbiased_square`, because the
  plain r contains the noise of g itself, :math:`E r = \|H \nabla F\|^2 +
  \operatorname{tr}(H \Sigma H) / b`. Where the gradient vanishes the plain test sees
  that noise only and passes nearly always; the batch then stops growing.
* ``"none"``: no test.

The variance of the norm test has two parts,

.. math::

  \operatorname{Var}(g_i) = \frac{\operatorname{Var}(g_i^T g)}{\|g\|^2}
    + \operatorname{Var}\Big(g_i - \frac{g_i^T g}{\|g\|^2}\, g\Big),

of which the inner-product test bounds the first, by :math:`\theta^2 b \|g\|^2`. The
*augmented* inner-product test also bounds the second, the orthogonality test, by
:math:`\nu^2 b \|g\|^2`. So a norm test with the constant :math:`\tau` implies both
parts with :math:`\theta = \nu = \tau`, and both parts imply a norm test with
:math:`\tau^2 = \theta^2 + \nu^2`. With :math:`\nu \gg \theta` the pair permits much
larger errors in the directions that do not matter for descent.

Sampling b of N without replacement multiplies the variance of a mean by
:math:`1 - b / N`, and the size that passes becomes :math:`\hat b / (1 + \hat b / N)`,
which is never above N.

References:
  Norm test: Byrd, Chin, Nocedal, Wu, 2012. Inner-product test and its augmentation:
  Bollapragada, Byrd, Nocedal, 2018. IPQN: Bollapragada, Mudigere, Nocedal, Shi, Tang,
  2018, https://arxiv.org/abs/1802.05374. The unbiased signal, its finite-population
  version and the caps are this project's choices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.validation import check_choice

SAMPLE_TESTS = ("ipqn", "ipqn_window", "ipqn_unbiased", "inner_product", "norm", "none")

LARGEST_COUNT = np.iinfo(np.int32).max


class TestMoments(NamedTuple):
    """Scalars of one sample that the tests compare."""

    r: Any  # ||H g||^2
    r_unbiased: Any  # `unbiased_square`; NaN where the test does not use it
    variance: Any  # of g_i^T u about g^T u, divisor n - 1; u = H^2 g, or g_S
    gradient_variance: Any  # Var(g_i), divisor n - 1
    gradient_square: Any  # ||g||^2


class Verdict(NamedTuple):
    """What a test says of a sample."""

    ratio: jax.Array  # <= 1 passes; inf: no signal; NaN: untested or not finite
    r_finite: jax.Array  # `finite_population_square`
    batch_size: jax.Array  # int32, the size that would pass, after the caps


def unbiased_square(
    total_square: Any, group_squares: Any, groups: Any = None
) -> jax.Array:
    r"""The square of a mean without the noise of its terms.

    .. math::

      r_U = \frac{\|\sum_j h_j\|^2 - \sum_j \|h_j\|^2}{M (M - 1)}

    the mean of :math:`h_i^T h_j` over :math:`i \ne j`. For independent groups it is
    unbiased for the square of the true mean, whatever their sizes, and may be negative.

    Args:
      total_square: :math:`\|\sum_j h_j\|^2` of the M group means, unweighted.
      group_squares: (M,) squares :math:`\|h_j\|^2`; zero for empty groups.
      groups: number of groups that are not empty; None for M.

    Returns:
      :math:`r_U`; NaN for fewer than two groups.

    References:
      This project's choice (derived, not read).
    """
    group_squares = jnp.asarray(group_squares)
    count = group_squares.shape[0] if groups is None else groups
    count = jnp.asarray(count, group_squares.dtype)
    pairs = jnp.where(count > 1, count * (count - 1), jnp.nan)
    return (total_square - jnp.sum(group_squares)) / pairs


def finite_population_square(
    r: Any, r_unbiased: Any, batch_size: Any, population: Any
) -> jax.Array:
    r"""The unbiased square for a sample drawn without replacement.

    .. math:: r_F = r - (1 - b / N) (r - r_U)

    With groups of equal size it is exactly unbiased for the square of the mean of the
    population. It is :math:`r_U` for :math:`N = \infty` and r for b = N.

    Args:
      r: square of the mean of the sample.
      r_unbiased: `unbiased_square` of its groups.
      batch_size: b, the size of the sample.
      population: N >= b, or infinity.

    Returns:
      :math:`r_F`.

    References:
      This project's choice (derived, not read).
    """
    share = _share(batch_size, population, jnp.result_type(r, r_unbiased))
    # The case apart: r_unbiased may be NaN.
    return jnp.where(share >= 1, r, share * r + (1 - share) * r_unbiased)


def judge_sample(
    test: str,
    moments: TestMoments,
    batch_size: Any,
    *,
    theta: Any,
    population: Any = jnp.inf,
    finite_population: bool = False,
    growth_cap: Any,
) -> Verdict:
    r"""Tests a sample and proposes the size of the next one.

    The proposal is :math:`\lceil \hat b \rceil` (module docstring), at most
    :math:`\lceil \text{cap} \cdot b \rceil`, at most N and at least 1. It may be below
    b when the test passes. A signal that is not positive is not detectable: the ratio
    is infinite and the proposal is what the caps allow. A sample of b = N is judged as
    any other; that it always passes is left to the caller.

    Args:
      test: one of `SAMPLE_TESTS`.
      moments: of the sample.
      batch_size: b, int or float, may be traced.
      theta: constant of the test, > 0: the tolerated relative standard deviation.
      population: N, or infinity.
      finite_population: judge as a draw without replacement from N; the unbiased test
        then uses :math:`r_F` in place of :math:`r_U`.
      growth_cap: the most the size may be multiplied by, > 1; infinity for no cap.

    Returns:
      The verdict. The ratio is NaN for `"none"` and where a moment is NaN; the proposal
      is then b.

    Raises:
      ValueError: `test` is unknown.
    """
    check_choice("test", test, SAMPLE_TESTS)
    dtype = jnp.promote_types(jnp.result_type(*moments), jnp.float32)
    r, r_unbiased, variance, gradient_variance, gradient_square = (
        jnp.asarray(moment, dtype) for moment in moments
    )
    size = jnp.asarray(batch_size, dtype)
    r_finite = finite_population_square(r, r_unbiased, size, population)
    if test == "none":
        ratio = jnp.full((), jnp.nan, dtype)
        return Verdict(ratio, r_finite, _as_count(size, population))

    share = _share(size, population, dtype) if finite_population else 0.0
    if test == "norm":
        signal, noise = gradient_square, gradient_variance
    else:
        signal, noise = (
            {
                "ipqn": r,
                "ipqn_window": r,
                "ipqn_unbiased": r_finite if finite_population else r_unbiased,
                "inner_product": gradient_square,
            }[test],
            variance,
        )
        # Divided twice: the fourth power of a small gradient underflows in float32.
        noise = noise / signal
    needed = jnp.where(signal <= 0, jnp.inf, noise / signal / theta**2)
    ratio = jnp.where(signal <= 0, jnp.inf, (1 - share) * needed / size)
    if finite_population:
        limit = jnp.asarray(population, dtype)
        needed = jnp.where(jnp.isinf(needed), limit, needed / (1 + needed / limit))
    proposal = jnp.minimum(jnp.ceil(needed), jnp.ceil(size * growth_cap))
    proposal = jnp.where(jnp.isnan(ratio), size, jnp.maximum(proposal, 1))
    return Verdict(ratio, r_finite, _as_count(proposal, population))


def _share(batch_size: Any, population: Any, dtype: Any) -> jax.Array:
    """The share b / N, 0 for a stream."""
    return jnp.asarray(batch_size, dtype) / jnp.asarray(population, dtype)


def _as_count(size: jax.Array, population: Any) -> jax.Array:
    """Size as int32, at most the population and the largest int32."""
    # An integer above 2^24 would be rounded on its way through a float32.
    limit = jnp.asarray(population)
    if jnp.issubdtype(limit.dtype, jnp.integer):
        limit = limit.astype(jnp.int32)
    else:
        limit = _saturated(limit)
    return jnp.minimum(_saturated(size), limit)


def _saturated(size: jax.Array) -> jax.Array:
    """Float to int32; the conversion of larger values and infinity is undefined."""
    fits = size < 2.0**31
    return jnp.where(fits, jnp.where(fits, size, 0).astype(jnp.int32), LARGEST_COUNT)
