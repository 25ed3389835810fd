"""Single-worker DiLoCo: an outer Nesterov step after every few inner steps."""

import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optim_jax.averaging.precision import (
    is_absent,
    is_half,
    next_count,
    scalar_at,
    scalar_dtype,
    scalar_like,
    step_onto,
    wide_dtype,
    widen,
    widen_like,
)
from optim_jax.typing import Params, ScalarOrSchedule, Updates
from optim_jax.validation import (
    as_static,
    check_decay_rate,
    check_inexact_leaves,
    check_value,
    require_params,
)


class DiLoCoState(NamedTuple):
    """State of `single_worker_diloco`.

    Attributes:
      count: int32 (), number of inner steps made.
      slow: s, like params; float32 for half-precision leaves.
      momentum: b, like `slow`.
      inner_state: state of the inner optimizer, kept across rounds.
    """

    count: jax.Array
    slow: Params
    momentum: Params
    inner_state: optax.OptState


def single_worker_diloco(
    inner: optax.GradientTransformation,
    *,
    inner_steps: int,
    outer_learning_rate: ScalarOrSchedule = 0.7,
    outer_momentum: ScalarOrSchedule = 0.9,
    nesterov: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Single-worker DiLoCo, also known as step-K Nesterov.

    The params :math:`\theta` that you hold move by the inner optimizer. After every K
    steps the displacement from the slow copy s becomes the gradient of an outer step:

    .. math::

      \Delta = s - \theta, \quad b \leftarrow \mu b + \Delta, \quad
      s \leftarrow s - \eta (\Delta + \mu b), \quad \theta \leftarrow s.

    Evaluate at s (`gpa_eval_params`), which equals the params right after an outer
    step. With mu = 0 and eta = 1 it is the inner optimizer itself, with mu = 0 and
    0 < eta < 1 Lookahead, and with K = 1 and eta = 1 - mu it is `gpa` with
    mu_x = mu_y = mu around an inner optimizer without decay (derived here).

    Args:
      inner: any Optax transformation with its own learning rate.
      inner_steps: K >= 1, inner steps per outer step.
      outer_learning_rate: eta > 0, or a schedule of the 0-based *inner* step.
      outer_momentum: mu in [0, 1), or a schedule of the 0-based inner step.
      nesterov: False takes s <- s - eta b instead.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `DiLoCoState`. Its `init` uses
      the values of the params, and its `update` needs params.

    Raises:
      TypeError: `inner_steps` is not an integer.
      ValueError: an argument is out of range.

    References:
      Douillard et al., DiLoCo: Distributed Low-Communication Training of Language
      Models, 2023, https://arxiv.org/abs/2311.08105.
    """
    _check_inner_steps(inner_steps)
    check_value(
        "outer_learning_rate",
        outer_learning_rate,
        "finite and > 0",
        lambda v: 0.0 < v < math.inf,
    )
    check_decay_rate("outer_momentum", outer_momentum)
    eta = as_static("outer_learning_rate", outer_learning_rate)
    mu = as_static("outer_momentum", outer_momentum)
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> DiLoCoState:
        check_inexact_leaves("single_worker_diloco", params)
        return DiLoCoState(
            count=jnp.zeros([], jnp.int32),
            slow=jax.tree.map(lambda p: jnp.array(p, wide_dtype(p), copy=True), params),
            momentum=jax.tree.map(lambda p: jnp.zeros_like(p, wide_dtype(p)), params),
            inner_state=inner.init(
                jax.tree.map(lambda p: widen(p) if is_half(p) else p, params)
            ),
        )

    def update(
        updates: Updates,
        state: Any,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Updates, DiLoCoState]:
        require_params("single_worker_diloco", params)
        fast = jax.tree.map(lambda _, p: widen(p), state.slow, params)
        grads = jax.tree.map(lambda _, p, g: widen_like(g, p), fast, params, updates)
        inner_updates, inner_state = inner.update(
            grads, state.inner_state, fast, **extra_args
        )
        count = next_count(state.count)
        dtype = scalar_dtype(params)
        rates = (scalar_at(eta, state.count, dtype), scalar_at(mu, state.count, dtype))
        updates, slow, momentum = jax.lax.cond(
            count % inner_steps == 0,
            lambda trees: _outer_step(trees, rates, nesterov),
            lambda trees: _inner_step(*trees),
            (params, fast, inner_updates, state.slow, state.momentum),
        )
        return updates, DiLoCoState(count, slow, momentum, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_inner_steps(inner_steps: Any) -> None:
    """Accepts an int >= 1, or an integer array, which `inject_hyperparams` makes."""
    is_array = isinstance(inner_steps, (np.ndarray, jax.Array))
    is_integer = (
        jnp.issubdtype(inner_steps.dtype, jnp.integer) and inner_steps.ndim == 0
        if is_array
        else isinstance(inner_steps, numbers.Integral)
        and not isinstance(inner_steps, bool)
    )
    if not is_integer:
        raise TypeError(f"inner_steps must be an int >= 1, got {inner_steps!r}")
    check_value("inner_steps", inner_steps, "an int >= 1", lambda v: v >= 1)


def _inner_step(params, fast, inner_updates, slow, momentum):
    """Between outer steps: the params move by the inner optimizer alone."""
    del fast
    updates = jax.tree.map(
        lambda _, p, u: u if is_absent(u) else u.astype(jnp.result_type(p)),
        slow,
        params,
        inner_updates,
    )
    return updates, slow, momentum


def _outer_step(trees, rates, nesterov):
    """The outer step of every leaf; leaves without an update stay as they are."""
    params, fast, inner_updates, slow, momentum = trees

    def step_leaf(s, b, theta, u, p):
        if is_absent(u):
            return u, s, b
        eta, mu = (scalar_like(rate, s) for rate in rates)
        delta = s - (theta + u.astype(s.dtype))
        b = mu * b + delta
        s = s - eta * (delta + mu * b if nesterov else b)
        return step_onto(s, jnp.asarray(p)), s, b

    leaves, treedef = jax.tree.flatten(slow)
    others = (
        treedef.flatten_up_to(tree) for tree in (momentum, fast, inner_updates, params)
    )
    triples = [step_leaf(*group) for group in zip(leaves, *others, strict=True)]
    stepped = zip(*triples, strict=True) if triples else ((), (), ())
    updates, slow, momentum = (treedef.unflatten(leaves) for leaves in stepped)
    return updates, slow, momentum
