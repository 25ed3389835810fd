"""Checks of the arguments, outside jit, for values that are known there."""

import math
import numbers
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from optim_jax.trees.paths import named_leaves


def concrete(name: str, value: Any) -> float | None:
    """Returns a scalar as a Python float where its value is known.

    Args:
      name: name of the argument, for the message.
      value: number, scalar array, tracer or schedule.

    Returns:
      The value in double precision; None for a tracer or a schedule.

    Raises:
      ValueError: `value` is neither a scalar nor a schedule.
    """
    if isinstance(value, jax.core.Tracer) or callable(value):
        return None
    is_number = isinstance(value, (numbers.Real, np.ndarray, jax.Array))
    if not is_number or getattr(value, "ndim", 0) != 0:
        raise ValueError(f"{name} must be a scalar or a schedule, got {value!r}")
    return float(value)


def as_static(name: str, value: Any) -> Any:
    """Replaces a number of the host by a Python float; leaves others alone.

    Differences such as `1 - mu_x` are then taken in double precision. A JAX array stays
    one even where its value is known: outside jit, `optax.inject_hyperparams` passes
    arrays that may change between steps.
    """
    if isinstance(value, jax.Array):
        return value
    number = concrete(name, value)
    return value if number is None else number


def check_value(
    name: str, value: Any, allowed: str, accept: Callable[[float], bool]
) -> None:
    """Checks a scalar argument whose value is known.

    Args:
      name: name of the argument.
      value: number, array, tracer or schedule; the last two are not checked.
      allowed: the accepted values in words.
      accept: whether a value is accepted; must be false for NaN.

    Raises:
      ValueError: the value is not accepted.
    """
    number = concrete(name, value)
    if number is not None and not accept(number):
        raise ValueError(f"{name} must be {allowed}, got {number}")


def check_decay_rate(name: str, value: Any) -> None:
    """Checks a decay rate of an exponential average: [0, 1)."""
    check_value(name, value, "in [0, 1)", lambda v: 0.0 <= v < 1.0)


def check_mu_y(value: Any) -> None:
    """Checks `mu_y` where x is recovered by a division by it: (0, 1]."""
    check_value("mu_y", value, "in (0, 1]", lambda v: 0.0 < v <= 1.0)


def check_nonnegative(**arguments: Any) -> None:
    """Checks arguments that must be finite and not negative."""
    for name, value in arguments.items():
        check_value(
            name, value, "finite and >= 0", lambda v: v >= 0.0 and math.isfinite(v)
        )


def check_constant(name: str, value: Any) -> None:
    """Refuses a schedule where the method needs one value for all steps."""
    if callable(value):
        raise ValueError(
            f"{name} must be a number, got the schedule {value!r}; "
            "optax.inject_hyperparams can change it between steps"
        )


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Checks an argument that is one of a few strings."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(sorted(choices))}, got {value!r}"
        )


def check_inexact_leaves(name: str, params: Any) -> None:
    """Refuses parameter leaves that are not floating-point or complex.

    Args:
      name: name of the transformation, for the message.
      params: tree of arrays.

    Raises:
      ValueError: a leaf is an integer or boolean array; the message names it.
    """
    for leaf_path, leaf in named_leaves(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                f"{name} optimizes floating-point leaves only, but leaf {leaf_path!r} "
                f"is {jnp.result_type(leaf)}; route it elsewhere with optax.partition"
            )


def require_params(name: str, params: Any) -> None:
    """Refuses an update without the parameters."""
    if params is None:
        raise ValueError(
            f"{name} needs the current parameters: call update(grads, state, params)"
        )
