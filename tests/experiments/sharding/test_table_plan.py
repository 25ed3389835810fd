"""Plans fit their budget, or say what would."""

import dataclasses

import pytest

from experiments.sharding.table_plan import (
    plan_tables,
    propose_compression,
    table_bytes,
)
from models.dlrm import DLRMConfig
from models.embeddings import TableConfig

# Rows of the 26 columns of the Criteo display challenge, all of its lines together.
KAGGLE = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
MIB = 2**20


def _config(*rows, dim=16, **options):
    tables = tuple(TableConfig(count, dim) for count in rows)
    return DLRMConfig(tables, (13, dim), (1,), **options)


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [("sgd", 16), ("adagrad", 32), ("row_wise_adagrad", 17)],
)
def test_bytes_of_a_table_and_its_statistics(rule, numbers):
    assert table_bytes(TableConfig(100, 16), rule) == 4 * 100 * numbers


def test_bytes_of_a_compressed_and_of_a_weighted_table():
    halves = TableConfig(100, 16, method="qr", collisions=4)
    assert table_bytes(halves, "sgd") == 4 * 16 * (25 + 4)
    # A row of one number has one statistic.
    weighted = table_bytes(TableConfig(100, 16), weighted=True)
    assert weighted == 4 * 100 * (17 + 2)


def test_one_device_has_everything():
    plan = plan_tables(_config(100, 10), 1, 10**6)
    assert plan.layouts == ("replicated", "replicated")
    assert plan.device_bytes == (4 * 17 * 110,)


def test_layouts_follow_the_sizes():
    plan = plan_tables(_config(*KAGGLE), 8, 400 * MIB)
    layouts = dict(zip(KAGGLE, plan.layouts, strict=True))
    # More than an eighth of all rows; less, but too much for one device besides its
    # shares of those; less than a thousandth of an eighth.
    assert layouts[10131227] == layouts[2202608] == "row"
    assert layouts[286181] == layouts[5652] == "table"
    assert layouts[24] == layouts[3194] == "replicated"
    total = 4 * 17 * sum(KAGGLE)
    assert max(plan.device_bytes) < 1.1 * total / 8


def test_no_budget_is_no_reason_to_repeat_large_tables():
    plan = plan_tables(_config(*KAGGLE), 8, 1 << 62)
    assert plan.layouts[2] == "row"


def test_columns_are_split_where_no_statistic_is_repeated():
    config = _config(10_000, 10, 10)
    layouts = {
        rule: plan_tables(config, 8, MIB, rule=rule).layouts[0]
        for rule in ("sgd", "adagrad", "row_wise_adagrad")
    }
    assert layouts == {"sgd": "column", "adagrad": "column", "row_wise_adagrad": "row"}
    # Sixteen columns do not split over five devices.
    assert plan_tables(config, 5, MIB, rule="sgd").layouts[0] == "row"


def test_tables_are_split_where_whole_ones_are_too_much():
    config = _config(1000, 1000, 1000)
    whole = table_bytes(config.tables[0])
    plan = plan_tables(config, 2, 2 * whole)
    assert plan.layouts == ("table", "table", "row")
    assert plan.device_bytes == (3 * whole // 2,) * 2
    assert plan_tables(config, 3, 2 * whole).layouts == ("table",) * 3
    # Balanced, but above the budget by a hair: the largest is split.
    uneven = _config(1010, 1000)
    largest = table_bytes(uneven.tables[0])
    assert plan_tables(uneven, 2, largest).layouts == ("table", "table")
    assert plan_tables(uneven, 2, largest - 1).layouts == ("row", "row")


def test_the_message_names_the_compression_that_fits():
    config = _config(1000, 6)
    with pytest.raises(ValueError, match="need 68408 bytes.*byte_budget is 30000.*"):
        plan_tables(config, 1, 30_000)
    with pytest.raises(ValueError, match="collisions=4 would fit"):
        plan_tables(config, 1, 30_000)
    with pytest.raises(ValueError, match="no quotient-remainder compression fits"):
        plan_tables(config, 1, 100)


def test_weighted_tables_cannot_be_compressed():
    config = _config(1000, weighted_pooling="learned")
    with pytest.raises(ValueError, match="no quotient-remainder compression fits"):
        plan_tables(config, 1, 30_000)
    with pytest.raises(ValueError, match="byte_budget=30000 on 1 device"):
        propose_compression(config, 1, 30_000)


def test_the_mildest_compression_is_proposed():
    config = _config(1000, 6)
    proposed, plan = propose_compression(config, 1, 30_000)
    assert [table.method for table in proposed.tables] == ["qr", "full"]
    assert proposed.tables[0].collisions == 4
    assert plan == plan_tables(proposed, 1, 30_000)
    halved = dataclasses.replace(config.tables[0], method="qr", op="mult", collisions=2)
    assert table_bytes(halved) + table_bytes(config.tables[1]) > 30_000


def test_nothing_is_proposed_for_what_fits():
    config = _config(1000, 6)
    proposed, plan = propose_compression(config, 2, MIB)
    assert proposed is config and plan == plan_tables(config, 2, MIB)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": 0}, "devices must be >= 1, got 0"),
        ({"byte_budget": 0}, "byte_budget must be >= 1, got 0"),
        ({"rule": "adam"}, "rule must be one of sgd, adagrad, .* got 'adam'"),
    ],
)
def test_refuses_what_is_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_tables(_config(10), **({"devices": 2, "byte_budget": MIB} | arguments))
