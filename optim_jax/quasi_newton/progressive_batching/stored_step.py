"""The pair of a step enters the memory, or is refused."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optim_jax.quasi_newton.curvature_pairs import push_pair
from optim_jax.quasi_newton.memory import LBFGSMemory
from optim_jax.quasi_newton.progressive_batching.descent import Descent, emptied
from optim_jax.quasi_newton.progressive_batching.problem import Problem
from optim_jax.quasi_newton.progressive_batching.solver_state import Counters

MOST_SKIPS = 5


class StoredStep(NamedTuple):
    """The memory after a step.

    Attributes:
      memory: the pairs.
      pair: int32, 0 skipped, 1 accepted, 2 damped.
      skipped: int32, pairs skipped in a row.
      reset: whether they were too many, so that the memory was emptied.
    """

    memory: LBFGSMemory
    pair: jax.Array
    skipped: jax.Array
    reset: jax.Array


def store_step(
    problem: Problem,
    descent: Descent,
    s: Any,
    change: Any,
    grad: Any,
    counters: Counters,
) -> StoredStep:
    """Stores the pair of an accepted step; empties a memory that refuses all pairs.

    Args:
      problem: sums and options.
      descent: the step.
      s: tree, its difference of points.
      change: tree, the difference of gradients over the same samples.
      grad: tree, the gradient at its start.
      counters: before the iteration.
    """
    options = problem.options
    accepted, step = descent.result.accepted, descent.result.step
    bs = None
    if options.damping:
        bs = jax.tree.map(lambda g: -step * g, grad)
    memory, pair = push_pair(
        descent.memory,
        s,
        change,
        bs=bs,
        # B s = -step * g for a step along -H g.
        sbs=-step * step * descent.slope,
        curvature=options.curvature,
        eps=options.eps,
        damping=options.damping,
        where=accepted,
    )
    in_a_row = jnp.where(pair == 0, counters.skipped + 1, 0)
    skipped = jnp.where(accepted, in_a_row, counters.skipped)
    stale = (skipped >= MOST_SKIPS) & (memory.count > 0)
    return StoredStep(
        memory=emptied(memory, stale),
        pair=pair,
        skipped=jnp.where(stale, 0, skipped),
        reset=stale,
    )
