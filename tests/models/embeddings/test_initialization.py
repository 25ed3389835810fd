import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.embeddings import (
    TableConfig,
    init_table,
    initialization,
)
from tests.models.embeddings.tables import TABLES, compiled_bag, compiled_init

WIDTH = 252  # columns enough for a law to show in small tables


def draw(config, seed=0):
    return init_table(config, jax.random.key(seed))


def assert_uniform(leaf, low, high):
    """Range, mean within 4 and second moment within 5 standard deviations."""
    leaf = (np.asarray(leaf, np.float64) - low) / (high - low)
    assert 0 <= leaf.min() < 0.01 and 0.99 < leaf.max() <= 1
    count = math.sqrt(leaf.size)
    assert abs(leaf.mean() - 0.5) < 4 * math.sqrt(1 / 12) / count
    assert abs(((leaf - 0.5) ** 2).mean() - 1 / 12) < 5 * math.sqrt(1 / 180) / count


@pytest.mark.parametrize("op", ["concat", "add", "mult"])
@pytest.mark.parametrize("k", [2, 3])
def test_combined_embeddings_have_the_variance_of_a_full_table(op, k):
    rows = {2: 100, 3: 22}[k]
    n = rows**k
    config = TableConfig(n, WIDTH, "mixed_radix", op, moduli=(rows,) * k)
    vectors = np.asarray(compiled_bag(config, draw(config), np.arange(n)))
    variance = 1 / (3 * n)
    # Of the mean of all entries: the parts are independent, their rows are shared.
    of_mean = {
        "concat": variance / (rows * WIDTH),
        "add": variance / (rows * WIDTH),
        "mult": variance / (n * WIDTH),
    }[op]
    assert abs(vectors.mean()) < 4 * math.sqrt(of_mean)
    assert abs(vectors.var() / variance - 1) < 0.1


@pytest.mark.parametrize("op", ["concat", "add", "mult"])
def test_half_widths_of_quotient_and_remainder(op):
    n = 10_000
    config = TableConfig(n, WIDTH, "qr", op, collisions=100)
    bound = {
        "concat": n**-0.5,
        "add": (2 * n) ** -0.5,
        "mult": 3**0.25 * n**-0.25,
    }[op]
    leaves = draw(config)
    for leaf in leaves.values():
        assert_uniform(leaf, -bound, bound)
    assert not np.array_equal(leaves["quotient"], leaves["remainder"])


@pytest.mark.parametrize(
    ("config", "leaf", "low", "high"),
    [
        (TableConfig(400, WIDTH), "table", -0.05, 0.05),
        (TableConfig(400, WIDTH, "qr", threshold=400), "table", -0.05, 0.05),
        (
            TableConfig(400, WIDTH, "qr", threshold=400, init="reference_qr"),
            "table",
            -0.05,
            0.05,
        ),
        (TableConfig(400, WIDTH, "hash", hash_rows=100), "table", -0.05, 0.05),
        (
            TableConfig(400, WIDTH, "hash", hash_rows=100, init="hash_rows"),
            "table",
            -0.1,
            0.1,
        ),
        (TableConfig(400, WIDTH, "features"), "part_0", -0.05, 0.05),
        (TableConfig(400, WIDTH, "path"), "part_0", -0.05, 0.05),
        (TableConfig(400, WIDTH, "frequency", hot_rows=100), "hot", -0.05, 0.05),
        (
            TableConfig(400, WIDTH, "frequency", "add", hot_rows=100),
            "quotient",
            -(800**-0.5),
            800**-0.5,
        ),
        (TableConfig(400, 300, "mixed", component_dims=(WIDTH,)), "table", -0.05, 0.05),
        (
            TableConfig(348, 348, "mixed", component_dims=(WIDTH,), init="glorot"),
            "table",
            -0.1,
            0.1,
        ),
        (
            TableConfig(400, 348, "mixed", component_dims=(WIDTH,)),
            "projection",
            -0.1,
            0.1,
        ),
        (TableConfig(400, WIDTH, "qr", init="reference_qr"), "quotient", 0.05, 1.0),
        (TableConfig(400, WIDTH, "qr", init="reference_qr"), "remainder", 0.05, 1.0),
        (TableConfig(400, WIDTH, "qr", init="ones"), "quotient", -0.05, 0.05),
        (TableConfig(400, WIDTH, "qr", init="ones"), "remainder", 0.99, 1.01),
        (
            TableConfig(400, WIDTH, "crt", moduli=(7, 100), init="ones"),
            "part_1",
            0.99,
            1.01,
        ),
    ],
)
def test_laws(config, leaf, low, high):
    assert_uniform(draw(config)[leaf], low, high)


def test_the_original_start_has_a_positive_mean():
    config = TableConfig(10_000, WIDTH, "qr", init="reference_qr", collisions=100)
    vectors = compiled_bag(config, draw(config), np.arange(10_000))
    assert float(vectors.mean()) == pytest.approx(0.505**2, rel=0.02)


def test_functions_of_a_path_keep_the_variance():
    config = TableConfig(1024, 64, "path", path_hidden=128, collisions=16)
    params = draw(config)
    assert not np.any(params["functions"]["part_1"]["hidden_bias"])
    vectors = np.asarray(compiled_bag(config, params, np.arange(1024)))
    assert abs(vectors.var() * 3 * 1024 - 1) < 0.1


def test_residual_functions_start_as_the_identity():
    config = TableConfig(23, 6, "path", path_residual=True)
    params = draw(config)
    found = compiled_bag(config, params, np.arange(23))
    np.testing.assert_array_equal(found, params["part_0"][np.arange(23) // 4])
    assert np.any(params["functions"]["part_1"]["hidden_kernel"])


@pytest.mark.parametrize("name", ["full", "frequency add"])
def test_keys_decide(name):
    config = TABLES[name]
    first, second = draw(config), draw(config, seed=1)
    inside = compiled_init(config, jax.random.key(0))
    for a, b, c in zip(*map(jax.tree.leaves, (first, inside, second)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert np.any(a != c) or not np.any(a)


@pytest.mark.parametrize("rows", [64, 65, 128, 1000])
def test_blocks_cover_the_table_once(monkeypatch, rows):
    monkeypatch.setattr(initialization, "_BLOCK", 64 * 16)
    jax.clear_caches()
    table = np.asarray(draw(TableConfig(rows, 16), seed=rows)["table"])
    assert len(np.unique(table, axis=0)) == rows
    assert_uniform(table, -(rows**-0.5), rows**-0.5)
    jax.clear_caches()


def test_a_large_table_needs_little_more_than_itself():
    config = TableConfig(4_000_000, 16)
    init = jax.jit(lambda key: init_table(config, key))
    stats = init.lower(jax.random.key(0)).compile().memory_analysis()
    if stats is None:
        pytest.skip("this backend reports no memory")
    assert stats.output_size_in_bytes >= 4 * 16 * 4_000_000
    assert stats.temp_size_in_bytes < 0.2 * stats.output_size_in_bytes


def test_float32_whatever_the_default(x64):
    leaves = jax.tree.leaves(draw(TABLES["path"]))
    assert len(leaves) == 5 and all(leaf.dtype == jnp.float32 for leaf in leaves)
