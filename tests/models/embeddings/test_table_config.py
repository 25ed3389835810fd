import dataclasses
import json
import math

import numpy as np
import pytest

from models.embeddings import TableConfig

MADE = [
    TableConfig(100, 16),
    TableConfig(100, 16, "hash", hash_rows=30, init="hash_rows"),
    TableConfig(100, 16, "qr", "concat", component_dims=(12, 4), pooling="mean"),
    TableConfig(100, 16, "mixed_radix", "add", moduli=(5, 5, 4), threshold=7),
    TableConfig(100, 16, "crt", moduli=(10, 11)),
    TableConfig(4, 6, "explicit", classes=((0, 0, 1, 1), (0, 1, 0, 1))),
    TableConfig(100, 16, "path", path_hidden=64, path_residual=True),
    TableConfig(100, 16, "mixed", component_dims=(3,), init="glorot"),
    TableConfig(100, 16, "frequency", hot_rows=9, pool_order="pool_then_combine"),
]


def test_the_fields_and_their_defaults():
    fields = {field.name: field.default for field in dataclasses.fields(TableConfig)}
    assert list(fields)[:13] == [
        "rows",
        "dim",
        "method",
        "op",
        "collisions",
        "moduli",
        "hash_rows",
        "component_dims",
        "threshold",
        "pooling",
        "pool_order",
        "init",
        "classes",
    ]
    assert fields["method"] == "full" and fields["op"] == "mult"
    assert fields["collisions"] == 4 and fields["threshold"] == 0
    assert fields["pooling"] == "sum" and fields["init"] == "default"
    assert fields["pool_order"] == "combine_then_pool"
    with pytest.raises(dataclasses.FrozenInstanceError):
        TableConfig(3, 2).rows = 4


@pytest.mark.parametrize("config", MADE, ids=lambda config: config.method)
def test_json_round_trip(config):
    text = config.to_json()
    again = TableConfig.from_json(text)
    assert again == config and hash(again) == hash(config)
    assert TableConfig.from_dict(config.to_dict()) == config
    assert json.loads(text)["rows"] == config.rows


def test_lists_and_numpy_integers_are_read():
    plain = TableConfig(100, 16, "mixed_radix", "concat", moduli=(10, 10))
    other = TableConfig(
        np.int64(100), np.int32(16), "mixed_radix", "concat", moduli=[np.int64(10)] * 2
    )
    assert other == plain and type(other.rows) is int
    assert other.to_json() == plain.to_json()
    classes = np.asarray([[0, 0, 1, 1], [0, 1, 0, 1]], np.uint8)
    explicit = TableConfig(4, 6, "explicit", classes=classes)
    assert explicit == MADE[5]
    assert explicit.class_arrays[1].tolist() == [0, 1, 0, 1]


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match="unknown table fields depth; there are rows"):
        TableConfig.from_dict({"rows": 3, "dim": 2, "depth": 1})


@pytest.mark.parametrize("method", ["hash", "qr", "mixed_radix", "crt", "path"])
def test_the_threshold_is_strict(method):
    at, above = (TableConfig(n, 8, method, threshold=200) for n in (200, 201))
    assert not at.is_compressed and at.built_method == "full"
    assert above.is_compressed and above.built_method == method
    assert not TableConfig(201, 8).is_compressed


@pytest.mark.parametrize(("n", "c"), [(100, 4), (101, 4), (7, 7), (9, 1), (1000, 60)])
@pytest.mark.filterwarnings("ignore:collisions")
def test_rows_of_quotient_and_remainder(n, c):
    config = TableConfig(n, 8, "qr", collisions=c)
    assert config.part_rows == (math.ceil(n / c), c)
    assert TableConfig(n, 8, "features", collisions=c).part_rows == config.part_rows
    assert TableConfig(n, 8, "path", collisions=c).part_rows == config.part_rows
    assert TableConfig(n, 8, "hash", collisions=c).stored_hash_rows == sum(
        config.part_rows
    )
    cold = TableConfig(n + 5, 8, "frequency", collisions=c, hot_rows=5)
    assert cold.part_rows == config.part_rows


def test_default_moduli():
    assert TableConfig(101, 8, "mixed_radix").part_rows == (11, 11)
    three = TableConfig(1001, 9, "mixed_radix", "concat", component_dims=(3, 2, 4))
    assert three.part_rows == (11, 11, 11) and three.part_dims == (3, 2, 4)
    coprime = TableConfig(101, 8, "crt").part_rows
    assert math.gcd(*coprime) == 1 and math.prod(coprime) >= 101


@pytest.mark.parametrize(
    ("dim", "parts", "widths"), [(16, 2, (8, 8)), (7, 2, (4, 3)), (16, 3, (6, 5, 5))]
)
def test_concat_splits_the_width(dim, parts, widths):
    config = TableConfig(100, dim, "mixed_radix", "concat", moduli=(10,) * parts)
    assert config.part_dims == widths and config.component_dims is None
    added = dataclasses.replace(config, op="add")
    assert added.part_dims == (dim,) * parts


def test_explicit_classes_count_up_to_the_largest():
    config = TableConfig(3, 4, "explicit", classes=((0, 5, 0), (0, 0, 1)))
    assert config.part_rows == (6, 2)
