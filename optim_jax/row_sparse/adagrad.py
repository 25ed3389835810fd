"""Adagrad on one array, element-wise and row-wise: the maths and its arguments."""

import math
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from optim_jax.trees.mesh_axes import explicit_mesh
from optim_jax.typing import ScalarOrSchedule
from optim_jax.validation import as_static, check_constant, check_nonnegative

AxisName = str | tuple[str, ...] | None


class AdagradOptions(NamedTuple):
    """Checked arguments: Python floats, arrays, or a schedule as learning rate."""

    learning_rate: Any
    eps: Any
    lr_decay: Any
    initial_accumulator_value: Any


def read_adagrad(
    rate_name: str,
    learning_rate: ScalarOrSchedule,
    eps: Any,
    lr_decay: Any,
    initial_accumulator_value: Any,
) -> AdagradOptions:
    """Checks the arguments of an Adagrad.

    Args:
      rate_name: what the caller calls the learning rate, for the message.
      learning_rate: float, array or schedule.
      eps: float or array.
      lr_decay: float or array.
      initial_accumulator_value: float or array.

    Raises:
      ValueError: an argument is negative or not finite, or a schedule is given for
        another argument than the learning rate.
    """
    check_nonnegative(**{rate_name: learning_rate})
    constants = {
        "eps": eps,
        "lr_decay": lr_decay,
        "initial_accumulator_value": initial_accumulator_value,
    }
    for name, value in constants.items():
        check_constant(name, value)
        check_nonnegative(**{name: value})
    read = {name: as_static(name, value) for name, value in constants.items()}
    return AdagradOptions(as_static(rate_name, learning_rate), **read)


def check_table(name: str, table: Any) -> None:
    """Refuses a table without rows, or with entries that are not real numbers.

    Raises:
      ValueError: the table is a scalar.
      TypeError: its dtype is not real floating-point.
    """
    if not table.ndim:
        raise ValueError(f"{name} updates the rows of a table, got a scalar")
    if not jnp.issubdtype(table.dtype, jnp.floating):
        raise TypeError(f"{name} needs a real floating-point table, got {table.dtype}")


def accumulator_dtype(leaf: Any) -> Any:
    """The leaf's dtype, or float32 for a half-precision leaf."""
    return jnp.promote_types(leaf.dtype, jnp.float32)


def accumulator_like(leaf: Any, options: AdagradOptions, row_wise: bool) -> jax.Array:
    """The first accumulator of a leaf, where the leaf lies; never a view of it.

    Args:
      leaf: array or its shape and dtype, of rank >= 1 if `row_wise`.
      options: with the value to fill in.
      row_wise: one number per entry of the first axis instead of one per entry.
    """
    dtype = accumulator_dtype(leaf)
    value = scalar_like(options.initial_accumulator_value, dtype)
    if not row_wise:
        return jnp.full_like(leaf, value, dtype=dtype)
    return jnp.full_like(
        leaf, value, dtype=dtype, shape=leaf.shape[:1], device=_sharding_of_rows(leaf)
    )


def _sharding_of_rows(leaf: Any) -> NamedSharding | None:
    """That of the first axis, where the array or its type states one."""
    if isinstance(leaf, jax.core.Tracer):
        if explicit_mesh(leaf) is None:
            return None
        sharding = jax.typeof(leaf).sharding
    else:
        sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))


def scalar_like(scalar: Any, like: Any) -> Any:
    """A scalar that does not promote an array; Python floats never do."""
    dtype = getattr(like, "dtype", like)
    return scalar if isinstance(scalar, float) else jnp.asarray(scalar, dtype)


def step_size(options: AdagradOptions, count: jax.Array, dtype: Any) -> Any:
    r"""Learning rate of the next update, :math:`\eta_k / (1 + (k - 1) \lambda)`.

    Args:
      options: with :math:`\eta` and :math:`\lambda`.
      count: k - 1, the number of earlier updates.
      dtype: of the result where it is an array.
    """
    rate, decay = options.learning_rate, options.lr_decay
    rate = scalar_like(rate(count) if callable(rate) else rate, dtype)
    if isinstance(decay, float) and decay == 0.0:
        return rate
    return rate / (1.0 + count.astype(dtype) * scalar_like(decay, dtype))


def _root(options: AdagradOptions, accumulator: jax.Array) -> jax.Array:
    """sqrt(s) + eps, and 1 in place of 0: there, the gradient is zero as well."""
    root = jnp.sqrt(accumulator) + scalar_like(options.eps, accumulator)
    return jnp.where(root == 0.0, 1.0, root)


def adagrad_step(
    options: AdagradOptions,
    accumulator: jax.Array,
    gradient: jax.Array,
    count: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One update of Adagrad with one statistic per entry.

    Args:
      options: the arguments.
      accumulator: s, shaped like the gradient.
      gradient: g, of the accumulator's dtype.
      count: number of earlier updates.

    Returns:
      The new s, and the increment of the weights.
    """
    accumulator = accumulator + jnp.square(gradient)
    rate = step_size(options, count, accumulator.dtype)
    return accumulator, -rate * gradient / _root(options, accumulator)


def row_wise_adagrad_step(
    options: AdagradOptions,
    accumulator: jax.Array,
    gradient: jax.Array,
    count: jax.Array,
    axis_name: AxisName = None,
) -> tuple[jax.Array, jax.Array]:
    """One update of Adagrad with one statistic per row.

    Args:
      options: the arguments.
      accumulator: s, [m].
      gradient: g, [m, ...], of the accumulator's dtype; the mean of squares is taken
        over all axes but the first.
      count: number of earlier updates.
      axis_name: mesh axis over which the other axes of the gradient are sharded
        evenly, inside `jax.shard_map`; None if each row is complete.

    Returns:
      The new s, and the increment of the weights.
    """
    columns = tuple(range(1, gradient.ndim))
    width = max(1, math.prod(gradient.shape[1:]))
    squares = jnp.sum(jnp.square(gradient), axis=columns)
    if axis_name is not None:
        squares = jax.lax.psum(squares, axis_name)
        width *= jax.lax.axis_size(axis_name)
    accumulator = accumulator + squares / width
    rate = step_size(options, count, accumulator.dtype)
    root = jnp.expand_dims(_root(options, accumulator), columns)
    return accumulator, -rate * gradient / root
