r"""Dual norms, noise and steepest-descent directions of one leaf.

The geometries and what they add up over the leaves l of a tree:

* `l2`: the norm is :math:`\sqrt{\sum_l \alpha_l^2 \|x_l\|_2^2}`; a leaf's *term* is its
  squared norm.
* `sign` (primal :math:`\ell_\infty`, dual :math:`\ell_1`) and `spectral` (primal
  spectral norm, dual nuclear norm): :math:`\sum_l \alpha_l \|x_l\|_*`; a leaf's term is
  its dual norm, that of a stack of matrices the sum over them.

Leaves that stack draws have them along axis 0, and their terms are (n,).
Shape legend: n draws, B matrices in a leaf, M rows, N columns.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.linalg.nuclear_norm import nuclear_norm, polar_factor, trace_square_root
from optim_jax.noise_scale.draws import along_draws
from optim_jax.noise_scale.layout import LeafLayout
from optim_jax.trees.matrices import as_matrices


def dual_norm_terms(
    draws: jax.Array, leaf: LeafLayout, geometry: str, method: str
) -> jax.Array:
    """What each draw of a leaf adds to the dual norm.

    Args:
      draws: (n, ...) in single or double precision.
      leaf: what the leaf is.
      geometry: `"l2"`, `"sign"` or `"spectral"`.
      method: how nuclear norms are computed, `"eigh"` or `"matmul"`.

    Returns:
      Terms (n,): squared norms for `l2`, dual norms for the others.
    """
    if geometry == "l2":
        return sum_of_draws(jnp.square(draws))
    if geometry == "sign":
        return sum_of_draws(jnp.abs(draws))
    return jnp.sum(nuclear_norm(matrices_of_draws(draws, leaf), method), axis=-1)


def noise_term(m2: Any, leaf: LeafLayout, geometry: str, method: str) -> jax.Array:
    r"""What a leaf adds to the dual norm of the noise, from its second moment.

    The noise of a leaf is :math:`\sum_i \sigma_i^2` (`l2`, squared already),
    :math:`\sum_i \sigma_i` (`sign`) or :math:`\operatorname{tr} C^{1/2}`, summed over
    the matrices (`spectral`).

    Args:
      m2: weighted sum of squared deviations as in `Moments`; the divisor n - 1 is left
        to the caller.
      leaf: what the leaf is.
      geometry: `"l2"`, `"sign"` or `"spectral"`.
      method: how traces of square roots are computed, `"eigh"` or `"matmul"`.

    Returns:
      Scalar.
    """
    if geometry == "l2":
        return jnp.sum(m2)
    if geometry == "sign":
        return jnp.sum(jnp.sqrt(m2))
    traces = [trace_square_root(gram, method) for gram in grams_of(m2, leaf)]
    # Either side is an upper bound, whichever is smaller for the other matrices.
    return jnp.sum(traces[0] if len(traces) == 1 else jnp.minimum(*traces))


def squared_norm(
    terms: Sequence[jax.Array], weights: Sequence[Any], geometry: str
) -> jax.Array:
    """Squared dual norm of a tree from the terms of its leaves.

    Sums over the leaves come first and are squared at the end.

    Args:
      terms: one per leaf that counts, all of one shape.
      weights: multiplier of the dual norm of each.
      geometry: `"l2"`, `"sign"` or `"spectral"`.

    Returns:
      Array of the shape of a term.
    """
    if geometry == "l2":
        return weighted_sum(terms, [weight * weight for weight in weights])
    return jnp.square(weighted_sum(terms, weights))


def weighted_sum(terms: Sequence[jax.Array], weights: Sequence[Any]) -> jax.Array:
    """Sum of arrays of one shape, each times a number."""
    return jnp.asarray(
        sum(weight * term for term, weight in zip(terms, weights, strict=True))
    )


def signed_square(value: jax.Array) -> jax.Array:
    """Square that keeps the sign, as a signed signal enters a measurement."""
    return value * jnp.abs(value)


def second_moment(deviations: jax.Array, weights: jax.Array, leaf: LeafLayout) -> Any:
    r"""Sum of :math:`b \delta^2` over draws, :math:`b \Delta \Delta^T` for matrices.

    Args:
      deviations: (n, ...).
      weights: b (n,).
      leaf: what the leaf is.

    Returns:
      What `Moments.m2` holds for the leaf.
    """
    weights = along_draws(weights.astype(deviations.dtype), deviations)
    if not leaf.sides:
        return jnp.sum(weights * jnp.square(deviations), axis=0)
    stack_nbmn = matrices_of_draws(jnp.sqrt(weights) * deviations, leaf)
    grams = tuple(
        # Contracted without a reshape: a leaf may be sharded along its long side.
        jnp.einsum(
            "nbik,nbjk->bij" if side == "row" else "nbki,nbkj->bij",
            stack_nbmn,
            stack_nbmn,
            precision=jax.lax.Precision.HIGHEST,
        ).reshape(leaf.gram_shape(side))
        for side in leaf.sides
    )
    return grams[0] if len(grams) == 1 else grams


def aligned_parts(
    reference: jax.Array, draws: jax.Array, leaf: LeafLayout, geometry: str, method: str
) -> jax.Array:
    r"""Inner products :math:`\langle p(r_j), g_j \rangle` of the draws of a leaf.

    Args:
      reference: r (n, ...), what each draw is compared with.
      draws: g (n, ...).
      leaf: what the leaf is.
      geometry: `"l2"`, `"sign"` or `"spectral"`.
      method: how polar factors are computed, `"eigh"` or `"matmul"`.

    Returns:
      Array (n,), where p is the steepest-descent direction: sign(r) for `sign`, the
      polar factor for `spectral`. For `l2` it is r itself, whose norm is that of the
      whole tree.
    """
    if geometry == "l2":
        return sum_of_draws(reference * draws)
    if geometry == "sign":
        return sum_of_draws(jnp.sign(reference) * draws)
    direction = polar_factor(matrices_of_draws(reference, leaf), method)
    return sum_of_draws(direction * matrices_of_draws(draws, leaf))


def sum_of_draws(draws: jax.Array) -> jax.Array:
    """Sum over the coordinates of each draw: (n, ...) to (n,)."""
    return jnp.sum(draws, axis=tuple(range(1, draws.ndim)))


def matrices_of_draws(draws: jax.Array, leaf: LeafLayout) -> jax.Array:
    """Views draws (n, ...) of a leaf as stacks of matrices (n, B, M, N)."""
    assert leaf.axes is not None
    return jax.vmap(functools.partial(as_matrices, axes=leaf.axes))(draws)


def grams_of(m2: Any, leaf: LeafLayout) -> tuple[jax.Array, ...]:
    """The Gram matrices (B, k, k) in an entry of `Moments.m2`, one per side kept."""
    grams = m2 if len(leaf.sides) == 2 else (m2,)
    number = math.prod(leaf.batch_shape)
    return tuple(
        gram.reshape(number, *leaf.gram_shape(side)[-2:])
        for gram, side in zip(grams, leaf.sides, strict=True)
    )
