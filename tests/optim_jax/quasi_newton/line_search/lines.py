"""Functions of one step, and searches on them."""

import jax
import jax.numpy as jnp

from optim_jax.quasi_newton.line_search import Trial


def on_line(function, with_slope=True):
    """`evaluate` for a function of the step; `aux` holds the step itself."""

    def evaluate(step):
        value, slope = jax.value_and_grad(function)(step)
        return Trial(value, slope if with_slope else jnp.nan, {"step": step})

    return evaluate


def at_zero(function, dtype=None):
    """The trial at step 0."""
    return on_line(function)(jnp.zeros((), dtype or jnp.result_type(float)))


def find(search, function, init_step=1.0, with_slope=True, dtype=None, **options):
    """The result of a search and the steps it tried, in order."""
    start, tried = at_zero(function, dtype), []

    @jax.jit
    def run(init_step):
        def evaluate(step):
            jax.debug.callback(lambda value: tried.append(float(value)), step)
            return on_line(function, with_slope)(step)

        return search(evaluate, start, start.slope, init_step, **options)

    result = jax.block_until_ready(run(init_step))
    jax.effects_barrier()
    assert len(tried) == result.trials
    return result, tried
