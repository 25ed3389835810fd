"""Searches that start from a step and shorten it until the value has decreased."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optim_jax.quasi_newton.line_search.trial import (
    Evaluate,
    Ray,
    SearchResult,
    Trial,
    check_search_options,
    decreases,
    evaluate_on,
    no_trial,
    prepare,
)


class Sample(NamedTuple):
    """A step that was tried and its value; NaN where there is none."""

    step: jax.Array
    value: jax.Array


Shorten = Callable[[Ray, jax.Array, Sample, Sample], jax.Array]


class _Loop(NamedTuple):
    next_step: jax.Array
    previous: Sample  # the trial before the latest one
    result: SearchResult
    searching: jax.Array


def armijo(
    evaluate: Evaluate,
    start: Trial,
    slope: Any,
    init_step: Any,
    *,
    c1: Any = 1e-4,
    factor: Any = 0.5,
    max_trials: Any = 30,
    min_step: Any = 1e-8,
) -> SearchResult:
    r"""Multiplies the step by a factor until the value has decreased enough.

    The step is the first of :math:`\alpha_0, \tau\alpha_0, \tau^2\alpha_0, \ldots` with

    .. math::

      F(\alpha) \le F(0) + c_1 \alpha F'(0) + \text{slack}.

    A value that is not finite is no decrease. The slack is that of `decrease_slack`.

    Args:
      evaluate: step -> `Trial`, traced once; the slope of a trial is not read.
      start: the trial at step 0; its `aux` only gives the structure.
      slope: float (), the derivative F'(0) < 0. Without a negative slope and a finite
        value there is no trial.
      init_step: float (), the first step :math:`\alpha_0` > 0.
      c1: fraction of the slope that must be attained, in (0, 1).
      factor: :math:`\tau` in (0, 1).
      max_trials: most evaluations, >= 1.
      min_step: a shorter step is only tried as the first one, >= 0.

    Returns:
      A `SearchResult`.

    Raises:
      ValueError: an option is out of range.

    References:
      Armijo, 1966, https://doi.org/10.2140/pjm.1966.16.1.
      With a first step from the variance of the gradients: Bollapragada, Mudigere,
      Nocedal, Shi, Tang, 2018, https://arxiv.org/abs/1802.05374.
    """
    check_search_options(c1=c1, factor=factor, max_trials=max_trials, min_step=min_step)
    return backtrack(
        evaluate,
        prepare(start, slope, init_step, c1),
        lambda ray, trials, latest, previous: factor * latest.step,
        max_trials,
        min_step,
    )


def fixed(evaluate: Evaluate, start: Trial, slope: Any, init_step: Any) -> SearchResult:
    """Takes the first step as it is wherever the value there is finite.

    Args:
      evaluate: step -> `Trial`; the slope of a trial is not read.
      start: the trial at step 0; only its types are read.
      slope: float (), not read.
      init_step: float (), the step.

    Returns:
      A `SearchResult` after one trial.
    """
    ray = prepare(start, slope, init_step)
    trial = evaluate_on(ray, evaluate, ray.first_step)
    return SearchResult(
        step=ray.first_step,
        trial=trial,
        trials=jnp.ones((), jnp.int32),
        accepted=jnp.isfinite(trial.value) & jnp.isfinite(ray.first_step),
    )


def backtrack(
    evaluate: Evaluate, ray: Ray, shorten: Shorten, max_trials: Any, min_step: Any
) -> SearchResult:
    """Shortens the step until the Armijo condition holds.

    Args:
      evaluate: step -> `Trial`.
      ray: the start of the search.
      shorten: (ray, number of trials, latest trial, the one before it) -> the next
        step; the one before the first is NaN.
      max_trials: most evaluations, >= 1.
      min_step: a shorter step is only tried as the first one, >= 0.

    Returns:
      A `SearchResult`.
    """

    def body(loop: _Loop) -> _Loop:
        step = loop.next_step
        trial = evaluate_on(ray, evaluate, step)
        latest = Sample(step, trial.value.astype(step.dtype))
        accepted = decreases(ray, step, trial.value)
        trials = loop.result.trials + 1
        next_step = shorten(ray, trials, latest, loop.previous).astype(step.dtype)
        return _Loop(
            next_step=next_step,
            previous=latest,
            result=SearchResult(step, trial, trials, accepted),
            searching=~accepted & (trials < max_trials) & (next_step >= min_step),
        )

    nothing = jnp.full_like(ray.first_step, jnp.nan)
    loop = _Loop(ray.first_step, Sample(nothing, nothing), no_trial(ray), ray.usable)
    return jax.lax.while_loop(lambda loop: loop.searching, body, loop).result
