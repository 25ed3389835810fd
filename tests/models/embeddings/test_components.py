import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.embeddings import (
    TableConfig,
    choose_moduli,
    component_ids,
    component_shapes,
    count_table_params,
    dense_leaves,
    dense_shapes,
    init_table,
    num_vectors,
    output_width,
    row_leaves,
)
from tests.models.embeddings.tables import ROWS, TABLES

# Rows of the 26 categorical columns of the Kaggle display advertising data.
# fmt: off
KAGGLE = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)
# fmt: on
every_table = pytest.mark.parametrize("config", TABLES.values(), ids=TABLES)


def quarter(n):
    return {"method": "hash", "hash_rows": -(-n // 4)}


def digits(k):
    return lambda n: {"method": "mixed_radix", "moduli": choose_moduli(n, k)}


@pytest.mark.filterwarnings("ignore:collisions")
@pytest.mark.parametrize(
    ("fields", "threshold", "expected"),
    [
        (lambda n: {}, 0, 540_201_232),
        (lambda n: {"method": "qr", "collisions": 2}, 200, 270_102_928),
        (lambda n: {"method": "qr", "collisions": 4}, 0, 135_052_128),
        (lambda n: {"method": "qr", "collisions": 4}, 200, 135_054_048),
        (lambda n: {"method": "qr", "collisions": 4}, 2_000, 135_089_536),
        (lambda n: {"method": "qr", "collisions": 4}, 20_000, 135_619_648),
        (lambda n: {"method": "qr", "collisions": 7}, 200, 77_176_592),
        (lambda n: {"method": "qr", "collisions": 60}, 200, 9_024_032),
        (quarter, 200, 135_052_896),
        (digits(2), 200, 463_072),
        (digits(3), 200, 62_576),
    ],
)
def test_kaggle_parameter_counts(fields, threshold, expected):
    assert sum(KAGGLE) == 33_762_577
    tables = [TableConfig(n, 16, threshold=threshold, **fields(n)) for n in KAGGLE]
    assert sum(map(count_table_params, tables)) == expected


@pytest.mark.filterwarnings("ignore:collisions")
def test_hashing_has_the_budget_of_qr_and_concat_fewer():
    for n in KAGGLE:
        hashed, qr, concat = (
            count_table_params(TableConfig(n, 16, *method))
            for method in (("hash",), ("qr",), ("qr", "concat"))
        )
        assert hashed == qr == 16 * (math.ceil(n / 4) + 4) == 2 * concat


@pytest.mark.parametrize(
    ("hidden", "per_function"), [(16, 544), (32, 1_072), (64, 2_128), (128, 4_240)]
)
def test_size_of_the_functions_of_a_path(hidden, per_function):
    config = TableConfig(100, 16, "path", path_hidden=hidden)
    assert count_table_params(config) == 25 * 16 + 4 * per_function


@every_table
def test_counts_and_shapes_are_those_of_the_arrays(config):
    params = jax.eval_shape(lambda key: init_table(config, key), jax.random.key(0))
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    assert count_table_params(config) == sum(sizes)
    rows, dense = row_leaves(params), dense_leaves(params)
    assert jax.tree.map(lambda leaf: leaf.shape, rows) == component_shapes(config)
    assert jax.tree.map(lambda leaf: leaf.shape, dense) == dense_shapes(config)
    assert {**rows, **dense}.keys() == params.keys()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("full", {"table": (23, 6)}),
        ("below the threshold", {"table": (23, 6)}),
        ("hash", {"table": (10, 6)}),
        ("mixed", {"table": (23, 4)}),
        ("mixed of full width", {"table": (23, 6)}),
        ("qr mult", {"quotient": (6, 6), "remainder": (4, 6)}),
        ("qr concat", {"quotient": (6, 3), "remainder": (4, 3)}),
        ("crt add", {"part_0": (5, 6), "part_1": (7, 6)}),
        ("explicit concat", {"part_0": (5, 3), "part_1": (5, 3)}),
        ("mixed_radix mult", {"part_0": (3, 6), "part_1": (2, 6), "part_2": (4, 6)}),
        ("features", {"part_0": (6, 6), "part_1": (4, 6)}),
        ("path", {"part_0": (6, 6)}),
        ("path of digits", {"part_0": (3, 2)}),
        (
            "frequency concat",
            {"hot": (7, 6), "quotient": (4, 3), "remainder": (4, 3)},
        ),
    ],
)
def test_row_indexed_leaves(name, expected):
    assert component_shapes(TABLES[name]) == expected


