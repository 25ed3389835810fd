"""What refreshes report: how solves went, on each device and in all.

Shape legend: N matrices, S slots of a bucket, K its preconditioned modes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optim_jax.preconditioning.factor_solver import Solution
from optim_jax.preconditioning.state import Health


class Outcome(NamedTuple):
    """How the solves of some matrices went, each (N,); see `Solution`."""

    success: jax.Array
    residual: jax.Array
    iterations: jax.Array
    off_diagonal: jax.Array


def outcome_of(solution: Solution) -> Outcome:
    """What is worth knowing about a solution."""
    return Outcome(
        solution.success,
        solution.residual,
        solution.iterations,
        solution.off_diagonal,
    )


def no_outcome(factors: jax.Array) -> Outcome:
    """Where a loop over slots writes; nothing reads it before."""
    slots = factors.shape[0]
    dtype = jnp.promote_types(factors.dtype, jnp.float32)
    return Outcome(
        jnp.zeros(slots, bool),
        jnp.zeros(slots, dtype),
        jnp.zeros(slots, jnp.int32),
        jnp.zeros(slots, dtype),
    )


class Facts(NamedTuple):
    """What one device saw in a refresh, each of shape (1,).

    Attributes:
      failures: int32, failed blocks.
      residual: float32, largest residual of a solver.
      iterations: int32, most iterations.
      off_diagonal: float32, largest relative off-diagonal norm left.
    """

    failures: jax.Array
    residual: jax.Array
    iterations: jax.Array
    off_diagonal: jax.Array


def no_facts() -> Facts:
    """Facts before anything was solved."""
    zero, none = jnp.zeros(1, jnp.float32), jnp.zeros(1, jnp.int32)
    return Facts(none, zero, none, zero)


def observe(facts: Facts, solution: Any, seen: jax.Array) -> Facts:
    """Looks at solved matrices that are `seen` and did not fail.

    Args:
      facts: so far.
      solution: a `Solution` or an `Outcome`.
      seen: bool (N,).
    """
    succeeded = seen & solution.success

    def largest(old: jax.Array, values: jax.Array) -> jax.Array:
        values = jnp.where(succeeded, values, 0).astype(old.dtype)
        return jnp.maximum(old, jnp.max(values, initial=0))

    return Facts(
        facts.failures,
        largest(facts.residual, solution.residual),
        largest(facts.iterations, solution.iterations),
        largest(facts.off_diagonal, solution.off_diagonal),
    )


def saturating_add(count: jax.Array, more: Any) -> jax.Array:
    """Adds to an int32 counter that stays at its largest value."""
    return count + jnp.minimum(more, jnp.iinfo(jnp.int32).max - count)


def record(
    health: Health, refreshes: Any, failures: dict[str, jax.Array], facts: Facts
) -> Health:
    """Health after a refresh, from the facts of all devices (devices,)."""
    return health._replace(
        refreshes=saturating_add(health.refreshes, refreshes),
        total_failures=saturating_add(
            health.total_failures, jnp.sum(facts.failures, dtype=jnp.int32)
        ),
        failures=failures,
        max_residual=jnp.max(facts.residual),
        iterations=jnp.max(facts.iterations),
        off_diagonal=jnp.max(facts.off_diagonal),
    )


def count_failures(
    failures: dict[str, jax.Array], failed: dict[str, jax.Array], facts: Facts
) -> tuple[dict[str, jax.Array], Facts]:
    """A block fails when any of its factors does; success of all resets its count."""
    counts = dict(failures)
    for key, flags in failed.items():
        consecutive = saturating_add(jnp.max(counts[key], axis=1, keepdims=True), 1)
        consecutive = jnp.where(flags[:, None], consecutive, 0)
        counts[key] = jnp.broadcast_to(consecutive, counts[key].shape)
        total = facts.failures + jnp.sum(flags, dtype=jnp.int32)
        facts = facts._replace(failures=total)
    return counts, facts
