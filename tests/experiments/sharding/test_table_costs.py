"""Accounting of tables: the published terabyte model, compression, one small model."""

import pytest

from experiments.sharding.table_costs import table_costs
from models.dlrm import DLRMConfig
from models.embeddings import TableConfig

TERABYTE = (
    *(40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956),
    *(405282, 10, 2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000),
    *(590152, 12973, 108, 36),
)


def _model(tables, dim):
    return DLRMConfig(tuple(tables), (13, dim), (1,))


def test_the_terabyte_model_of_40_million_rows():
    config = _model([TableConfig(rows, 128) for rows in TERABYTE], 128)
    costs = {
        rule: table_costs(config, rule=rule)
        for rule in ("sgd", "adagrad", "row_wise_adagrad")
    }
    assert costs["sgd"].params == 26_135_627_264
    assert costs["sgd"].weight_bytes / 2**30 == pytest.approx(97.36, abs=0.005)
    assert costs["sgd"].state_bytes == 0
    assert costs["adagrad"].state_bytes == costs["adagrad"].weight_bytes
    rows = costs["row_wise_adagrad"].state_bytes
    assert rows / 2**30 == pytest.approx(0.76, abs=0.005)


def test_compression_names_what_applied():
    tables = [
        TableConfig(1000, 16, method="qr", collisions=4, threshold=100),
        TableConfig(50, 16, method="qr", collisions=4, threshold=100),
    ]
    costs = table_costs(_model(tables, 16), ids_per_bag=2)
    assert [table.method for table in costs.tables] == ["qr", "full"]
    assert costs.tables[0].params == 16 * 254 and costs.tables[1].ratio == 1.0
    assert costs.tables[0].ratio == pytest.approx(1000 / 254)
    assert costs.ratio == pytest.approx(16 * 1050 / (16 * 254 + 16 * 50))
    # Two parts and one: three rows of 64 bytes an id, two ids, three times moved.
    assert costs.moved_bytes_per_sample == 3 * 2 * 3 * 64
    # Perceptrons 2 (13 16 + (16 + 3) 1), interaction F^2 D, 96 additions.
    assert costs.flops_per_sample == 2 * (13 * 16 + 19) + 3**2 * 16 + 96
    text = str(costs)
    assert "1,000" in text and "qr" in text and "total" in text
