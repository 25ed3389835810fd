r"""Weighted mean and second moment of gradients, from any arrangement of the draws.

Draw j is a gradient :math:`g_j`, the mean over :math:`b_j` samples. Of n draws,

.. math::

  W = \sum_j b_j, \quad \bar g = \frac1W \sum_j b_j g_j, \quad
  m_2 = \sum_j b_j (g_j - \bar g)^2,

and :math:`m_2 / (n - 1)` is unbiased for the variance of one sample. Two sets of draws
are merged by

.. math::

  m_2 = m_{2,a} + m_{2,b} + \frac{W_a W_b}{W_a + W_b} (\bar g_a - \bar g_b)^2.

For matrices under the spectral geometry the square is a Gram matrix,
:math:`\Delta \Delta^T` or :math:`\Delta^T \Delta`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from optim_jax.noise_scale.draws import (
    along_draws,
    check_number_of_draws,
    counted_draws,
    quotient,
    weights_of_draws,
)
from optim_jax.noise_scale.geometry import second_moment
from optim_jax.noise_scale.layout import Layout, LeafLayout, layout_of, layout_of_draws
from optim_jax.noise_scale.moment_types import (
    Moments,
    check_moments,
    moments_of_one_draw,
    pack_moments,
    parts_of,
    zero_mean,
    zero_second_moment,
)


def moments_from_stacked(
    stacked: Any,
    *,
    geometry: str,
    matrix_axes: Any = None,
    side: str = "min",
    mask: Any = None,
    sample_weights: Any = 1.0,
    centred: bool = True,
) -> Moments:
    """Moments of gradients stacked along axis 0.

    Args:
      stacked: gradients, leaves (n, ...) with n >= 2.
      geometry: `"l2"`, `"sign"` or `"spectral"`.
      matrix_axes: tree with one `MatrixAxes` per leaf, or a function from the gradients
        to it; they refer to the leaves without axis 0. Required under `spectral`, where
        only `hidden` leaves count.
      side: Gram matrix of a matrix under `spectral`: of its `"row"`s (the reduction
        axes), its `"col"`umns, the smaller of the two (`"min"`; rows of a square
        matrix, so that the noise then depends on the layout of the leaf), or both, of
        which the smaller trace will be taken (`"tightest"`).
      mask: which leaves count: tree of bools, a prefix of one, or a function from the
        gradients to it.
      sample_weights: samples per draw, a scalar or (n,), >= 0. A draw of weight 0 does
        not count, whatever its gradient holds.
      centred: sum the squares of the deviations; otherwise the squares of the gradients
        less that of their mean, clipped at zero, which cancels badly where the mean is
        large.

    Returns:
      The moments.

    Raises:
      ValueError: there is one draw only, or the layout or the weights do not fit.

    References:
      arXiv 2602.03001, estimators of the noise from local gradients, for equal weights
      and `centred=False`; the weighted, centred form is derived, not read.
    """
    layout, draws = layout_of_draws(stacked, geometry, matrix_axes, side, mask)
    check_number_of_draws(draws, "axis 0 of the gradients")
    weights = weights_of_draws(sample_weights, draws, layout.dtype)
    total = jnp.sum(weights)
    parts = [
        _of_stacked_leaf(array, weights, total, leaf, centred)
        for leaf, array in zip(layout.leaves, layout.flatten(stacked), strict=True)
    ]
    count = jnp.sum(weights > 0.0, dtype=jnp.int32)
    return pack_moments(layout, parts, count, total)


def moments_init(
    params: Any,
    *,
    geometry: str,
    matrix_axes: Any = None,
    side: str = "min",
    mask: Any = None,
) -> Moments:
    """Moments of no draws: where `moments_push` begins.

    Inside `jax.shard_map` with `check_vma=True` the carry of a loop must vary over the
    same mesh axes before and after. Given arrays, all the moments vary over the axes
    that any of them varies over: give the parameters after `jax.lax.pcast(params, axis,
    to="varying")`, which gradients per device need anyway, or a gradient. Moments made
    of shapes do not vary.

    Args:
      params: arrays, or `jax.ShapeDtypeStruct`s, with the shapes of the gradients.
      geometry: as in `moments_from_stacked`.
      matrix_axes: as in `moments_from_stacked`.
      side: as in `moments_from_stacked`.
      mask: as in `moments_from_stacked`.

    Returns:
      Zeros.

    Raises:
      ValueError: the layout does not fit.
    """
    layout = layout_of(params, geometry, matrix_axes, side, mask)
    arrays = layout.flatten(params)
    empty = pack_moments(
        layout,
        [
            (zero_mean(array, leaf), zero_second_moment(array, leaf))
            for leaf, array in zip(layout.leaves, arrays, strict=True)
        ],
        jnp.zeros((), jnp.int32),
        jnp.zeros((), layout.dtype),
    )
    zero = _varying_zero(arrays, layout)
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), empty)


def moments_push(
    moments: Moments,
    grads: Any,
    weight: Any = 1.0,
    *,
    geometry: str,
    matrix_axes: Any = None,
    side: str = "min",
    mask: Any = None,
) -> Moments:
    r"""Moments with one more draw.

    With :math:`W' = W + b` and :math:`\delta = g - \bar g`,

    .. math::

      \bar g \leftarrow \bar g + \frac{b}{W'} \delta, \quad
      m_2 \leftarrow m_2 + \frac{b W}{W'} \delta^2.

    Args:
      moments: of `moments_init` or of other draws.
      grads: one gradient.
      weight: b, samples that it averages, >= 0; 0 leaves the moments alone, whatever
        the gradient holds.
      geometry: as in `moments_from_stacked`.
      matrix_axes: as in `moments_from_stacked`.
      side: as in `moments_from_stacked`.
      mask: as in `moments_from_stacked`.

    Returns:
      The moments, of the same shapes and dtypes: a carry of `jax.lax.scan` and
      `jax.lax.fori_loop`.

    Raises:
      ValueError: the layout does not fit, or is not that of `moments`.
    """
    layout = layout_of(grads, geometry, matrix_axes, side, mask)
    check_moments(moments, layout)
    return _merge(moments, moments_of_one_draw(grads, weight, layout), layout)


def moments_merge(
    a: Moments,
    b: Moments,
    *,
    geometry: str,
    matrix_axes: Any = None,
    side: str = "min",
    mask: Any = None,
) -> Moments:
    """Moments of the draws of both; either may be empty.

    Args:
      a: moments.
      b: moments of other draws of the same gradients.
      geometry: as in `moments_from_stacked`.
      matrix_axes: as in `moments_from_stacked`.
      side: as in `moments_from_stacked`.
      mask: as in `moments_from_stacked`.

    Returns:
      The moments.

    Raises:
      ValueError: the layout does not fit, or is not that of both.
    """
    layout = layout_of(a.mean, geometry, matrix_axes, side, mask)
    check_moments(a, layout)
    check_moments(b, layout)
    return _merge(a, b, layout)


def moments_psum(
    local: Any,
    axis_name: Any,
    *,
    geometry: str,
    matrix_axes: Any = None,
    side: str = "min",
    mask: Any = None,
    weight: Any = 1.0,
    centred: bool = True,
) -> Moments:
    """Moments of the draws of all ranks, inside `jax.shard_map` or `jax.vmap`.

    Two rounds of reductions, the second of which needs the first: of the weighted means
    with the counts, then of the squared deviations. `centred=False` needs one.

    The gradients must be each rank's own. Inside `jax.shard_map` with `check_vma=True`,
    differentiating with respect to replicated parameters gives gradients that are
    already summed over the mesh axis; make the parameters vary first, by
    `jax.lax.pcast(params, axis_name, to="varying")`. `check_independent_draws` notices.

    Args:
      local: a tree of gradients, one draw per rank; or a rank's `Moments`, whose draws
        are merged.
      axis_name: mapped axis, or a tuple of them.
      geometry: as in `moments_from_stacked`.
      matrix_axes: as in `moments_from_stacked`.
      side: as in `moments_from_stacked`.
      mask: as in `moments_from_stacked`.
      weight: samples that the rank's gradient averages, >= 0; not read with `Moments`.
        A rank of weight 0 does not count, whatever its gradient holds.
      centred: as in `moments_from_stacked`.

    Returns:
      The moments, equal on all ranks.

    Raises:
      ValueError: one gradient on an axis of size 1, or the layout does not fit or is
        not that of `local`.
    """
    if isinstance(local, Moments):
        layout = layout_of(local.mean, geometry, matrix_axes, side, mask)
        check_moments(local, layout)
    else:
        layout = layout_of(local, geometry, matrix_axes, side, mask)
        check_number_of_draws(jax.lax.psum(1, axis_name), f"axis {axis_name!r}")
        local = moments_of_one_draw(local, weight, layout)
    total, count = jax.lax.psum((local.weight, local.count), axis_name)
    parts = [
        _psum_leaf(part, local.weight, total, axis_name, centred)
        for part in parts_of(local, layout)
    ]
    return pack_moments(layout, parts, count, total)


def _of_stacked_leaf(
    array: jax.Array,
    weights: jax.Array,
    total: jax.Array,
    leaf: LeafLayout,
    centred: bool,
) -> tuple[Any, Any]:
    """Mean and second moment of the draws (n, ...) of a leaf."""
    if leaf.dtype is None:
        return None, None
    draws = counted_draws(array, weights, leaf)
    shares = along_draws(quotient(weights, total).astype(leaf.dtype), draws)
    mean = jnp.sum(shares * draws, axis=0)
    if not leaf.counts:
        return mean, None
    if centred:
        return mean, second_moment(draws - mean, weights, leaf)
    return mean, _about_mean(second_moment(draws, weights, leaf), total, mean, leaf)


def _psum_leaf(
    part: tuple[LeafLayout, jax.Array, Any],
    weight: jax.Array,
    total: jax.Array,
    axis_name: Any,
    centred: bool,
) -> tuple[Any, Any]:
    """Mean and second moment of a leaf over all ranks."""
    leaf, local_mean, local_second = part
    if leaf.dtype is None:
        return None, None
    mean = jax.lax.psum(weight.astype(leaf.dtype) * local_mean, axis_name)
    mean = quotient(mean, total.astype(leaf.dtype))
    if not leaf.counts:
        return mean, None
    deviation = local_mean - mean if centred else local_mean
    between = second_moment(deviation[None], weight[None], leaf)
    spread = jax.tree.map(jnp.add, local_second, between)
    second = jax.lax.psum(spread, axis_name)
    return mean, second if centred else _about_mean(second, total, mean, leaf)


def _merge(a: Moments, b: Moments, layout: Layout) -> Moments:
    total = a.weight + b.weight
    share = quotient(b.weight, total)
    scale = (a.weight * share)[None]

    def merged(a_part: Any, b_part: Any) -> tuple[Any, Any]:
        (leaf, mean_a, second_a), (_, mean_b, second_b) = a_part, b_part
        if leaf.dtype is None:
            return None, None
        difference = mean_b - mean_a
        mean = mean_a + share.astype(leaf.dtype) * difference
        if not leaf.counts:
            return mean, None
        between = second_moment(difference[None], scale, leaf)
        return mean, jax.tree.map(
            lambda *terms: sum(terms), second_a, second_b, between
        )

    return pack_moments(
        layout,
        map(merged, parts_of(a, layout), parts_of(b, layout)),
        a.count + b.count,
        total,
    )


def _varying_zero(arrays: list[Any], layout: Layout) -> jax.Array:
    """A zero that varies over the axes of `jax.shard_map` that any array varies over.

    Outside of a trace nothing varies.
    """
    zero = jnp.zeros(())
    for leaf, array in zip(layout.leaves, arrays, strict=True):
        if leaf.dtype is not None and isinstance(array, Tracer):
            none_of_it = array[None][(slice(0, 0),) * (array.ndim + 1)]
            zero += jnp.sum(none_of_it, dtype=zero.dtype)
    return zero


def _about_mean(raw: Any, total: jax.Array, mean: jax.Array, leaf: LeafLayout) -> Any:
    """Second moment about the mean from that about zero, not below zero."""
    of_mean = second_moment(mean[None], total[None], leaf)
    difference = jax.tree.map(jnp.subtract, raw, of_mean)
    # The eigenvalues of a Gram matrix are clipped where they are computed.
    return difference if leaf.sides else jnp.maximum(difference, 0.0)
