"""One iteration of progressive-batching L-BFGS, from a state to the next.

Bollapragada, Mudigere, Nocedal, Shi, Tang, "A Progressive Batching L-BFGS Method for
Machine Learning", ICML 2018, https://arxiv.org/abs/1802.05374.

A state holds the gradient of its sample at its point. An iteration tests that sample,
lengthens it if needed, searches along -H g, draws the next sample, evaluates it at the
new point and stores the pair of the step. Everything is traced: the batch size, which
changes from step to step, never recompiles anything.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.quasi_newton.memory import tree_dot
from optim_jax.quasi_newton.progressive_batching.accounting import (
    count_work,
    in_a_row,
    record,
)
from optim_jax.quasi_newton.progressive_batching.descent import Descent, descend, move
from optim_jax.quasi_newton.progressive_batching.evaluation import Evaluation
from optim_jax.quasi_newton.progressive_batching.growth import (
    Examination,
    Sample,
    examine_sample,
    grow_sample,
    push_recent,
    ungrown,
    untested,
)
from optim_jax.quasi_newton.progressive_batching.problem import Problem
from optim_jax.quasi_newton.progressive_batching.renewal import (
    evaluate_sample,
    renew,
    resample,
)
from optim_jax.quasi_newton.progressive_batching.solver_state import (
    PBLBFGSState,
    StepInfo,
)
from optim_jax.quasi_newton.progressive_batching.stopping import reason_to_stop
from optim_jax.quasi_newton.progressive_batching.stored_step import store_step


def iterate(
    problem: Problem,
    source: Any,
    state: PBLBFGSState,
    permutation: jax.Array | None = None,
) -> tuple[PBLBFGSState, StepInfo]:
    """One iteration.

    Args:
      problem: sums and options.
      source: data.
      state: before the iteration.
      permutation: (N,) int32; replaces the random order of the samples that are not
        kept, and makes the first samples of the batch those that are kept.

    Returns:
      The state after it, and its record.
    """
    if permutation is not None and not problem.always_full:
        state = resample(problem, source, state, permutation)
    if problem.always_full:
        test, sample = untested(problem, state), ungrown(problem, state)
    else:
        test = examine_sample(problem, source, state)
        size = jnp.minimum(test.wanted, problem.options.largest_batch)
        sample = grow_sample(
            problem, source, state, size, overlap_in_front=permutation is not None
        )
    descent = descend(problem, source, state, sample, test)
    return _move_on(problem, source, state, test, sample, descent)


def _move_on(
    problem: Problem,
    source: Any,
    state: PBLBFGSState,
    test: Examination,
    sample: Sample,
    descent: Descent,
) -> tuple[PBLBFGSState, StepInfo]:
    size = sample.window.size
    is_full = problem.is_full(size)
    result, grad = descent.result, sample.evaluation.grad
    accepted = result.accepted
    step = jnp.where(accepted, result.step, 0.0)
    moved = move(state.params, descent.direction, step)
    params = jax.tree.map(
        lambda new, old: jnp.where(accepted, new, old), moved, state.params
    )
    s = jax.tree.map(
        lambda new, old, g: new.astype(g.dtype) - old.astype(g.dtype),
        params,
        state.params,
        grad,
    )
    next_size = jnp.where(accepted | is_full, size, problem.grown_size(size))
    renewal, renewal_grads = renew(
        problem, source, state, params, sample, descent, next_size
    )
    stored = store_step(problem, descent, s, renewal.change, grad, state.counters)
    memory = stored.memory

    def of_all() -> tuple[Evaluation, jax.Array, jax.Array]:
        return _full_evaluation(problem, state, sample, descent)

    def of_sample() -> tuple[Evaluation, jax.Array, jax.Array]:
        return evaluate_sample(
            problem,
            source,
            params,
            memory,
            renewal.window,
            renewal.prefix,
            renewal.kept,
        )

    evaluation, overlap_start, overlap_size = problem.either(size, of_all, of_sample)
    counters = count_work(problem, state, test, sample, descent, renewal_grads)
    counters = counters._replace(
        skipped=stored.skipped,
        no_signal=in_a_row(
            state.counters.no_signal,
            ~is_full & (size >= problem.options.largest_batch) & (test.r_unbiased <= 0),
        ),
        still=in_a_row(
            state.counters.still,
            is_full
            & accepted
            & (
                jnp.abs(evaluation.value - sample.evaluation.value)
                <= problem.options.tol
            )
            & (jnp.sqrt(tree_dot(s, s)) <= problem.options.tol),
        ),
    )
    recent = state.recent
    if problem.options.test == "ipqn_window":
        recent = push_recent(recent, grad, state.counters.k)
    aux = jax.tree.map(
        lambda new, old: jnp.where(accepted, new, old), result.trial.aux.aux, state.aux
    )
    healthy = is_finite(sample.evaluation) & is_finite(evaluation)
    new_state = PBLBFGSState(
        params=jax.tree.map(
            lambda new, old: jnp.where(healthy, new, old), params, state.params
        ),
        memory=memory,
        window=renewal.window,
        overlap_start=overlap_start,
        overlap_size=overlap_size,
        evaluation=evaluation,
        recent=recent,
        aux=aux,
        step=jnp.where(accepted, step, state.step),
        counters=counters,
        reason=state.reason,
    )
    new_state = new_state._replace(reason=reason_to_stop(problem, new_state, healthy))
    info = record(problem, state, test, sample, descent, stored, counters)
    return new_state, info


def _full_evaluation(
    problem: Problem, state: PBLBFGSState, sample: Sample, descent: Descent
) -> tuple[Evaluation, jax.Array, jax.Array]:
    """At b = N the accepted trial is the evaluation of the next iteration."""
    result, old = descent.result, sample.evaluation
    grad = jax.tree.map(
        lambda new, old: jnp.where(result.accepted, new, old),
        result.trial.aux.grad,
        old.grad,
    )
    value = jnp.where(result.accepted, result.trial.value, old.value)
    evaluation = Evaluation(
        value=value,
        grad=grad,
        overlap=jax.tree.map(jnp.zeros_like, old.overlap),
        groups=jax.tree.map(jnp.zeros_like, old.groups),
    )
    return evaluation, state.overlap_start, sample.overlap_size


def is_finite(evaluation: Evaluation) -> jax.Array:
    """Whether a loss and its gradient are finite."""
    square = tree_dot(evaluation.grad, evaluation.grad)
    return jnp.isfinite(evaluation.value) & jnp.isfinite(square)
