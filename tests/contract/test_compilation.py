"""Jitted, scanned, vectorised and retraced: always the same numbers."""

import functools

import jax
import jax.numpy as jnp

from tests.contract.problem import (
    STEPS,
    assert_close,
    at,
    counted,
    make_gradients,
    make_params,
    reference,
    runner,
    stepper,
    walk,
    walk_eagerly,
)
from tests.contract.transformations import schedule


def test_jit_is_eager(row):
    tx = row.make()
    eager = walk_eagerly(row, tx)
    for left, right in zip(eager[1:], reference(row)[1:], strict=False):
        assert_close(left, right, row.rtol)


def test_scan_is_a_loop(row):
    scanned = jax.jit(runner(row, row.make()))(make_params(), make_gradients())
    loop = reference(row)
    assert_close(scanned[:2], loop[-1][:2], row.rtol)
    for index in range(STEPS):
        assert_close(at(scanned.updates, index), loop[index + 1].updates, row.rtol)


def test_vmap_over_seeds(row):
    seeds = (0, 5)
    params = [make_params(seed=seed) for seed in seeds]
    gradients = [make_gradients(seed=seed + 1) for seed in seeds]
    stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    together = jax.jit(jax.vmap(runner(row, row.make())))(
        stack(*params), stack(*gradients)
    )
    assert_close(at(together, 0)[:2], reference(row)[-1][:2], row.rtol)
    assert not jnp.array_equal(*together.params["dense"]["kernel"])


def test_one_trace_with_a_changing_learning_rate(row):
    tx = row.make(schedule)
    step, traces = counted(stepper(row, tx))
    params = make_params()
    points = walk(jax.jit(step), params, tx.init(params))
    assert len(traces) == 1
    # The first update reads the schedule at 0, where it gives the constant rate.
    assert_close(points[1].updates, reference(row)[1].updates, row.rtol)
    constant, changing = (p[2].updates["scale"] for p in (reference(row), points))
    assert (constant != changing) == row.has_learning_rate()
