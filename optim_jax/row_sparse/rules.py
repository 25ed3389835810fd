"""Update rules of single rows: SGD, Adagrad and row-wise Adagrad."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optim_jax.row_sparse.adagrad import (
    AxisName,
    accumulator_dtype,
    accumulator_like,
    adagrad_step,
    check_table,
    read_adagrad,
    row_wise_adagrad_step,
    scalar_like,
)
from optim_jax.typing import ScalarOrSchedule
from optim_jax.validation import as_static, check_nonnegative


class RowSparseState(NamedTuple):
    """State of a rule for one table: arrays only."""

    accumulator: jax.Array  # Adagrad [n, ...], row-wise [n], SGD [0]; >= float32
    count: jax.Array  # [] int32, update calls so far


@dataclasses.dataclass(frozen=True)
class RowRule:
    """What `sparse_update` does to the rows that it has gathered.

    Attributes:
      init: table [n, ...] -> `RowSparseState`; shapes will do.
      step: (accumulator rows, gradient rows [m, ...], count, axis name) -> (new
        accumulator rows, increments [m, ...]). Each row's gradient is complete, that
        is, summed over duplicates. `count` is the number of earlier update calls.
        The axis name is that of the mesh axis over which the columns are sharded, or
        None. A rule without an accumulator is given and returns the empty one.
    """

    init: Callable[[Any], RowSparseState]
    step: Callable[
        [jax.Array, jax.Array, jax.Array, AxisName], tuple[jax.Array, jax.Array]
    ]


def _start(accumulator: jax.Array) -> RowSparseState:
    return RowSparseState(accumulator, jnp.zeros([], jnp.int32))


def sparse_sgd(lr: ScalarOrSchedule) -> RowRule:
    r"""Gradient descent on the rows looked up: :math:`w_r \leftarrow w_r - \eta g_r`.

    There is no weight decay: it would move every row of the table in every step.

    Args:
      lr: learning rate :math:`\eta \ge 0`: float, array or schedule of the 0-based
        number of the update call.

    Returns:
      A rule; its accumulator is an empty array.

    Raises:
      ValueError: `lr` is out of range.
    """
    check_nonnegative(lr=lr)
    lr = as_static("lr", lr)

    def init(table: Any) -> RowSparseState:
        check_table("sparse_sgd", table)
        return _start(jnp.zeros((0,), accumulator_dtype(table)))

    def step(
        accumulator: jax.Array,
        gradients: jax.Array,
        count: jax.Array,
        axis_name: AxisName = None,
    ) -> tuple[jax.Array, jax.Array]:
        del axis_name
        rate = lr(count) if callable(lr) else lr
        return accumulator, -scalar_like(rate, gradients) * gradients

    return RowRule(init, step)


def sparse_adagrad(
    lr: ScalarOrSchedule,
    *,
    eps: float | jax.Array = 1e-10,
    lr_decay: float | jax.Array = 0.0,
    initial_accumulator_value: float | jax.Array = 0.0,
) -> RowRule:
    r"""Adagrad on the rows looked up, one statistic per entry.

    .. math::

      s \leftarrow s + g^2, \quad
      w \leftarrow w - \frac{\eta}{1 + (k - 1) \lambda} \frac{g}{\sqrt{s} + \epsilon}

    with k = 1, 2, ... the number of the update call, whichever rows it has touched.
    A row that is looked up with gradient zero keeps its weights, also for s = 0.
    Unlike in `optax.adagrad`, :math:`\epsilon` stands outside the root and s starts
    at zero. There is no weight decay: it would move every row in every step.

    Args:
      lr: learning rate :math:`\eta \ge 0`: float, array or schedule of k - 1.
      eps: :math:`\epsilon \ge 0`.
      lr_decay: :math:`\lambda \ge 0`.
      initial_accumulator_value: of every s, >= 0.

    Returns:
      A rule; its accumulator has the shape of the table.

    Raises:
      ValueError: an argument is out of range.

    References:
      Duchi, Hazan, Singer, 2011, https://jmlr.org/papers/v12/duchi11a.html.
    """
    options = read_adagrad("lr", lr, eps, lr_decay, initial_accumulator_value)

    def init(table: Any) -> RowSparseState:
        check_table("sparse_adagrad", table)
        return _start(accumulator_like(table, options, row_wise=False))

    def step(
        accumulator: jax.Array,
        gradients: jax.Array,
        count: jax.Array,
        axis_name: AxisName = None,
    ) -> tuple[jax.Array, jax.Array]:
        del axis_name
        return adagrad_step(options, accumulator, gradients, count)

    return RowRule(init, step)


def sparse_row_wise_adagrad(
    lr: ScalarOrSchedule,
    *,
    eps: float | jax.Array = 1e-10,
    lr_decay: float | jax.Array = 0.0,
    initial_accumulator_value: float | jax.Array = 0.0,
) -> RowRule:
    r"""Adagrad on the rows looked up, with one statistic per row.

    .. math::

      s_r \leftarrow s_r + \frac{1}{D} \sum_d g_{r,d}^2, \quad
      w_r \leftarrow w_r - \frac{\eta}{1 + (k - 1) \lambda}
        \frac{g_r}{\sqrt{s_r} + \epsilon}

    with k = 1, 2, ... the number of the update call, whichever rows it has touched.
    The gradient :math:`g_r` is the sum over all occurrences of the row in the batch,
    taken before it is squared. A row that is looked up with gradient zero keeps its
    weights, also for s = 0. There is no weight decay: it would move every row in
    every step.

    Args:
      lr: learning rate :math:`\eta \ge 0`: float, array or schedule of k - 1.
      eps: :math:`\epsilon \ge 0`.
      lr_decay: :math:`\lambda \ge 0`.
      initial_accumulator_value: of every s, >= 0.

    Returns:
      A rule; its accumulator has one number per row: 4 bytes for 4 D bytes of weights.

    Raises:
      ValueError: an argument is out of range.

    References:
      Naumov et al., 2019, https://arxiv.org/abs/1906.00091, whose public code has it.
    """
    options = read_adagrad("lr", lr, eps, lr_decay, initial_accumulator_value)

    def init(table: Any) -> RowSparseState:
        check_table("sparse_row_wise_adagrad", table)
        return _start(accumulator_like(table, options, row_wise=True))

    def step(
        accumulator: jax.Array,
        gradients: jax.Array,
        count: jax.Array,
        axis_name: AxisName = None,
    ) -> tuple[jax.Array, jax.Array]:
        return row_wise_adagrad_step(options, accumulator, gradients, count, axis_name)

    return RowRule(init, step)
