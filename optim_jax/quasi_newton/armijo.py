"""Armijo backtracking as a gradient transformation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optim_jax.quasi_newton.extra_args import arguments_taken
from optim_jax.quasi_newton.line_search.backtracking import armijo
from optim_jax.quasi_newton.line_search.trial import Trial, check_search_options
from optim_jax.quasi_newton.memory import (
    accumulation_dtype,
    check_real_leaves,
    tree_dot,
)
from optim_jax.trees.matrices import is_absent
from optim_jax.typing import Params, ScalarOrSchedule, Updates
from optim_jax.validation import check_constant, check_value, require_params


class ArmijoState(NamedTuple):
    """State of `scale_by_armijo`: what the last search did.

    Attributes:
      step: float32 or float64 (), factor of the last updates; 0 where no step was
        accepted, and before the first update. It is the `step_info` that
        `scale_by_multibatch_lbfgs` takes in the next update.
      trials: int32 (), how often the objective was evaluated.
      accepted: bool (), whether a step was accepted.
    """

    step: jax.Array
    trials: jax.Array
    accepted: jax.Array


def scale_by_armijo(
    c1: ScalarOrSchedule = 1e-4,
    factor: ScalarOrSchedule = 0.5,
    max_steps: int | jax.Array = 30,
) -> optax.GradientTransformationExtraArgs:
    r"""Scales a descent step until the objective decreases enough.

    The updates p are the step itself, such as :math:`-H g`. They are multiplied by the
    first of :math:`\alpha_0, \tau\alpha_0, \tau^2\alpha_0, \ldots` with

    .. math::

      F(w + \alpha p) \le F(w) + c_1 \alpha\, g^\top p + \text{slack},

    where the slack allows for rounding: 1e-16 for a float64 value, else 2 eps |F(w)|. A
    value that is not finite is no decrease. It belongs last in a chain::

      tx = optax.chain(
          optim_jax.scale_by_multibatch_lbfgs(),
          optax.scale(-1.0),
          optim_jax.scale_by_armijo(),
      )
      value, grad = jax.value_and_grad(loss)(params, batch)
      updates, state = tx.update(
          grad, state, params, value=value, grad=grad, value_fn=loss, batch=batch
      )

    `update` takes the extra arguments

    * `value`: float (), F(w);
    * `grad`: tree like params, the gradient g of F at w. Value and gradient must belong
      to the function that `value_fn` evaluates, to the same samples;
    * `value_fn`: called as `value_fn(params, **taken)` -> float (), where `taken` are
      the other extra arguments of the update that it has parameters for; all of them
      if it has `**kwargs`. It must see all parameters: the search cannot stand inside
      `optax.masked` or `optax.partition`;
    * `init_step`: :math:`\alpha_0` > 0, by default 1.

    **The updates are zero** wherever there is no step to be trusted: the direction does
    not descend (:math:`g^\top p \ge 0`, as with a forgotten `optax.scale(-1.0)`), F(w)
    or the slope is not finite, or no trial decreased enough. `accepted` in the state
    then is False. Optax's search would take the last trial instead.

    Args:
      c1: :math:`c_1` in (0, 1), the fraction of the slope to be attained.
      factor: :math:`\tau` in (0, 1).
      max_steps: most evaluations of the objective, an integer >= 1. Steps below 1e-8
        are tried at most once.

    Returns:
      An `optax.GradientTransformationExtraArgs` with an `ArmijoState`, whose `update`
      needs params and the first three extra arguments.

    Raises:
      ValueError: an argument is out of range; a leaf is an integer array; an extra
        argument is missing.
      TypeError: a leaf is complex; `value_fn` does not return a real scalar, but for
        instance a pair of a value and `aux`, or needs an argument that is not there.

    References:
      Armijo, 1966, https://doi.org/10.2140/pjm.1966.16.1.
      Bollapragada, Mudigere, Nocedal, Shi, Tang, 2018,
      https://arxiv.org/abs/1802.05374, whose first step from the variance of the
      gradients may be given as `init_step`.
    """
    for name, value in (("c1", c1), ("factor", factor), ("max_steps", max_steps)):
        check_constant(name, value)
    check_search_options(c1=c1, factor=factor)
    check_value(
        "max_steps", max_steps, "an integer >= 1", lambda v: v >= 1.0 and v % 1 == 0.0
    )

    def init(params: Params) -> ArmijoState:
        check_real_leaves("scale_by_armijo", params)
        return ArmijoState(
            step=jnp.zeros((), accumulation_dtype(params)),
            trials=jnp.zeros((), jnp.int32),
            accepted=jnp.zeros((), bool),
        )

    def update(
        updates: Updates,
        state: Any,
        params: Any = None,
        *,
        value: Any = None,
        grad: Any = None,
        value_fn: Callable[..., Any] | None = None,
        init_step: Any = None,
        **extra_args: Any,
    ) -> tuple[Updates, ArmijoState]:
        require_params("scale_by_armijo", params)
        value, grad = _given("value", value), _given("grad", grad)
        objective = _given("value_fn", value_fn)
        if jax.tree.structure(grad) != jax.tree.structure(updates):
            raise ValueError(
                "grad must have the structure of the updates, "
                f"{jax.tree.structure(updates)}, got {jax.tree.structure(grad)}"
            )
        taken = arguments_taken(objective, extra_args)
        if init_step is None:
            init_step = 1.0
        elif not isinstance(init_step, jax.Array):
            check_value("init_step", init_step, "> 0", lambda v: v > 0.0)

        def evaluate(step: jax.Array) -> Trial:
            candidate = _moved(params, _scaled(updates, step))
            found = _as_scalar(objective(candidate, **taken))
            return Trial(found, jnp.nan)

        found = armijo(
            evaluate,
            Trial(jnp.asarray(value), jnp.nan),
            tree_dot(grad, updates),
            init_step,
            c1=c1,
            factor=factor,
            max_trials=max_steps,
        )
        step = jnp.where(found.accepted, found.step, 0.0).astype(state.step.dtype)
        scaled = jax.tree.map(
            lambda u: jnp.where(found.accepted, u, jnp.zeros_like(u)),
            _scaled(updates, step),
        )
        return scaled, ArmijoState(step, found.trials, found.accepted)

    return optax.GradientTransformationExtraArgs(init, update)


def _scaled(updates: Any, step: jax.Array) -> Any:
    return jax.tree.map(lambda u: (step * u).astype(u.dtype), updates)


def _moved(params: Any, updates: Any) -> Any:
    """`optax.apply_updates`, where a leaf without an update stays."""

    def move(update: Any, leaf: Any) -> Any:
        return leaf if is_absent(update) else (leaf + update).astype(leaf.dtype)

    return jax.tree.map(move, updates, params, is_leaf=is_absent)


def _as_scalar(found: Any) -> jax.Array:
    """Refuses what a search could not compare.

    Raises:
      TypeError: the objective did not return one real number.
    """
    if isinstance(found, tuple):
        raise TypeError(
            f"value_fn must return the value alone, got a tuple of {len(found)}; for a "
            "function with aux pass `lambda params: f(params)[0]`"
        )
    is_number = isinstance(found, (float, jax.Array)) and jnp.ndim(found) == 0
    if not is_number or not jnp.issubdtype(jnp.result_type(found), jnp.floating):
        kind = getattr(found, "dtype", type(found).__name__)
        raise TypeError(
            f"value_fn must return one real floating-point number, got {kind} of shape "
            f"{getattr(found, 'shape', None)}"
        )
    return jnp.asarray(found)


def _given(name: str, value: Any) -> Any:
    if value is None:
        raise ValueError(
            f"scale_by_armijo needs the extra argument {name}: call update(updates, "
            "state, params, value=..., grad=..., value_fn=...)"
        )
    return value
