"""Buffers of tables: what lies where, and back again."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.sharding.table_layout import TableLayout, place_components
from experiments.sharding.table_placement import LAYOUTS, place_tables
from optim_jax.row_sparse import (
    RowSparseState,
    sparse_adagrad,
    sparse_row_wise_adagrad,
    sparse_sgd,
)

SHAPES = {
    "0": {"table": (13, 8)},
    "1": {"quotient": (5, 8), "remainder": (4, 8)},
    "2": {"table": (21, 8), "pooling_weight": (21, 1)},
    "3": {"table": (16, 4)},
}
MIX = ("table", "row", "table", "column")
RULES = {
    "sgd": sparse_sgd(0.1),
    "adagrad": sparse_adagrad(0.1, initial_accumulator_value=0.5),
    "row-wise adagrad": sparse_row_wise_adagrad(0.1),
}


def _leaves():
    rng = np.random.default_rng(0)
    return {
        table: {leaf: rng.normal(size=s).astype("f") for leaf, s in leaves.items()}
        for table, leaves in SHAPES.items()
    }


def _layout(layouts, devices):
    leaves = _leaves()
    sizes = [sum(leaf.nbytes for leaf in table.values()) for table in leaves.values()]
    placements = place_tables(layouts, sizes, devices)
    return TableLayout(place_components(leaves, placements, devices), devices, ("x",))


def _random_states(rule):
    """States as after some steps, with numbers that can be told apart."""
    rng = np.random.default_rng(1)

    def state(leaf):
        shape = jax.eval_shape(rule.init, leaf).accumulator.shape
        return RowSparseState(rng.random(shape).astype("f"), np.int32(7))

    return jax.tree.map(state, _leaves())


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("layouts", [*([layout] * 4 for layout in LAYOUTS), MIX])
def test_unpacking_inverts_packing(layouts, devices):
    layout, leaves = _layout(layouts, devices), _leaves()
    there_and_back = jax.jit(lambda leaves: layout.unpack(layout.pack(leaves)))
    jax.tree.map(np.testing.assert_array_equal, there_and_back(leaves), leaves)


@pytest.mark.parametrize("rule", RULES)
def test_unpacking_inverts_packing_of_states(rule):
    layout, states = _layout(MIX, 4), _random_states(RULES[rule])
    there_and_back = jax.jit(
        lambda s: layout.unpack_states(layout.pack_states(RULES[rule], s))
    )
    jax.tree.map(np.testing.assert_array_equal, there_and_back(states), states)


def test_whole_tables_of_one_width_share_a_slab():
    layout = _layout(["table"] * 4, 2)
    # Largest first: table 2 on one device; 0, 1 and 3 on the other.
    assert layout.slab_rows == {8: 13 + 5 + 4, 1: 21, 4: 16}
    places = {(p.table, p.leaf): (p.device, p.first) for p in layout.components}
    assert places["0", "table"] == (1, 0)
    assert places["1", "remainder"] == (1, 18)
    assert places["2", "pooling_weight"] == (0, 0)


def test_columns_that_do_not_split_are_split_by_rows():
    layouts = {p.leaf: p.layout for p in _layout(["column"] * 4, 8).components}
    assert layouts["pooling_weight"] == "row" and layouts["quotient"] == "column"


@pytest.mark.parametrize("rule", RULES)
def test_devices_hold_the_bytes_that_were_planned(rule):
    layout, leaves = _layout(MIX, 4), _leaves()
    mesh = jax.make_mesh(
        (4,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4]
    )
    shardings = jax.tree.map(
        functools.partial(NamedSharding, mesh),
        (layout.specs(), layout.specs(RULES[rule])),
        is_leaf=lambda node: isinstance(node, PartitionSpec),
    )
    states = layout.pack_states(RULES[rule], _random_states(RULES[rule]))
    held = jax.device_put((layout.pack(leaves), states), shardings)
    rows, states = held
    wide = {"sgd": 8, "adagrad": 16, "row-wise adagrad": 9}[rule]
    # Rows by fours: 5 and 4 rows need two and one each; by columns: a number each,
    # while a statistic of a row is whole everywhere. The slabs are as long as table 2.
    columns = {"sgd": 16, "adagrad": 32, "row-wise adagrad": 32}[rule]
    pooling = {"sgd": 1, "adagrad": 2, "row-wise adagrad": 2}[rule]
    expected = 4 * (wide * (2 + 1 + 21) + pooling * 21 + columns)
    counts = 4 * (2 + 1 + 2)
    for device in mesh.devices.flat:
        found = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves((rows, states))
            for shard in leaf.addressable_shards
            if shard.device == device
        )
        assert found == expected + counts
