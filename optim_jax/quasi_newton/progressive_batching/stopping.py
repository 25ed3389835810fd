"""When a run ends, and why."""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.quasi_newton.progressive_batching.problem import Problem
from optim_jax.quasi_newton.progressive_batching.solver_state import (
    REASONS,
    RUNNING,
    PBLBFGSState,
)

IN_A_ROW = 3
LIMITS = ("max_epochs", "max_iterations", "max_time")


def largest_entry(tree: Any) -> jax.Array:
    """‖tree‖_∞."""
    entries = [jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree) if leaf.size]
    return jnp.max(jnp.stack(entries))


def reason_to_stop(
    problem: Problem, state: PBLBFGSState, healthy: jax.Array
) -> jax.Array:
    """Index into `REASONS` of the first reason that holds, 0 for none.

    Args:
      problem: sums and options.
      state: at the end of an iteration, or before the first.
      healthy: whether losses and gradients are finite.
    """
    options, counters = problem.options, state.counters
    is_full = problem.is_full(state.window.size)
    certified = is_full & (largest_entry(state.evaluation.grad) <= options.tol)
    never = jnp.zeros((), bool)
    reasons = {
        "diverged": ~healthy,
        "certified": certified,
        "line_search": counters.search_failures >= IN_A_ROW,
        "noise_limited": counters.no_signal >= IN_A_ROW,
        "stalled": counters.still >= IN_A_ROW,
        "max_iterations": never
        if options.max_iterations is None
        else counters.k >= options.max_iterations,
        "max_epochs": never
        if problem.population is None
        else counters.grad_evals >= options.max_epochs * problem.population,
    }
    found = jnp.int32(0)
    for name, holds in reversed(reasons.items()):
        found = jnp.where(holds, REASONS.index(name), found)
    return found.astype(jnp.int32)


def reopened(problem: Problem, state: PBLBFGSState) -> PBLBFGSState:
    """The state of a run that a limit has ended, made to go on if none holds now.

    The limits may be those of another solver, and the clock starts anew.
    """
    options, counters = problem.options, state.counters
    if REASONS[int(state.reason)] not in LIMITS:
        return state
    is_over = False
    if options.max_iterations is not None:
        is_over = int(counters.k) >= options.max_iterations
    if problem.population is not None:
        most = options.max_epochs * problem.population
        is_over = is_over or int(counters.grad_evals) >= most
    if is_over:
        return state
    return state._replace(reason=jnp.int32(REASONS.index(RUNNING)))
