"""Running `optim_jax.pb_lbfgs` for some more iterations at a time."""

from typing import Any

import jax.numpy as jnp

# For `max_iterations`: more than any of the runs has.
MOST_ITERATIONS = 10**8


def advance(solver: Any, state: Any, iterations: int) -> Any:
    """Iterates on the device, at most so many times and without a stop between them.

    Args:
      solver: made with `max_iterations=MOST_ITERATIONS`, with arrays as data, a test in
        every iteration, `variance` other than `hutchinson` and `test` other than
        `ipqn_window`: the numbers of its iterations then decide nothing.
      state: where to go on; why it was stopped does not matter.
      iterations: at least 1.

    Returns:
      The solver's result. The reason is `max_iterations` if it could go on, and its
      `n_iter` and `history.k` mean nothing.
    """
    # The limit is compiled in, so the count is moved towards it.
    counters = state.counters._replace(k=jnp.int32(MOST_ITERATIONS - iterations))
    return solver.run(state=state._replace(counters=counters, reason=jnp.int32(0)))
