import warnings

import numpy as np
import pytest

from models.embeddings import METHODS, TableConfig


def qr(**fields):
    return TableConfig(**{"rows": 100, "dim": 8, "method": "qr", **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 0}, "rows must be an integer >= 1, got 0"),
        ({"rows": 2.0}, "rows must be an integer >= 1, got 2.0"),
        ({"rows": True}, "rows must be an integer >= 1, got True"),
        ({"dim": 0}, "dim must be an integer >= 1, got 0"),
        ({"collisions": 0}, "collisions must be an integer >= 1, got 0"),
        ({"collisions": -4}, "collisions must be an integer >= 1, got -4"),
        ({"threshold": -1}, "threshold must be an integer >= 0, got -1"),
        ({"method": "tt"}, "method must be one of full, hash, qr, .* got 'tt'"),
        ({"op": "max"}, "op must be one of concat, add, mult, got 'max'"),
        ({"pooling": "max"}, "pooling must be one of sum, mean, got 'max'"),
        ({"pool_order": "none"}, "pool_order must be one of combine_then_pool, "),
        ({"init": "zeros"}, "init must be one of default, ones, .* got 'zeros'"),
        ({"moduli": (10, 10)}, "moduli is read by method mixed_radix or crt .*'qr'"),
        ({"hash_rows": 5}, "hash_rows is read by method hash only, .*'qr'"),
        ({"classes": ((0, 1),)}, "classes is read by method explicit only"),
        ({"hot_rows": 5}, "hot_rows is read by method frequency only"),
        ({"path_residual": True}, "path_residual is read by method path only"),
        ({"method": "full", "component_dims": (8,)}, "component_dims is read by "),
        ({"method": "features", "component_dims": (8, 8)}, "component_dims is read by"),
        ({"op": "add", "init": "ones"}, "init='ones' goes with op='mult' only, got 'a"),
        (
            {"method": "hash", "init": "ones"},
            "init='ones' goes with method qr or mixed",
        ),
        (
            {"method": "crt", "init": "reference_qr"},
            "goes with method qr only, .*'crt'",
        ),
        ({"init": "hash_rows"}, "init='hash_rows' goes with method hash only"),
        ({"init": "glorot"}, "init='glorot' goes with method mixed only"),
        (
            {"method": "path", "pool_order": "pool_then_combine"},
            "needs pool_order='combine_then_pool', got 'pool_then_combine'",
        ),
    ],
)
def test_single_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        qr(**fields)


@pytest.mark.parametrize("method", METHODS)
def test_more_rows_than_ids_of_the_device(method):
    with pytest.raises(
        ValueError, match=r"at most 2\*\*31 - 1 .* got 2147483648; hash"
    ):
        TableConfig(2**31, 8, method)
    assert TableConfig(2**31 - 1, 8).rows == 2**31 - 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"method": "mixed_radix", "moduli": (9, 11)},
            r"moduli \(9, 11\) have the product 99 < rows=100",
        ),
        ({"method": "crt", "moduli": (9, 11)}, "product 99 < rows=100"),
        ({"method": "crt", "moduli": ()}, r"moduli \(\) have the product 1 < rows=100"),
        (
            {"method": "crt", "moduli": (10, 12)},
            r"coprime, but gcd\(10, 12\) = 2 in \(10, 12\)",
        ),
        ({"method": "crt", "moduli": (10, 0)}, r"moduli\[1\] must be an integer >= 1"),
        ({"method": "path", "moduli": (100,)}, r"two or more moduli, got \(100,\)"),
        (
            {"method": "hash", "hash_rows": 0},
            "hash_rows must be an integer >= 1, got 0",
        ),
        (
            {"method": "frequency"},
            r"hot_rows must be in \[1, rows\) = \[1, 100\), got 0",
        ),
        ({"method": "frequency", "hot_rows": 100}, r"= \[1, 100\), got 100"),
        (
            {"collisions": 2**31},
            "part would have 2147483648 rows, at most .*; got collisions=2147483648",
        ),
        ({"method": "hash", "hash_rows": 2**31}, "a part would have 2147483648 rows"),
        ({"method": "crt", "moduli": (2, 2**31 + 1)}, "a part would have 2147483649"),
    ],
)
def test_partitions(fields, message):
    with pytest.raises(ValueError, match=message):
        qr(**fields)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (None, "needs classes, one tuple per partition"),
        ((), "needs classes, one tuple per partition"),
        (
            ((0, 1, 2),),
            r"classes\[0\] must hold one class for each of rows=4 ids, got 3",
        ),
        (((0, 1, 2, -1),), r"classes\[0\] must be in \[0, 2147483647\), got -1"),
        (((0, 1, 2, 2**31),), r"classes\[0\] must be in .* got 2147483648"),
        (
            ((0, 1, 0, 1), (2, 3, 3, 3)),
            r"not complementary: ids 1 and 3 share the classes \(1, 3\)",
        ),
    ],
)
def test_explicit_classes(classes, message):
    with pytest.raises(ValueError, match=message):
        TableConfig(4, 8, "explicit", classes=classes)


