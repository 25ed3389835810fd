from typing import NamedTuple

import jax.numpy as jnp

from experiments.reproduce.pblbfgs_stops import MOST_ITERATIONS, advance


class Counters(NamedTuple):
    k: object
    grad_evals: object


class State(NamedTuple):
    counters: Counters
    reason: object


class Solver:
    """Stands for a solver that counts to its limit."""

    def run(self, *, state):
        assert int(state.reason) == 0
        return MOST_ITERATIONS - int(state.counters.k), state.counters


def test_the_count_is_moved_and_the_reason_forgotten():
    state = State(Counters(jnp.int32(7), jnp.int32(640)), jnp.int32(3))
    for iterations in (1, 12, MOST_ITERATIONS - 1):
        left, counters = advance(Solver(), state, iterations)
        assert left == iterations and int(counters.grad_evals) == 640
        assert counters.k.dtype == jnp.int32
    # The state itself stays as it was.
    assert int(state.counters.k) == 7 and int(state.reason) == 3