def test_dense_leaves():
    assert dense_shapes(TABLES["mixed"]) == {"projection": (4, 6)}
    assert dense_shapes(TABLES["mixed of full width"]) == {}
    functions = dense_shapes(TABLES["path of digits"])["functions"]
    assert list(functions) == ["part_1", "part_2"]
    assert functions["part_2"] == {
        "hidden_kernel": (4, 2, 3),
        "hidden_bias": (4, 3),
        "output_kernel": (4, 3, 2),
        "output_bias": (4, 2),
    }


def test_only_features_are_several_vectors():
    counts = {name: num_vectors(config) for name, config in TABLES.items()}
    several = {"features": 2, "features of digits": 3}
    assert {name: k for name, k in counts.items() if k > 1} == several
    assert output_width(TABLES["features of digits"]) == 18
    assert output_width(TABLES["path of digits"]) == 2
    small = TableConfig(5, 6, "features", threshold=5)
    assert num_vectors(small) == 1 and output_width(small) == 6


@every_table
def test_host_and_device_give_the_same_rows_in_range(config):
    ids = np.arange(ROWS)
    host = component_ids(config, ids)
    device = jax.jit(lambda x: component_ids(config, x))(jnp.asarray(ids))
    shapes = component_shapes(config)
    assert list(host) == list(shapes) and device.keys() == host.keys()
    for leaf, rows in host.items():
        assert rows.dtype == np.int64 and device[leaf].dtype == jnp.int32
        np.testing.assert_array_equal(rows, device[leaf])
        served = np.ones(ROWS, bool)
        if config.method == "frequency":
            served = (ids < 7) if leaf == "hot" else (ids >= 7)
        assert np.all(rows[~served] == shapes[leaf][0])
        assert rows[served].min() == 0
        assert rows[served].max() == shapes[leaf][0] - 1


@every_table
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint64, np.int16, np.uint8])
def test_padding_is_out_of_range_in_every_leaf(config, dtype):
    outside = [ROWS, ROWS + 1, ROWS + 40, np.iinfo(dtype).max]
    if np.iinfo(dtype).min < 0:
        outside += [-1, -ROWS, np.iinfo(dtype).min]
    arrays = [np.asarray(outside, dtype)]
    if arrays[0].itemsize < 8:  # without 64-bit types the device would wrap them
        arrays.append(jnp.asarray(arrays[0]))
    for ids in arrays:
        for leaf, rows in component_ids(config, ids).items():
            assert set(rows.tolist()) == {component_shapes(config)[leaf][0]}


def test_rows_of_quotient_and_remainder():
    rows = component_ids(TABLES["qr mult"], np.asarray([0, 3, 4, 22]))
    assert rows["quotient"].tolist() == [0, 0, 1, 5]
    assert rows["remainder"].tolist() == [0, 3, 0, 2]
    # 23 // 4 is a row of the quotient table; as an id of padding it must not be.
    assert component_ids(TABLES["qr mult"], [23])["quotient"].tolist() == [6]


def test_the_longest_table_on_the_device():
    n = 2**31 - 1
    ids = [0, 2**24 + 3, n - 1]
    rows = component_ids(TableConfig(n, 2, "qr"), jnp.asarray([*ids, n, -1], jnp.int32))
    assert rows["quotient"].tolist() == [x // 4 for x in ids] + [2**29] * 2
    assert rows["remainder"].tolist() == [x % 4 for x in ids] + [4] * 2


def test_shapes_of_ids_are_kept():
    rows = component_ids(TABLES["qr mult"], np.arange(6).reshape(2, 3))
    assert rows["quotient"].shape == (2, 3)
    assert component_ids(TABLES["qr mult"], [])["quotient"].shape == (0,)


@pytest.mark.parametrize("ids", [np.ones(2), jnp.ones(2), np.ones(2, bool), [True]])
def test_only_integers_are_ids(ids):
    with pytest.raises(TypeError, match="ids must be integers, got (float|bool)"):
        component_ids(TABLES["full"], ids)
