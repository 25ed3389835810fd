"""What an iteration has cost, and its record."""

import jax
import jax.numpy as jnp

from optim_jax.quasi_newton.memory import tree_dot
from optim_jax.quasi_newton.progressive_batching.descent import Descent
from optim_jax.quasi_newton.progressive_batching.growth import Examination, Sample
from optim_jax.quasi_newton.progressive_batching.problem import Problem
from optim_jax.quasi_newton.progressive_batching.solver_state import (
    Counters,
    PBLBFGSState,
    StepInfo,
)
from optim_jax.quasi_newton.progressive_batching.stored_step import StoredStep


def count_work(
    problem: Problem,
    state: PBLBFGSState,
    test: Examination,
    sample: Sample,
    descent: Descent,
    renewal_grads: jax.Array,
) -> Counters:
    """Adds the work of the iteration to the counters."""
    counters = state.counters
    size = sample.window.size
    is_full = problem.is_full(size)
    accepted = descent.result.accepted.astype(jnp.int32)
    trials = descent.trials
    # Of all data the accepted trial is the evaluation of the next iteration and counted
    # there; the gradients of rejected ones count as the losses that were asked for.
    looked_at = jnp.where(is_full, trials - accepted, trials) * size
    in_gradients = ~is_full & problem.needs_slope
    trial_grads = jnp.where(in_gradients, looked_at, 0)
    trial_losses = jnp.where(in_gradients, 0, looked_at)

    def add(count: jax.Array, *more: jax.Array) -> jax.Array:
        return sum((m.astype(count.dtype) for m in more), count)

    same = (size == state.window.size) & (counters.same_size > 0)
    return counters._replace(
        k=counters.k + 1,
        grad_evals=add(
            counters.grad_evals,
            size,
            trial_grads,
            renewal_grads,
        ),
        fn_evals=add(counters.fn_evals, trial_losses),
        jvp_evals=add(counters.jvp_evals, test.jvp_evals, descent.jvp_evals),
        search_failures=in_a_row(counters.search_failures, ~descent.result.accepted),
        same_size=jnp.where(same, counters.same_size + 1, 1),
    )


def record(
    problem: Problem,
    state: PBLBFGSState,
    test: Examination,
    sample: Sample,
    descent: Descent,
    stored: StoredStep,
    counters: Counters,
) -> StepInfo:
    """The record of an iteration."""
    grad = sample.evaluation.grad
    epochs = jnp.zeros((), problem.dtype)
    if problem.population is not None:
        epochs = counters.grad_evals.astype(problem.dtype) / problem.population
    weights = problem.options.work_weights
    counts = (counters.grad_evals, counters.fn_evals, counters.jvp_evals)
    work = sum(
        w * count.astype(problem.dtype)
        for w, count in zip(weights, counts, strict=True)
    )
    accepted = descent.result.accepted
    return StepInfo(
        k=state.counters.k,
        b_tested=state.window.size,
        b=sample.window.size,
        ratio=test.ratio,
        r=test.r,
        r_U=test.r_unbiased,
        alpha0=descent.alpha0,
        alpha=jnp.where(accepted, descent.result.step, 0.0),
        backtracks=descent.trials - 1,
        value=sample.evaluation.value,
        grad_norm=jnp.sqrt(tree_dot(grad, grad)),
        pair=stored.pair,
        memory_count=stored.memory.count,
        grad_evals=counters.grad_evals,
        fn_evals=counters.fn_evals,
        jvp_evals=counters.jvp_evals,
        epochs=epochs,
        work=work,
        reset=descent.reset | stored.reset,
        ls_failed=~accepted,
        compilations=jnp.int32(0),
        capped=test.wanted > sample.window.size,
    )


def in_a_row(count: jax.Array, again: jax.Array) -> jax.Array:
    """Counts on, or begins anew."""
    return jnp.where(again, count + 1, 0)
