import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.line_search import SearchResult
from optim_jax.quasi_newton.memory import init_memory, store_pair
from optim_jax.quasi_newton.progressive_batching.descent import Descent
from optim_jax.quasi_newton.progressive_batching.options import Options
from optim_jax.quasi_newton.progressive_batching.problem import Problem
from optim_jax.quasi_newton.progressive_batching.sample_sums import SampleSums
from optim_jax.quasi_newton.progressive_batching.solver_state import Counters
from optim_jax.quasi_newton.progressive_batching.stored_step import (
    MOST_SKIPS,
    store_step,
)

GRAD = jnp.asarray([1.0, -2.0, 0.5])
STEP = 0.5


def make_problem(**options):
    sums = SampleSums(lambda w, batch: (batch, ()), jnp.float32, 64, 100)
    return Problem(sums, Options(**options).sized(100))


def make_memory(pairs=1):
    """H = I / 2 after the first pair."""
    memory = init_memory(jnp.zeros(3), 4)
    for index in range(pairs):
        s = jnp.zeros(3).at[index].set(1.0)
        memory = store_pair(memory, s, 2.0 * s)
    return memory


def make_descent(memory, accepted=True):
    """The step of length STEP along -H g with H = I / 2."""
    direction = -GRAD / 2
    result = SearchResult(jnp.float32(STEP), None, jnp.int32(1), jnp.bool_(accepted))
    return Descent(
        memory=memory,
        direction=direction,
        slope=GRAD @ direction,
        alpha0=jnp.float32(1),
        result=result,
        trials=jnp.int32(1),
        reset=jnp.bool_(False),
        jvp_evals=jnp.int32(0),
    )


def store(change, *, memory=None, skipped=0, accepted=True, **options):
    memory = make_memory() if memory is None else memory
    counters = Counters.zeros()._replace(skipped=jnp.int32(skipped))
    descent = make_descent(memory, accepted)
    s = STEP * descent.direction
    return store_step(make_problem(**options), descent, s, change * s, GRAD, counters)


# B = 2 I, so the curvature along every s is 2.
@pytest.mark.parametrize(
    ("change", "options", "pair"),
    [
        (2.0, {}, 1),
        (0.0201, {}, 1),
        (0.0199, {}, 0),
        (-1.0, {}, 0),
        (0.9, {"eps": 0.5}, 0),
        (1.1, {"eps": 0.5}, 1),
        (0.3, {"damping": True}, 2),
        (0.5, {"damping": True}, 1),
        (-1.0, {"damping": True}, 2),
        (0.011, {"curvature": "absolute"}, 1),
        (0.009, {"curvature": "absolute"}, 0),
        (-1.0, {"curvature": "none"}, 1),
    ],
)
def test_the_present_curvature_decides(change, options, pair):
    stored = store(change, **options)
    assert int(stored.pair) == pair
    assert int(stored.memory.count) == 1 + (pair > 0)
    assert int(stored.skipped) == (pair == 0)
    assert not bool(stored.reset)
    if pair == 2:
        # Damped to the part eps = 0.2 of the present curvature.
        s = STEP * GRAD / 2
        assert float(stored.memory.sy[1, 1]) == pytest.approx(0.4 * float(s @ s), 1e-5)


def test_a_memory_that_refuses_five_pairs_in_a_row_is_emptied():
    stored = store(-1.0, skipped=MOST_SKIPS - 2)
    assert int(stored.skipped) == MOST_SKIPS - 1 == 4 and not bool(stored.reset)
    assert int(stored.memory.count) == 1
    stored = store(-1.0, skipped=MOST_SKIPS - 1)
    assert bool(stored.reset) and int(stored.skipped) == 0
    memory = stored.memory
    assert int(memory.count) == 0 and float(memory.gamma) == 1.0
    assert not np.any(memory.ss) and not np.any(memory.sy) and not np.any(memory.yy)


def test_an_empty_memory_has_nothing_to_reset():
    stored = store(-1.0, memory=make_memory(0), skipped=7)
    assert not bool(stored.reset) and int(stored.skipped) == 8


def test_an_accepted_pair_begins_the_count_anew():
    assert int(store(2.0, skipped=3).skipped) == 0


def test_a_failed_search_has_no_pair():
    stored = store(2.0, accepted=False, skipped=3)
    assert int(stored.pair) == 0 and int(stored.memory.count) == 1
    # It is not a refused one either.
    assert int(stored.skipped) == 3
