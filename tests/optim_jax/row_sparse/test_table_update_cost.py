"""Memory and time of an update: those of the rows looked up, not of the table."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.row_sparse import (
    sparse_row_wise_adagrad,
    sparse_update,
    unique_rows,
    update_unique_rows,
)
from tests.optim_jax.row_sparse.reference import RULES


def _donated(rule, rows, width, length, unique=False):
    """A compiled update in place and its arguments."""
    table = jnp.zeros((rows, width))
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, min(rows, 10_000), size=length), jnp.int32)
    values = jnp.asarray(rng.normal(size=(length, width)), jnp.float32)
    update = update_unique_rows if unique else sparse_update
    if unique:
        ids, _ = unique_rows(ids, rows, length)
    state = rule.init(table)
    jitted = jax.jit(lambda *args: update(rule, *args), donate_argnums=(0, 1))
    return jitted.lower(table, state, ids, values).compile(), table, state, ids, values


@pytest.mark.parametrize("unique", [False, True], ids=["ids", "unique_rows"])
@pytest.mark.parametrize("kind", RULES)
def test_nothing_of_the_size_of_the_table_is_allocated(kind, unique):
    rows, width, length = 1_000_000, 16, 1000
    step, *args = _donated(RULES[kind](0.3), rows, width, length, unique)
    analysis = step.memory_analysis()
    assert analysis.temp_size_in_bytes < 10 * length * width * 4 + 2**16
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(args[:2]))
    assert analysis.alias_size_in_bytes == held  # every buffer is updated in place


@pytest.mark.parametrize("kind", RULES)
def test_donated_buffers_are_given_away(kind):
    step, table, state, ids, values = _donated(RULES[kind](0.3), 100, 4, 10)
    pointer = table.unsafe_buffer_pointer()
    after, _ = step(table, state, ids, values)
    assert after.unsafe_buffer_pointer() == pointer
    assert table.is_deleted() and state.accumulator.is_deleted()
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(table)


def test_the_time_does_not_grow_with_the_table():
    seconds = {}
    steps = {
        rows: _donated(sparse_row_wise_adagrad(0.3), rows, 16, 2048)
        for rows in (10_000, 1_000_000)
    }
    held = {rows: args[:2] for rows, (_, *args) in steps.items()}
    for _ in range(60):
        for rows, (step, _, _, ids, values) in steps.items():
            start = time.perf_counter()
            held[rows] = jax.block_until_ready(step(*held[rows], ids, values))
            elapsed = time.perf_counter() - start
            seconds[rows] = min(seconds.get(rows, elapsed), elapsed)
    assert seconds[1_000_000] < 2.0 * seconds[10_000]
