r"""Signal and noise from comparing each gradient with the others.

The dual norm of a mean gradient is biased upwards, the root of an estimated variance
downwards. The inner product of a gradient with a direction that it had no part in is
not biased, and deviations can be measured in the dual norm itself.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optim_jax.noise_scale.draws import (
    along_draws,
    check_number_of_draws,
    counted_draws,
    quotient,
    weights_of_draws,
)
from optim_jax.noise_scale.geometry import (
    aligned_parts,
    dual_norm_terms,
    squared_norm,
    sum_of_draws,
    weighted_sum,
)
from optim_jax.noise_scale.layout import METHODS, Layout, LeafLayout, layout_of_draws
from optim_jax.validation import check_choice

# A coordinate that only one draw touches: what the others sum up to is rounding, up to
# this many machine epsilons of it.
_ROUNDING = 4.0


class _Draws(NamedTuple):
    """The draws of a rank, and what all ranks have in common.

    Attributes:
      layout: of one gradient.
      leaves: the leaves that count.
      arrays: their draws (n, ...).
      means: their weighted means over all ranks.
      block_weights: multipliers of their dual norms.
      weights: (n,), samples per draw.
      fractions: (n,), the same over those of all ranks.
    """

    layout: Layout
    leaves: list[LeafLayout]
    arrays: list[jax.Array]
    means: list[jax.Array]
    block_weights: list[Any]
    weights: jax.Array
    fractions: jax.Array


def alignment_signal(
    stacked: Any,
    *,
    geometry: str,
    matrix_axes: Any = None,
    side: str = "min",
    mask: Any = None,
    sample_weights: Any = 1.0,
    axis_name: Any = None,
    block_weights: Any = None,
    method: str = "eigh",
) -> jax.Array:
    r"""Progress along the direction of the other draws, a signal of its own.

    .. math::

      \tilde s = \frac{1}{\sum_j b_j} \sum_j b_j
      \Big\langle p\Big(\sum_{i \ne j} b_i g_i\Big), g_j \Big\rangle,

    with p the steepest-descent direction: x over its norm (`l2`), its sign (`sign`) or
    the polar factor of each matrix (`spectral`). As :math:`g_j` is independent of the
    direction, the expectation is that of
    :math:`\langle \nabla L, p \rangle \le \|\nabla L\|_*`, zero on pure noise, and for
    sign and spectral without bias upwards.

    Args:
      stacked: gradients, leaves (n, ...); on ranks, each rank's own draws, n >= 1.
      geometry: as in `moments_from_stacked`.
      matrix_axes: as in `moments_from_stacked`.
      side: not read: the signal has no side.
      mask: as in `moments_from_stacked`.
      sample_weights: samples per draw, a scalar or (n,), >= 0; a draw of weight 0 does
        not count.
      axis_name: mapped axis of the ranks, or a tuple of them; None for one rank.
      block_weights: as in `noise_scale`.
      method: as in `noise_scale`, for polar factors.

    Returns:
      Scalar, not squared; may be negative. With s |s| it is the `signal_sq` of
      `measurement_of`.

    Raises:
      ValueError: there is one draw on all ranks together, or an argument does not fit.

    References:
      Derived, not read in arXiv 2602.03001.
    """
    draws = _gather(
        stacked,
        (geometry, matrix_axes, side, mask),
        sample_weights,
        axis_name,
        block_weights,
        method,
    )
    parts, squared_norms = [], []
    for leaf, array, mean in zip(draws.leaves, draws.arrays, draws.means, strict=True):
        own = along_draws(draws.fractions.astype(array.dtype), array) * array
        others = mean - own
        rounding = _ROUNDING * jnp.finfo(array.dtype).eps * jnp.abs(own)
        others = jnp.where(jnp.abs(others) <= rounding, 0.0, others)
        parts.append(aligned_parts(others, array, leaf, geometry, method))
        if geometry == "l2":
            squared_norms.append(sum_of_draws(jnp.square(others)))
    if geometry == "l2":
        norm = jnp.sqrt(squared_norm(squared_norms, draws.block_weights, geometry))
        inner = squared_norm(parts, draws.block_weights, geometry)
        progress = quotient(inner, norm)
    else:
        progress = weighted_sum(parts, draws.block_weights)
    return _all_ranks(jnp.sum(draws.fractions * progress), axis_name)


def direct_noise(
    stacked: Any,
    *,
    geometry: str,
    matrix_axes: Any = None,
    side: str = "min",
    mask: Any = None,
    sample_weights: Any = 1.0,
    axis_name: Any = None,
    block_weights: Any = None,
    method: str = "eigh",
) -> jax.Array:
    r"""Mean dual norm of the noise of one sample, not a bound of it.

    .. math::

      \nu = \operatorname{mean}_j \|g_j - \bar g\|_*
      \sqrt{\frac{b_j}{1 - b_j / \sum_i b_i}},

    which for n draws of b samples each is :math:`\sqrt{b n / (n - 1)}` times the mean
    of the norms. For Gaussian noise it is smaller than the noise of `noise_scale`: by
    :math:`\sqrt{2 / \pi}` under `sign`, by 8 / (3 pi) for square matrices of
    independent entries under `spectral`.

    Args:
      stacked: gradients, leaves (n, ...); on ranks, each rank's own draws, n >= 1.
      geometry: as in `moments_from_stacked`.
      matrix_axes: as in `moments_from_stacked`.
      side: not read: the dual norm has no side.
      mask: as in `moments_from_stacked`.
      sample_weights: as in `alignment_signal`.
      axis_name: as in `alignment_signal`.
      block_weights: as in `noise_scale`.
      method: as in `noise_scale`, for nuclear norms.

    Returns:
      Scalar, not squared; zero if fewer than two draws have samples.

    Raises:
      ValueError: there is one draw on all ranks together, or an argument does not fit.

    References:
      arXiv 2602.03001 remarks that this would be tighter than the bounds; the estimator
      is derived, not read.
    """
    draws = _gather(
        stacked,
        (geometry, matrix_axes, side, mask),
        sample_weights,
        axis_name,
        block_weights,
        method,
    )
    terms = [
        dual_norm_terms(array - mean, leaf, geometry, method)
        for leaf, array, mean in zip(
            draws.leaves, draws.arrays, draws.means, strict=True
        )
    ]
    norms = jnp.sqrt(squared_norm(terms, draws.block_weights, geometry))
    # A draw that holds all samples does not deviate from the mean.
    scales = jnp.sqrt(quotient(draws.weights, 1.0 - draws.fractions))
    counted = jnp.sum(draws.weights > 0.0).astype(norms.dtype)
    total, count = _all_ranks((jnp.sum(norms * scales), counted), axis_name)
    return quotient(total, count)


def _gather(
    stacked: Any,
    layout_arguments: tuple[str, Any, str, Any],
    sample_weights: Any,
    axis_name: Any,
    block_weights: Any,
    method: str,
) -> _Draws:
    """Checks the arguments and averages the draws over all ranks."""
    check_choice("method", method, METHODS)
    layout, number = layout_of_draws(stacked, *layout_arguments)
    if axis_name is None:
        check_number_of_draws(number, "axis 0 of the gradients")
    else:
        ranks = jax.lax.psum(1, axis_name)
        check_number_of_draws(number * ranks, f"axis {axis_name!r} with axis 0")
    weights = weights_of_draws(sample_weights, number, layout.dtype)
    fractions = quotient(weights, _all_ranks(jnp.sum(weights), axis_name))
    leaves, arrays, means, multipliers = [], [], [], []
    for leaf, array, multiplier in zip(
        layout.leaves,
        layout.flatten(stacked),
        layout.block_weights(block_weights),
        strict=True,
    ):
        if not leaf.counts:
            continue
        array = counted_draws(array, weights, leaf)
        share = along_draws(fractions.astype(array.dtype), array)
        leaves.append(leaf)
        arrays.append(array)
        means.append(_all_ranks(jnp.sum(share * array, axis=0), axis_name))
        multipliers.append(multiplier)
    return _Draws(layout, leaves, arrays, means, multipliers, weights, fractions)


def _all_ranks(values: Any, axis_name: Any) -> Any:
    """Sum over the ranks, if there are several."""
    return values if axis_name is None else jax.lax.psum(values, axis_name)