@pytest.mark.parametrize("part", [(0.0, 1.0), (True, False), ((0, 1), (2, 3)), "ab"])
def test_explicit_classes_are_integers(part):
    with pytest.raises(TypeError, match=r"classes\[0\] must be a sequence of integers"):
        TableConfig(2, 8, "explicit", classes=(part,))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"op": "concat", "component_dims": (4, 3)},
            r"component_dims \(4, 3\) sum to 7, but dim=8 is the combined width",
        ),
        (
            {"op": "concat", "component_dims": (4, 2, 2)},
            r"one width for each of 2 parts, got \(4, 2, 2\)",
        ),
        ({"op": "concat", "component_dims": (8, 0)}, r"component_dims\[1\] must be an"),
        ({"op": "concat", "dim": 1}, "concat' of 2 parts needs dim >= 2, got 1"),
        (
            {"component_dims": (4, 4)},
            r"op='mult' needs every width equal to dim=8, got component_dims=\(4, 4\)",
        ),
        ({"op": "add", "component_dims": (8, 4)}, "op='add' needs every width equal"),
        ({"method": "mixed"}, r"component_dims=\(d,\) with d in \[1, dim\] = \[1, 8\]"),
        ({"method": "mixed", "component_dims": (9,)}, r"= \[1, 8\], got \(9,\)"),
        ({"method": "mixed", "component_dims": (2, 2)}, r"= \[1, 8\], got \(2, 2\)"),
    ],
)
def test_widths(fields, message):
    with pytest.raises(ValueError, match=message):
        qr(**fields)


def test_equal_widths_may_be_spelt_out():
    assert qr(component_dims=(8, 8)).part_dims == (8, 8)
    assert qr(op="concat", component_dims=(6, 2)).part_dims == (6, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 4}, "collisions=4 >= 4, the number of ids .*'qr' saves nothing"),
        ({"rows": 3}, "collisions=4 >= 3, .* table of rows=3; a higher threshold"),
        ({"rows": 4, "method": "path"}, "collisions=4 >= 4"),
        ({"rows": 4, "method": "hash"}, "collisions=4 >= 4"),
        ({"method": "hash", "hash_rows": 100}, "hash_rows=100 >= 100"),
        ({"method": "frequency", "hot_rows": 97}, "collisions=4 >= 3, .* rows=100;"),
    ],
)
def test_compression_without_gain_is_warned_about(fields, message):
    with pytest.warns(UserWarning, match=message) as caught:
        config = qr(**fields)
    assert config.is_compressed
    assert caught[0].filename == __file__


def test_the_warning_points_at_the_caller_and_is_not_overdone():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qr(rows=5)
        qr(rows=4, threshold=4)
        qr(rows=4, method="full")
        qr(collisions=1)
        qr(rows=4, method="mixed_radix", moduli=(2, 2))
        qr(rows=4, method="features", moduli=(2, 2))
        qr(method="hash", hash_rows=np.int64(99))
