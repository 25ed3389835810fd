"""Rows travel between devices and come out as on one."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from experiments.sharding.table_exchange import distribute_tables
from experiments.sharding.table_placement import LAYOUTS, place_tables
from optim_jax.row_sparse import (
    sparse_adagrad,
    sparse_row_wise_adagrad,
    sparse_sgd,
)

# Rows and width by table and leaf; two tables have two leaves, one of another width.
SHAPES = {
    "0": {"table": (13, 8)},
    "1": {"quotient": (5, 8), "remainder": (4, 8)},
    "2": {"table": (21, 8), "pooling_weight": (21, 1)},
    "3": {"table": (3, 8)},
    "4": {"table": (16, 3)},
}
LENGTHS = {"0": 3, "1": 2, "2": 4, "3": 1, "4": 5}  # ids of one device
MIX = ("replicated", "table", "row", "table", "column")
LR = 0.1
RULES = {
    "sgd": sparse_sgd(LR),
    "adagrad": sparse_adagrad(LR, initial_accumulator_value=0.5),
    "row-wise adagrad": sparse_row_wise_adagrad(LR),
}
BEYOND = np.iinfo(np.int32).max


def _nested(of):
    return {t: {leaf: of(t, leaf) for leaf in SHAPES[t]} for t in SHAPES}


def _problem(devices, seed=0):
    """Leaves, ids `[devices, L]` with repetitions and padding, and gradients."""
    rng = np.random.default_rng(seed)
    leaves = _nested(lambda t, leaf: rng.normal(size=SHAPES[t][leaf]).astype("f"))

    def some_ids(t, leaf):
        rows = SHAPES[t][leaf][0]
        ids = rng.integers(0, rows, (devices, LENGTHS[t])).astype(np.int32)
        ids[0, 0] = ids[-1, -1]  # one row for two devices
        ids[1 % devices, 0] = [rows, BEYOND, -1][int(t) % 3]
        return ids

    ids = _nested(some_ids)
    values = _nested(
        lambda t, leaf: rng.normal(size=(*ids[t][leaf].shape, SHAPES[t][leaf][1]))
    )
    return leaves, ids, jax.tree.map(np.float32, values)


def _distributed(leaves, layouts, mesh):
    sizes = [sum(leaf.nbytes for leaf in leaves[t].values()) for t in SHAPES]
    placements = place_tables(layouts, sizes, mesh.size)
    return distribute_tables(leaves, placements, mesh.size, mesh.axis_names)


def _mesh(shape):
    names = ("x", "y")[: len(shape)]
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(
        shape, names, axis_types=(AxisType.Auto,) * len(shape), devices=devices
    )


def _exchange(layouts, shape, rule):
    """Lookups, and leaves and states after an update, by several devices."""
    mesh = _mesh(shape)
    leaves, ids, values = _problem(mesh.size)
    tables = _distributed(leaves, layouts, mesh)
    share, buffers = (
        PartitionSpec(mesh.axis_names),
        (tables.specs(), tables.specs(rule)),
    )

    def local(rows, states, ids, values):
        ids, values = jax.tree.map(lambda leaf: leaf[0], (ids, values))
        found = tables.lookup(rows, ids)
        new = tables.update(rule, rows, states, ids, values)
        return jax.tree.map(lambda leaf: leaf[None], found), *new

    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(*buffers, share, share),
        out_specs=(share, *buffers),
        check_vma=False,
    )

    @jax.jit
    def run(leaves, ids, values):
        states = tables.pack_states(rule, jax.tree.map(rule.init, leaves))
        found, rows, states = mapped(tables.pack(leaves), states, ids, values)
        return found, tables.unpack(rows), tables.unpack_states(states)

    return run(leaves, ids, values)


def _update(rule, table, ids, values):
    """One step of a rule in NumPy: the new table and accumulator."""
    known = (ids >= 0) & (ids < len(table))
    gradient = np.zeros(table.shape)
    np.add.at(gradient, ids[known], values[known])
    if rule == "sgd":
        return table - LR * gradient, np.zeros(0)
    squares = np.square(gradient)
    start = 0.5 if rule == "adagrad" else 0.0
    accumulator = start + (squares if rule == "adagrad" else squares.mean(axis=1))
    root = np.sqrt(accumulator).reshape(len(table), -1)
    return table - LR * gradient / (root + 1e-10), accumulator


def _check(layouts, shape, rule):
    leaves, ids, values = _problem(int(np.prod(shape)))
    found, rows, states = _exchange(layouts, shape, RULES[rule])
    for t, leaf in ((table, leaf) for table in SHAPES for leaf in SHAPES[table]):
        table, looked_up = leaves[t][leaf], ids[t][leaf]
        known = (looked_up >= 0) & (looked_up < len(table))
        expected = np.where(known[..., None], table[np.where(known, looked_up, 0)], 0)
        np.testing.assert_array_equal(found[t][leaf], expected)
        flat = looked_up.ravel(), values[t][leaf].reshape(-1, table.shape[1])
        new = _update(rule, table, *flat)
        got = np.asarray(rows[t][leaf]), np.asarray(states[t][leaf].accumulator)
        for ours, theirs in zip(got, new, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        untouched = np.setdiff1d(np.arange(len(table)), looked_up)
        np.testing.assert_array_equal(got[0][untouched], table[untouched])
        assert states[t][leaf].count == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_layout_for_all_tables(layout):
    _check([layout] * len(SHAPES), (8,), "row-wise adagrad")


def test_a_mix_of_layouts_on_two_mesh_axes():
    _check(MIX, (2, 4), "adagrad")


def test_a_mix_of_layouts_without_statistics():
    _check(MIX, (4,), "sgd")
