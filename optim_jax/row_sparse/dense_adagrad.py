"""Adagrad for dense gradients, element-wise and row-wise, as Optax transformations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim_jax.row_sparse.adagrad import (
    AdagradOptions,
    accumulator_like,
    adagrad_step,
    read_adagrad,
    row_wise_adagrad_step,
)
from optim_jax.trees.paths import named_leaves
from optim_jax.typing import Params, ScalarOrSchedule, Updates
from optim_jax.validation import check_inexact_leaves


class AdagradState(NamedTuple):
    """State of `row_wise_adagrad` and `dense_adagrad`."""

    accumulator: Any  # s of each leaf: its shape, or its first axis; >= float32
    count: jax.Array  # [] int32, updates so far


def row_wise_adagrad(
    learning_rate: ScalarOrSchedule,
    *,
    eps: float | jax.Array = 1e-10,
    lr_decay: float | jax.Array = 0.0,
    initial_accumulator_value: float | jax.Array = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Adagrad with one statistic per row, on every leaf it is given.

    .. math::

      s_r \leftarrow s_r + \operatorname{mean}_d g_{r,d}^2, \quad
      w_r \leftarrow w_r - \frac{\eta}{1 + (k - 1) \lambda}
        \frac{g_r}{\sqrt{s_r} + \epsilon}

    The first axis of a leaf enumerates its rows, and the mean is taken over all
    others: for a vector, whose rows are single numbers, this is `dense_adagrad`. The
    role of a leaf is never guessed from its rank; give tables and other leaves to two
    transformations by `optax.partition`.

    For tables in training, `row_sparse.sparse_update` does the same at the cost of the
    rows that were looked up. The two agree because there is no weight decay, which
    would also move rows that have no gradient.

    Args:
      learning_rate: :math:`\eta \ge 0`: float, array or schedule of the 0-based step.
      eps: :math:`\epsilon \ge 0`.
      lr_decay: :math:`\lambda \ge 0`, with k = 1, 2, ... the number of the update.
      initial_accumulator_value: of every s, >= 0.

    Returns:
      An `optax.GradientTransformationExtraArgs` with an `AdagradState`: 4 bytes per
      row. It does not look at the params.

    Raises:
      ValueError: an argument is out of range; a leaf is not real floating-point or
        has no rows.

    References:
      Naumov et al., 2019, https://arxiv.org/abs/1906.00091, whose public code has it.
    """
    options = read_adagrad(
        "learning_rate", learning_rate, eps, lr_decay, initial_accumulator_value
    )
    step = row_wise_adagrad_step
    return _adagrad("row_wise_adagrad", options, step, row_wise=True)


def dense_adagrad(
    learning_rate: ScalarOrSchedule,
    *,
    eps: float | jax.Array = 1e-10,
    lr_decay: float | jax.Array = 0.0,
    initial_accumulator_value: float | jax.Array = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Adagrad with one statistic per entry, the companion of `row_wise_adagrad`.

    .. math::

      s \leftarrow s + g^2, \quad
      w \leftarrow w - \frac{\eta}{1 + (k - 1) \lambda} \frac{g}{\sqrt{s} + \epsilon}

    Unlike in `optax.adagrad`, :math:`\epsilon` stands outside the root and s starts
    at zero.

    Args:
      learning_rate: :math:`\eta \ge 0`: float, array or schedule of the 0-based step.
      eps: :math:`\epsilon \ge 0`.
      lr_decay: :math:`\lambda \ge 0`, with k = 1, 2, ... the number of the update.
      initial_accumulator_value: of every s, >= 0.

    Returns:
      An `optax.GradientTransformationExtraArgs` with an `AdagradState`: 4 bytes per
      parameter. It does not look at the params.

    Raises:
      ValueError: an argument is out of range; a leaf is not real floating-point.

    References:
      Duchi, Hazan, Singer, 2011, https://jmlr.org/papers/v12/duchi11a.html.
    """
    options = read_adagrad(
        "learning_rate", learning_rate, eps, lr_decay, initial_accumulator_value
    )
    return _adagrad("dense_adagrad", options, adagrad_step, row_wise=False)


def _adagrad(
    name: str, options: AdagradOptions, step: Callable[..., Any], row_wise: bool
) -> optax.GradientTransformationExtraArgs:
    def init(params: Params) -> AdagradState:
        _check_leaves(name, params, row_wise)
        accumulator = jax.tree.map(
            lambda leaf: accumulator_like(leaf, options, row_wise), params
        )
        return AdagradState(accumulator, jnp.zeros([], jnp.int32))

    def update(
        updates: Updates, state: Any, params: Any = None, **_: Any
    ) -> tuple[Updates, AdagradState]:
        del params
        accumulators, structure = jax.tree.flatten(state.accumulator)
        gradients = structure.flatten_up_to(updates)

        def move(s: jax.Array, g: Any) -> tuple[jax.Array, Any]:
            if g is None or isinstance(g, optax.MaskedNode):
                return s, g
            s, increment = step(options, s, g.astype(s.dtype), state.count)
            return s, increment.astype(g.dtype)

        moved = [move(s, g) for s, g in zip(accumulators, gradients, strict=True)]
        accumulator = structure.unflatten([s for s, _ in moved])
        count = jnp.asarray(optax.safe_increment(state.count))
        increments = structure.unflatten([increment for _, increment in moved])
        return increments, AdagradState(accumulator, count)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_leaves(name: str, params: Params, row_wise: bool) -> None:
    check_inexact_leaves(name, params)
    for path, leaf in named_leaves(params):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise ValueError(
                f"{name} is defined for real leaves only, but leaf {path!r} is "
                f"{jnp.result_type(leaf)}; route it elsewhere with optax.partition"
            )
        if row_wise and not jnp.ndim(leaf):
            raise ValueError(
                f"{name} needs leaves with rows, but leaf {path!r} is a scalar; route "
                "it to dense_adagrad with optax.partition"
            )
