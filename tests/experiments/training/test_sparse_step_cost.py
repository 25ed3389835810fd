"""A step costs what it looks up, not what the tables hold."""

import re
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from experiments.training.sparse_step import make_sparse_step
from models.dlrm import DLRMConfig, dlrm, make_batch
from models.embeddings import TableConfig
from optim_jax.row_sparse import (
    dense_adagrad,
    sparse_adagrad,
    sparse_row_wise_adagrad,
    sparse_sgd,
)

WIDTH, LOOKUPS = 16, 1000
RULES = (sparse_sgd, sparse_adagrad, sparse_row_wise_adagrad)


def _step(rows, rule=sparse_row_wise_adagrad, **options):
    """A step on one table, a batch for it, and the shapes of its state."""
    config = DLRMConfig((TableConfig(rows, WIDTH),), (1, WIDTH), (1,))
    model = dlrm(config)
    step = make_sparse_step(model, dense_adagrad(0.1), rule(0.1), **options)
    rng = np.random.default_rng(0)
    batch = make_batch(
        config,
        rng.normal(size=(LOOKUPS, 1)),
        [rng.integers(0, rows, LOOKUPS)],
        labels=rng.integers(0, 2, LOOKUPS),
    )
    return step, batch, jax.eval_shape(model.init, jax.random.key(0))


@pytest.mark.parametrize("rule", RULES)
def test_no_temporary_is_as_large_as_a_table(rule):
    step, batch, params = _step(10**6, rule)
    state = jax.eval_shape(step.init_state, params)
    memory = step.lower(state, batch).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 10 * LOOKUPS * WIDTH * 4 + 2**16
    # Updated in place: the tables and their statistics are the arguments' buffers.
    held = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params["rows"]))
    assert memory.alias_size_in_bytes >= held


@pytest.mark.parametrize("layout", ["replicated", "table", "row", "column"])
def test_no_table_travels(layout):
    rows, devices = 10**5, 4
    mesh = jax.make_mesh(
        (devices,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    step, batch, params = _step(rows, mesh=mesh, plan=layout)
    state = jax.tree.map(
        lambda sharding, part: jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding
            ),
            part,
        ),
        step.state_shardings(),
        jax.eval_shape(step.init_state, params),
    )
    compiled = step.lower(state, batch).compile()
    moved = re.findall(
        r"= \(?([^=]*?)\)? (?:all-gather|all-to-all|all-reduce|reduce-scatter|"
        r"collective-permute)",
        compiled.as_text(),
    )
    sizes = [
        np.prod([int(n) for n in shape.split(",") if n], initial=1)
        for operands in moved
        for shape in re.findall(r"\[([\d,]*)\]", operands)
    ]
    # Rows for every device's samples at the most; a share of the table is larger.
    assert sizes and max(sizes) <= LOOKUPS * WIDTH < rows * WIDTH // devices
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 10 * LOOKUPS * WIDTH * 4 * devices + 2**16


@pytest.mark.slow
def test_time_does_not_grow_with_the_table():
    runs = {}
    for rows in (10**4, 10**6):
        step, batch, _ = _step(rows)
        state = step.init(step.model.init(jax.random.key(0)))
        runs[rows] = [step, batch, state, []]
    for _ in range(200):
        for run in runs.values():
            step, batch, state, seconds = run
            start = time.perf_counter()
            run[2], metrics = jax.block_until_ready(step.step(state, batch))
            seconds.append(time.perf_counter() - start)
    small, large = (min(runs[rows][3]) for rows in (10**4, 10**6))
    assert large < 2 * small
