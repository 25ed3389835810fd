"""The step of an iteration: direction, first trial, line search, what if it fails."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optim_jax.quasi_newton.hessian_products import apply_inverse_hessian
from optim_jax.quasi_newton.initial_step import first_step_scale, initial_step
from optim_jax.quasi_newton.line_search import SearchResult, Trial
from optim_jax.quasi_newton.memory import LBFGSMemory, clear_memory, tree_dot
from optim_jax.quasi_newton.progressive_batching.growth import (
    Examination,
    Sample,
    gradient_noise,
    probe_key,
)
from optim_jax.quasi_newton.progressive_batching.problem import Problem
from optim_jax.quasi_newton.progressive_batching.solver_state import PBLBFGSState

# Cosine of the angle between -g and the step below which it is no descent.
SMALLEST_DESCENT = 1e-12


class End(NamedTuple):
    """What a trial of the line search leaves behind besides its value.

    Attributes:
      grad: mean gradient over the sample, zeros where the search computes none.
      aux: mean auxiliary outputs.
    """

    grad: Any
    aux: Any


class Descent(NamedTuple):
    """Outcome of the line search.

    Attributes:
      memory: the pairs, forgotten where the step needed it.
      direction: p.
      slope: directional derivative along p at the start.
      alpha0: first trial step.
      result: of the search; `result.trial.aux` is an `End`.
      trials: evaluations of all attempts.
      reset: whether the memory was emptied.
      jvp_evals: directional derivatives computed for it.
    """

    memory: LBFGSMemory
    direction: Any
    slope: jax.Array
    alpha0: jax.Array
    result: SearchResult
    trials: jax.Array
    reset: jax.Array
    jvp_evals: jax.Array


class _Attempt(NamedTuple):
    number: jax.Array
    memory: LBFGSMemory
    direction: Any
    slope: jax.Array
    result: SearchResult
    trials: jax.Array
    reset: jax.Array


def descend(
    problem: Problem,
    source: Any,
    state: PBLBFGSState,
    sample: Sample,
    test: Examination,
) -> Descent:
    """Searches along -H g; if that fails, once along -g with an empty memory."""
    evaluation, options = sample.evaluation, problem.options
    grad = evaluation.grad
    square = tree_dot(grad, grad)
    size = sample.window.size
    is_full = problem.is_full(size)
    alpha0, jvp_evals = _first_trial(problem, source, state, sample, test, square)
    full_rule = options.first_step or "capped"
    sample_rule = options.first_step or "unit"
    scale = jnp.where(
        is_full,
        first_step_scale(full_rule, square),
        first_step_scale(sample_rule, square),
    )
    start = Trial(evaluation.value, jnp.zeros_like(square), _no_end(state, grad))

    def attempt(last: _Attempt) -> _Attempt:
        retry = last.number > 0
        memory = emptied(last.memory, retry)
        direction, slope, unusable = _direction(problem, memory, grad, square, scale)
        memory = emptied(memory, unusable)

        def evaluate(step: jax.Array) -> Trial:
            return _trial(problem, source, state.params, sample, direction, step)

        result = problem.search(evaluate, start, slope, alpha0)
        return _Attempt(
            number=last.number + 1,
            memory=memory,
            direction=direction,
            slope=slope,
            result=result,
            trials=last.trials + result.trials,
            reset=last.reset | retry | unusable,
        )

    def is_worth_another(last: _Attempt) -> jax.Array:
        can_differ = (last.number == 1) & (last.memory.count > 0)
        return (last.number == 0) | (can_differ & ~last.result.accepted)

    none = jnp.zeros_like(square)
    first = _Attempt(
        number=jnp.int32(0),
        memory=state.memory,
        direction=jax.tree.map(jnp.zeros_like, grad),
        slope=none,
        result=SearchResult(none, start, jnp.int32(0), jnp.zeros((), bool)),
        trials=jnp.int32(0),
        reset=jnp.zeros((), bool),
    )
    last = lax.while_loop(is_worth_another, attempt, first)
    return Descent(
        memory=last.memory,
        direction=last.direction,
        slope=last.slope,
        alpha0=alpha0,
        result=last.result,
        trials=last.trials,
        reset=last.reset,
        jvp_evals=jvp_evals,
    )


def _first_trial(
    problem: Problem,
    source: Any,
    state: PBLBFGSState,
    sample: Sample,
    test: Examination,
    square: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """First trial step, and what it cost; one at b = N."""
    options = problem.options
    size = sample.window.size
    is_full = problem.is_full(size)
    variance = jnp.full((), jnp.nan, problem.dtype)
    jvps = jnp.zeros_like(size)
    if options.init_step in ("variance", "variance_unbiased") and not (
        problem.always_full
    ):
        variance, jvps = gradient_noise(
            problem, source, state.params, sample, ~is_full, probe_key(state)
        )
    alpha0 = initial_step(
        options.init_step,
        gradient_variance=variance,
        gradient_square=square,
        variance=test.variance,
        r=test.r,
        batch_size=size.astype(problem.dtype),
        previous=state.step,
    ).astype(problem.dtype)
    usable = ~is_full & jnp.isfinite(alpha0) & (alpha0 > 0)
    return jnp.where(usable, alpha0, 1.0), jvps


def _direction(
    problem: Problem,
    memory: LBFGSMemory,
    grad: Any,
    square: jax.Array,
    scale: jax.Array,
) -> tuple[Any, jax.Array, jax.Array]:
    """The direction, its slope, and whether the memory had no descent to offer."""
    image = apply_inverse_hessian(memory, grad, form=problem.options.form)
    factor = jnp.where(memory.count == 0, scale, 1.0)
    slope = -factor * tree_dot(grad, image)
    length = factor * jnp.sqrt(tree_dot(image, image))
    descends = slope <= -SMALLEST_DESCENT * jnp.sqrt(square) * length
    unusable = ~(descends & jnp.isfinite(slope)) & (memory.count > 0)
    direction = jax.tree.map(
        lambda h, g: -jnp.where(unusable, scale * g, factor * h), image, grad
    )
    return direction, jnp.where(unusable, -scale * square, slope), unusable


def _trial(
    problem: Problem,
    source: Any,
    params: Any,
    sample: Sample,
    direction: Any,
    step: jax.Array,
) -> Trial:
    """Evaluates the sample at a step: of all data the gradient too.

    With all data the first trial is accepted nearly always and its gradient is what
    the next iteration begins with: computing both at once saves a pass.
    """
    sums, window = problem.sums, sample.window
    point = move(params, direction, step)
    size = window.size.astype(problem.dtype)

    def with_gradient(totals: Any, count: Any) -> Trial:
        grad = jax.tree.map(lambda total: total / count, totals.grad)
        aux = jax.tree.map(lambda total: total / count, totals.aux)
        return Trial(totals.loss / count, tree_dot(grad, direction), End(grad, aux))

    def over_sample() -> Trial:
        stop = window.start + window.size
        if problem.needs_slope:
            totals = sums.gradient(point, source, window.order, window.start, stop)
            return with_gradient(totals, size)
        totals = sums.loss(point, source, window.order, window.start, stop)
        aux = jax.tree.map(lambda total: total / size, totals.aux)
        end = End(jax.tree.map(jnp.zeros_like, direction), aux)
        return Trial(totals.loss / size, jnp.zeros_like(size), end)

    def over_all() -> Trial:
        return with_gradient(sums.full_gradient(point, source), problem.population)

    return problem.either(window.size, over_all, over_sample)


def move(params: Any, direction: Any, step: jax.Array) -> Any:
    """The point w + step p in the dtypes of w."""
    return jax.tree.map(
        lambda w, p: (w.astype(p.dtype) + step * p).astype(w.dtype), params, direction
    )


def _no_end(state: PBLBFGSState, grad: Any) -> End:
    """The types of what a trial leaves behind."""
    return End(jax.tree.map(jnp.zeros_like, grad), state.aux)


def emptied(memory: LBFGSMemory, wanted: jax.Array) -> LBFGSMemory:
    """Empties the memory where wanted; its buffers are not touched."""
    empty = clear_memory(memory)
    rest = {
        name: jnp.where(wanted, getattr(empty, name), getattr(memory, name))
        for name in memory._fields
        if name not in ("s", "y")
    }
    return memory._replace(**rest)
