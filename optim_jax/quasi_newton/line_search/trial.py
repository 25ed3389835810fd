"""What line searches have in common: trials, results and sufficient decrease.

A search looks for a step along one direction p from a point w. It sees the function
F(step) = F(w + step p) through `evaluate` alone, so that what a trial costs, and what
comes along with its value, is up to the caller.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optim_jax.validation import check_value, concrete


class Trial(NamedTuple):
    """The function of the step at one step.

    Attributes:
      value: real floating-point (), F at the step.
      slope: real floating-point (), the derivative of F by the step; anything, by
        convention NaN, for a search that does not read it.
      aux: any tree of arrays that belongs to the step, such as the gradient.
    """

    value: Any
    slope: Any
    aux: Any = ()


class SearchResult(NamedTuple):
    """What a search found.

    Attributes:
      step: float (), the accepted step; where `accepted` is False the last one tried,
        or 0 where none was.
      trial: the evaluation at `step`; that of the start at step 0.
      trials: int32 (), how often `evaluate` was called.
      accepted: bool (), whether the step keeps the promise of the search.
    """

    step: jax.Array
    trial: Trial
    trials: jax.Array
    accepted: jax.Array


Evaluate = Callable[[jax.Array], Trial]


class Ray(NamedTuple):
    """The start of a search, with types that no iteration changes.

    Attributes:
      start: the trial at step 0.
      slope: float (), the derivative there.
      first_step: float (), the first step to try.
      limit: float (), the largest value acceptable at step 0: F plus the slack.
      rate: float (), c1 times the slope.
      usable: bool (), whether there is anything to search: a finite value, a finite
        negative slope, a finite positive first step.
    """

    start: Trial
    slope: jax.Array
    first_step: jax.Array
    limit: jax.Array
    rate: jax.Array
    usable: jax.Array


def decrease_slack(value: jax.Array) -> jax.Array:
    """How far a value may lie above the Armijo line, for the rounding of values.

    1e-16 for a float64 value and 2 eps |F| below that, where eps is the precision of
    the value's dtype: differences of values that are smaller are noise. These are this
    project's choices.
    """
    if value.dtype == jnp.float64:
        return jnp.full_like(value, 1e-16)
    return 2.0 * float(jnp.finfo(value.dtype).eps) * jnp.abs(value)


def prepare(start: Trial, slope: Any, init_step: Any, c1: Any = 0.0) -> Ray:
    """Gives the start of a search fixed types and the constants of its test.

    Args:
      start: the trial at step 0; `aux` only gives the structure.
      slope: (), the derivative of F at 0.
      init_step: (), the first step to try.
      c1: fraction of the slope that a step must attain.

    Returns:
      A `Ray`. Steps and slopes have the dtype of the value, but at least float32.

    Raises:
      ValueError: the value is not a real floating-point scalar.
    """
    start = strongly_typed(start)
    _check_scalar("start.value", start.value)
    dtype = jnp.promote_types(start.value.dtype, jnp.float32)
    slope, first_step = (
        jnp.asarray(jnp.reshape(number, ()), dtype) for number in (slope, init_step)
    )
    start = start._replace(slope=jnp.asarray(start.slope, dtype))
    value = start.value.astype(dtype)
    usable = jnp.isfinite(value) & jnp.isfinite(slope) & (slope < 0.0)
    return Ray(
        start=start,
        slope=slope,
        first_step=first_step,
        limit=value + decrease_slack(start.value).astype(dtype),
        rate=jnp.asarray(c1, dtype) * slope,
        usable=usable & jnp.isfinite(first_step) & (first_step > 0.0),
    )


def evaluate_on(ray: Ray, evaluate: Evaluate, step: jax.Array) -> Trial:
    """Evaluates a trial and gives it the types of the start.

    Raises:
      ValueError: the value is not a real floating-point scalar, or `aux` has another
        structure than that of the start.
    """
    trial = Trial(*evaluate(step))
    _check_scalar("the value of a trial", jnp.asarray(trial.value))
    ours, theirs = jax.tree.structure(ray.start.aux), jax.tree.structure(trial.aux)
    if ours != theirs:
        raise ValueError(
            f"evaluate must return aux of the structure of start.aux, {ours}, "
            f"got {theirs}"
        )
    return jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), ray.start, trial)


def decreases(ray: Ray, step: jax.Array, value: jax.Array) -> jax.Array:
    """Whether a value is finite and keeps the Armijo condition with the slack."""
    value = value.astype(ray.limit.dtype)
    return jnp.isfinite(value) & (value <= ray.limit + step * ray.rate)


def no_trial(ray: Ray) -> SearchResult:
    """The result of a search before its first trial."""
    return SearchResult(
        step=jnp.zeros_like(ray.first_step),
        trial=ray.start,
        trials=jnp.zeros((), jnp.int32),
        accepted=jnp.zeros((), bool),
    )


def strongly_typed(tree: Any) -> Any:
    """Arrays instead of Python numbers, so that a loop keeps the types of its state."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)


def check_search_options(
    *,
    c1: Any = 1e-4,
    c2: Any = None,
    factor: Any = 0.5,
    max_trials: Any = 1,
    min_step: Any = 0.0,
) -> None:
    """Checks the options of the searches where their values are known.

    Args:
      c1: fraction of the slope in the Armijo condition, in (0, 1).
      c2: fraction of the slope in the curvature condition, in (c1, 1); None where
        there is none.
      factor: by which backtracking shortens a step, in (0, 1).
      max_trials: most evaluations, an integer >= 1.
      min_step: shortest step worth a trial, >= 0.

    Raises:
      ValueError: an option is out of its range.
    """
    check_value("c1", c1, "in (0, 1)", lambda v: 0.0 < v < 1.0)
    if c2 is not None:
        low = concrete("c1", c1)
        low = 0.0 if low is None else low
        check_value("c2", c2, f"in (c1, 1) = ({low}, 1)", lambda v: low < v < 1.0)
    check_value("factor", factor, "in (0, 1)", lambda v: 0.0 < v < 1.0)
    check_value(
        "max_trials", max_trials, "an integer >= 1", lambda v: v >= 1.0 and v % 1 == 0.0
    )
    check_value(
        "min_step", min_step, "finite and >= 0", lambda v: 0.0 <= v < float("inf")
    )


def _check_scalar(name: str, value: jax.Array) -> None:
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be a real floating-point scalar, got {value.dtype} "
            f"of shape {value.shape}"
        )
