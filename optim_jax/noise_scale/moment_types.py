"""What moments are made of, and the check that they fit a layout."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim_jax.noise_scale.draws import counted_draws, weights_of_draws
from optim_jax.noise_scale.layout import Layout, LeafLayout


class Moments(NamedTuple):
    """Mean and spread of a number of gradients.

    Attributes:
      mean: weighted mean of the draws, like the gradients, for all leaves of real
        numbers; `optax.MaskedNode` in place of integer ones.
      m2: weighted sum of squared deviations. Like the leaf under `l2` and `sign`; under
        `spectral` the Gram matrices (batch..., k, k) of the chosen side, a pair (row,
        col) for side="tightest". `optax.MaskedNode` where a leaf does not count.
      count: int32 (), n, the draws of positive weight.
      weight: (), W, samples of all draws together.

    The statistics are float32, float64 for gradients in float64. The functions
    `moments_...` return subclasses that only name the layout of `m2`: a row and a
    column Gram matrix of a square leaf, or the squares of its entries, have the same
    shape. For `out_specs` or `out_axes` give one spec for the whole, not a `Moments`.
    """

    mean: Any
    m2: Any
    count: jax.Array
    weight: jax.Array


class ElementwiseMoments(Moments):
    """Moments under `l2` and `sign`: m2 is like the leaves."""

    __slots__ = ()


class MinMoments(Moments):
    """Moments under `spectral` with side="min"."""

    __slots__ = ()


class RowMoments(Moments):
    """Moments under `spectral` with side="row"."""

    __slots__ = ()


class ColMoments(Moments):
    """Moments under `spectral` with side="col"."""

    __slots__ = ()


class TightestMoments(Moments):
    """Moments under `spectral` with side="tightest"."""

    __slots__ = ()


_SPECTRAL_MOMENTS = {
    "min": MinMoments,
    "row": RowMoments,
    "col": ColMoments,
    "tightest": TightestMoments,
}


def pack_moments(
    layout: Layout,
    parts: Iterable[tuple[Any, Any]],
    count: jax.Array,
    weight: jax.Array,
) -> Moments:
    """Builds moments from the mean and second moment of each leaf; None is masked."""
    means, seconds = zip(*parts, strict=True)
    return _kind(layout)(
        layout.unflatten(means), layout.unflatten(seconds), count, weight
    )


def parts_of(
    moments: Moments, layout: Layout
) -> Iterator[tuple[LeafLayout, jax.Array, Any]]:
    """Yields the leaves with their mean and second moment, as `pack_moments` took them.

    What a leaf lacks is an `optax.MaskedNode`.
    """
    return zip(
        layout.leaves,
        layout.flatten(moments.mean),
        layout.flatten(moments.m2),
        strict=True,
    )


def moments_of_one_draw(grads: Any, weight: Any, layout: Layout) -> Moments:
    """Moments of a single gradient."""
    weights = weights_of_draws(weight, 1, layout.dtype)

    def parts(leaf: LeafLayout, grad: Any) -> tuple[Any, Any]:
        if leaf.dtype is None:
            return None, None
        draws = counted_draws(jnp.asarray(grad)[None], weights, leaf)
        return draws[0], zero_second_moment(grad, leaf)

    return pack_moments(
        layout,
        map(parts, layout.leaves, layout.flatten(grads)),
        jnp.asarray(weights[0] > 0.0, jnp.int32),
        weights[0],
    )


def zero_mean(array: Any, leaf: LeafLayout) -> jax.Array | None:
    """Mean of no draws, for a leaf or its shape; None without real numbers."""
    if leaf.dtype is None:
        return None
    if isinstance(array, jax.Array):  # with the sharding of the leaf
        return jnp.zeros_like(array, leaf.dtype)
    return jnp.zeros(leaf.shape, leaf.dtype)


def zero_second_moment(array: Any, leaf: LeafLayout) -> Any:
    """Second moment of no draws or of one; None for a leaf that does not count."""
    if not leaf.counts:
        return None
    if not leaf.sides:
        return zero_mean(array, leaf)
    grams = tuple(jnp.zeros(leaf.gram_shape(side), leaf.dtype) for side in leaf.sides)
    return grams[0] if len(grams) == 1 else grams


def check_moments(moments: Any, layout: Layout) -> None:
    """Checks that moments have been gathered with the given layout.

    Raises:
      ValueError: they have not; the message names the leaf where one is at fault.
    """
    if not isinstance(moments, Moments):
        raise ValueError(
            "moments must be what the functions moments_... return, got "
            f"{type(moments).__name__}"
        )
    kind = _kind(layout)
    if type(moments) not in (kind, Moments):
        raise ValueError(
            f"the moments are {type(moments).__name__}, but geometry="
            f"{layout.geometry!r} with side={layout.side!r} reads {kind.__name__}; "
            "give every call on the same moments the same geometry and side"
        )
    for leaf, mean, second in parts_of(moments, layout):
        wanted = _expected(leaf)
        found = tuple(_type(part) for part in (mean, second))
        if found != wanted:
            raise ValueError(
                f"the moments of leaf {leaf.name!r} are (mean, m2) = {found}, but the "
                f"gradient of shape {leaf.shape} and the layout need {wanted}; give "
                "every call on the same moments the same layout"
            )


def _kind(layout: Layout) -> type[Moments]:
    if layout.geometry == "spectral":
        return _SPECTRAL_MOMENTS[layout.side]
    return ElementwiseMoments


def _expected(leaf: LeafLayout) -> tuple[Any, Any]:
    """Shapes and dtypes of mean and second moment of a leaf."""
    mean = second = None
    if leaf.dtype is not None:
        mean = (leaf.shape, str(leaf.dtype))
    if leaf.counts:
        grams = tuple((leaf.gram_shape(side), str(leaf.dtype)) for side in leaf.sides)
        second = mean if not grams else grams[0] if len(grams) == 1 else grams
    return mean, second


def _type(part: Any) -> Any:
    if isinstance(part, optax.MaskedNode):
        return None
    if isinstance(part, (tuple, list)):
        return tuple(_type(item) for item in part)
    return tuple(jnp.shape(part)), str(jnp.result_type(part))
