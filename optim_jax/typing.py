"""Types that several methods share."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import optax

Params = optax.Params
Updates = optax.Updates
ScalarOrSchedule = float | jax.Array | Callable[[jax.Array], jax.Array | float]

MatrixKind = Literal["hidden", "embedding", "head", "norm", "bias"]


class MatrixAxes(NamedTuple):
    """What one parameter leaf is, stated by the model and never inferred from rank.

    A leaf of kind `hidden`, `embedding` or `head` is a stack of matrices: the axes in
    `batch_axes` enumerate them, `reduction_axes` together are the side summed over in
    a product (the input side), `output_axes` the other side. The three cover every
    axis of the leaf once. Leaves of kind `norm` and `bias` are not matrices and
    their axes are ignored.

    Attributes:
      kind: role of the leaf: `hidden`, `embedding`, `head`, `norm` or `bias`.
      batch_axes: axes that enumerate independent matrices, e.g. stacked layers.
      reduction_axes: axes of the input side.
      output_axes: axes of the output side.
    """

    kind: MatrixKind
    batch_axes: tuple[int, ...] = ()
    reduction_axes: tuple[int, ...] = (0,)
    output_axes: tuple[int, ...] = (1,)


MatrixAxesTree = Any  # a tree of MatrixAxes like the params, or params -> such a tree
