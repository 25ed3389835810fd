"""Where tables lie: greedy placement, bytes of a device, the printed plan."""

import jax
import jax.numpy as jnp
import pytest

from experiments.sharding.table_placement import (
    Plan,
    TablePlacement,
    place_tables,
    placements_of,
)
from optim_jax.row_sparse import sparse_row_wise_adagrad, sparse_sgd

LEAVES = {
    "0": {"table": jax.ShapeDtypeStruct((100, 16), jnp.float32)},
    "1": {
        "quotient": jax.ShapeDtypeStruct((25, 16), jnp.float32),
        "remainder": jax.ShapeDtypeStruct((4, 16), jnp.float32),
    },
}


def test_largest_tables_go_first_to_the_least_loaded_device():
    placed = place_tables(["table"] * 5, [30, 50, 20, 40, 10], 2)
    # 50 | 40, then 30 to the second, 20 to the first, 10 to either.
    assert [p.device for p in placed] == [1, 0, 0, 1, 0]
    assert Plan(placed, 2).device_bytes == (80, 70)


def test_only_whole_tables_have_a_device():
    placed = place_tables(["replicated", "row", "column", "table"], [8, 8, 8, 8], 4)
    assert [p.device for p in placed] == [None, None, None, 0]
    assert Plan(placed, 4).device_bytes == (20, 12, 12, 12)


def test_shares_are_rounded_up():
    assert TablePlacement(0, "row", None, 10).bytes_on(0, 4) == 3
    assert TablePlacement(0, "column", None, 12).bytes_on(3, 4) == 3


def test_statistics_of_rows_are_repeated_where_columns_are_split():
    by_columns = TablePlacement(0, "column", None, 17, row_statistics=1)
    by_rows = TablePlacement(0, "row", None, 17, row_statistics=1)
    assert by_columns.bytes_on(0, 8) == 2 + 1
    assert by_rows.bytes_on(0, 8) == 3


def test_a_plan_is_printed_as_a_table():
    placed = place_tables(["row", "table"], [4 * 2**20, 2**19], 2)
    lines = str(Plan(placed, 2, 3 * 2**20)).splitlines()
    assert lines[0].split() == ["table", "layout", "device", "MiB"]
    assert lines[1].split() == ["0", "row", "all", "4.000"]
    assert lines[2].split() == ["1", "table", "0", "0.500"]
    assert lines[3] == "MiB on each of 2 devices: 2.500, 2.000"
    assert lines[4] == "budget: 3.000 MiB a device"


def test_a_name_stands_for_all_tables():
    rule = sparse_row_wise_adagrad(0.1)
    assert [p.layout for p in placements_of(None, LEAVES, rule, 2)] == [
        "replicated"
    ] * 2
    placed = placements_of("table", LEAVES, rule, 2)
    assert [p.bytes for p in placed] == [4 * 100 * 17, 4 * 29 * 17]
    assert [p.row_statistics for p in placed] == [4 * 100, 4 * 29]
    assert [p.bytes for p in placements_of("row", LEAVES, sparse_sgd(0.1), 2)] == [
        4 * 100 * 16,
        4 * 29 * 16,
    ]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            "shard",
            "a layout must be one of replicated, table, row, column, got 'shard'",
        ),
        (["row"], "the plan has 1 layouts, the model has 2 tables"),
        (Plan((), 2), "the plan has 0 tables, the model 2"),
        (Plan((), 4), "the plan is for 4 devices, the mesh has 2"),
    ],
)
def test_refuses_plans_that_do_not_fit(plan, message):
    with pytest.raises(ValueError, match=message):
        placements_of(plan, LEAVES, sparse_sgd(0.1), 2)
