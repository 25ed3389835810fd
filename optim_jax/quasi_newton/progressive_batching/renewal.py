"""The next sample: drawn, and evaluated at the new point.

The pair of the step needs the gradient over the shared samples first; what the tests
need of the groups is taken with the memory that the pair has entered. So the samples
kept from the last iteration are evaluated apart, as a prefix.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optim_jax.quasi_newton.memory import LBFGSMemory
from optim_jax.quasi_newton.progressive_batching.descent import Descent
from optim_jax.quasi_newton.progressive_batching.evaluation import (
    Evaluation,
    Prefix,
    empty_prefix,
    evaluate_prefix,
    evaluate_rest,
    prefix_groups,
)
from optim_jax.quasi_newton.progressive_batching.growth import Sample
from optim_jax.quasi_newton.progressive_batching.problem import Problem
from optim_jax.quasi_newton.progressive_batching.sampling import (
    Window,
    next_window,
    window_from_permutation,
)
from optim_jax.quasi_newton.progressive_batching.solver_state import PBLBFGSState


class Renewal(NamedTuple):
    """What the pair of the step needs of the next sample."""

    change: Any  # change of the mean gradient along the step, same samples
    window: Window
    prefix: Prefix
    kept: jax.Array


def first_evaluation(
    problem: Problem, source: Any, params: Any, memory: LBFGSMemory, window: Window
) -> tuple[Evaluation, jax.Array, jax.Array]:
    """Evaluates the first sample.

    Returns:
      The evaluation, and the start and the number of the samples that the next sample
      will share.
    """
    if problem.always_full:
        total = problem.sums.full_gradient(params, source)
        count = window.size.astype(problem.dtype)
        grad = jax.tree.map(lambda leaf: leaf / count, total.grad)
        value = total.loss / count
        return Evaluation(value, grad, (), ()), jnp.int32(0), jnp.int32(0)
    prefix = empty_prefix(problem.sums, params, touched_groups(problem))
    return evaluate_sample(
        problem, source, params, memory, window, prefix, jnp.int32(0)
    )


def resample(
    problem: Problem, source: Any, state: PBLBFGSState, permutation: jax.Array
) -> PBLBFGSState:
    """Puts the samples of a permutation behind the kept ones and evaluates anew."""
    size = state.window.size
    is_full = problem.is_full(size)
    front = jnp.zeros_like(size)
    if problem.shares_samples:
        front = problem.overlap_size(size)
    kept = jnp.where(state.counters.k == 0, 0, front)
    window = window_from_permutation(state.window, permutation, kept)

    def evaluated() -> Evaluation:
        prefix = evaluate_prefix(
            problem.sums,
            state.params,
            source,
            window.order,
            window.start,
            size,
            front,
            groups=problem.groups,
            touched=touched_groups(problem),
        )
        evaluation = evaluate_rest(
            problem.sums,
            state.params,
            source,
            window.order,
            window.start,
            size,
            front,
            prefix,
            state.memory,
            None,
            groups=problem.groups,
        )
        overlap = prefix.grad if problem.shares_samples else ()
        return evaluation._replace(overlap=overlap)

    evaluation = lax.cond(is_full, lambda: state.evaluation, evaluated)
    return state._replace(
        window=jax.tree.map(
            lambda new, old: jnp.where(is_full, old, new), window, state.window
        ),
        evaluation=evaluation,
        overlap_start=jnp.int32(0),
        overlap_size=front,
    )


def renew(
    problem: Problem,
    source: Any,
    state: PBLBFGSState,
    params: Any,
    sample: Sample,
    descent: Descent,
    next_size: jax.Array,
) -> tuple[Renewal, jax.Array]:
    """Draws the next sample as far as the pair needs it.

    Returns:
      The renewal, and the gradients computed that are not part of the next sample.
    """
    sums, window = problem.sums, sample.window
    size, start = window.size, window.start
    grad = sample.evaluation.grad
    touched = touched_groups(problem)
    end = descent.result.trial.aux

    def of_all() -> Renewal:
        change = jax.tree.map(jnp.subtract, end.grad, grad)
        prefix = empty_prefix(sums, params, touched)
        return Renewal(change, window, prefix, jnp.int32(0))

    def shared() -> Renewal:
        kept = sample.overlap_size
        renewed = next_window(window, state.overlap_start, kept, next_size)
        prefix = evaluate_prefix(
            sums,
            params,
            source,
            renewed.order,
            renewed.start,
            next_size,
            kept,
            groups=problem.groups,
            touched=touched,
        )
        count = kept.astype(problem.dtype)
        change = jax.tree.map(
            lambda new, old: (new - old) / count,
            prefix.grad,
            sample.evaluation.overlap,
        )
        return Renewal(change, renewed, prefix, kept)

    def repeated() -> Renewal:
        count = size.astype(problem.dtype)
        if problem.needs_slope:
            new = end.grad
        else:
            total = sums.gradient(params, source, window.order, start, start + size)
            new = jax.tree.map(lambda leaf: leaf / count, total.grad)
        change = jax.tree.map(jnp.subtract, new, grad)
        none = jnp.int32(0)
        renewed = next_window(window, none, none, next_size)
        return Renewal(change, renewed, empty_prefix(sums, params, touched), none)

    is_full = problem.is_full(size)
    of_sample = shared if problem.shares_samples else repeated
    renewal = problem.either(size, of_all, of_sample)
    extra = jnp.zeros_like(size)
    if not problem.shares_samples and not problem.needs_slope:
        extra = jnp.where(is_full, 0, size)
    return renewal, extra


def evaluate_sample(
    problem: Problem,
    source: Any,
    params: Any,
    memory: LBFGSMemory,
    window: Window,
    prefix: Prefix,
    kept: jax.Array,
) -> tuple[Evaluation, jax.Array, jax.Array]:
    """Evaluates a sample behind its prefix; the last samples are the next overlap.

    Those are new to the sample, so none is kept twice in a row.
    """
    size = window.size
    overlap_start = jnp.maximum(kept, size - problem.overlap_size(size))
    evaluation = evaluate_rest(
        problem.sums,
        params,
        source,
        window.order,
        window.start,
        size,
        kept,
        prefix,
        memory,
        overlap_start if problem.shares_samples else None,
        groups=problem.groups,
    )
    return evaluation, overlap_start, size - overlap_start


def touched_groups(problem: Problem) -> int:
    """Groups that the samples kept from the last iteration can touch."""
    if not problem.shares_samples:
        return 1
    return prefix_groups(problem.options.overlap_ratio, problem.groups)
