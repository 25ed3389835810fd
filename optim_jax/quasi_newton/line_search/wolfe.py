"""The weak Wolfe conditions by doubling and bisection."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optim_jax.quasi_newton.line_search.backtracking import Sample
from optim_jax.quasi_newton.line_search.interpolation import hermite_minimiser
from optim_jax.quasi_newton.line_search.trial import (
    Evaluate,
    SearchResult,
    Trial,
    check_search_options,
    decreases,
    evaluate_on,
    no_trial,
    prepare,
)

# An interpolated step keeps this fraction of the bracket from either end.
MARGIN = 0.2


class _Bracket(NamedTuple):
    next_step: jax.Array
    low_step: jax.Array
    low: Trial  # decreased enough, but the slope there is still steep
    high: Sample  # too long: infinite step before the first such trial
    high_slope: jax.Array
    result: SearchResult
    searching: jax.Array


def weak_wolfe(
    evaluate: Evaluate,
    start: Trial,
    slope: Any,
    init_step: Any,
    *,
    c1: Any = 1e-4,
    c2: Any = 0.9,
    max_trials: Any = 25,
    interpolate: bool = False,
) -> SearchResult:
    r"""Finds a step that keeps the weak Wolfe conditions.

    .. math::

      F(\alpha) \le F(0) + c_1 \alpha F'(0) + \text{slack}, \qquad
      F'(\alpha) \ge c_2 F'(0).

    Of a bracket [lo, hi], at first [0, inf), lo always keeps the first condition and
    fails the second, and hi fails the first or is not finite. The next step is twice
    the last one while hi is infinite, the middle of the bracket afterwards. It needs
    no smoothness: a kink within the bracket is as good as a minimum.

    Where `max_trials` is not enough, the step is lo if that is positive: it keeps the
    first condition only, and is accepted.

    Args:
      evaluate: step -> `Trial` with the slope, traced once.
      start: the trial at step 0; its `aux` only gives the structure.
      slope: float (), the derivative F'(0) < 0. Without a negative slope and a finite
        value there is no trial.
      init_step: float (), the first step > 0.
      c1: fraction of the slope that the decrease must attain, in (0, 1).
      c2: fraction of the slope that may be left, in (c1, 1).
      max_trials: most evaluations, >= 1.
      interpolate: whether the next step inside a bounded bracket is the minimiser of
        the cubic through values and slopes of its ends, kept from each end by a fifth
        of its length, instead of the middle.

    Returns:
      A `SearchResult`. The loop carries the trial of lo, one more `aux`.

    Raises:
      ValueError: an option is out of range.

    References:
      Lewis and Overton, 2013, https://doi.org/10.1007/s10107-012-0514-2, algorithm 2.6.
    """
    check_search_options(c1=c1, c2=c2, max_trials=max_trials)
    ray = prepare(start, slope, init_step, c1)

    def body(loop: _Bracket) -> _Bracket:
        step = loop.next_step
        trial = evaluate_on(ray, evaluate, step)
        falls = decreases(ray, step, trial.value) & jnp.isfinite(trial.slope)
        too_short = falls & (trial.slope < c2 * ray.slope)
        accepted = falls & ~too_short
        low_step, low = _choose(too_short, (step, trial), (loop.low_step, loop.low))
        high, high_slope = _choose(
            falls,
            (loop.high, loop.high_slope),
            (Sample(step, trial.value.astype(step.dtype)), trial.slope),
        )
        trials = loop.result.trials + 1
        inside = 0.5 * (low_step + high.step)
        if interpolate:
            low_sample = Sample(low_step, low.value.astype(step.dtype))
            found = hermite_minimiser(low_sample, low.slope, high, high_slope)
            margin = MARGIN * (high.step - low_step)
            bounded = jnp.clip(found, low_step + margin, high.step - margin)
            inside = jnp.where(jnp.isfinite(found), bounded, inside)
        return _Bracket(
            next_step=jnp.where(jnp.isfinite(high.step), inside, 2.0 * step),
            low_step=low_step,
            low=low,
            high=high,
            high_slope=high_slope,
            result=SearchResult(step, trial, trials, accepted),
            searching=~accepted & (trials < max_trials),
        )

    unbounded = jnp.full_like(ray.first_step, jnp.inf)
    nothing = no_trial(ray)
    bracket = _Bracket(
        next_step=ray.first_step,
        low_step=nothing.step,
        low=ray.start._replace(slope=ray.slope),
        high=Sample(unbounded, unbounded),
        high_slope=unbounded,
        result=nothing,
        searching=ray.usable,
    )
    bracket = jax.lax.while_loop(lambda loop: loop.searching, body, bracket)
    result = bracket.result
    fall_back = ~result.accepted & (bracket.low_step > 0.0)
    step, trial = _choose(
        fall_back, (bracket.low_step, bracket.low), (result.step, result.trial)
    )
    return SearchResult(step, trial, result.trials, result.accepted | fall_back)


def _choose(condition: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
