import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.embeddings import (
    TableConfig,
    count_table_params,
    embedding_bag,
    gather_rows,
    offsets_from_lengths,
)
from tests.models.embeddings.tables import (
    ROWS,
    TABLES,
    compiled_bag,
    draw_params,
    embed,
)

NUMBERS = {"rtol": 1e-4, "atol": 1e-5}
LENGTHS = [2, 0, 3, 1, 0]
IDS = [0, 22, 9, 9, 7, 3]
OFFSETS = [0, 2, 2, 5, 6]


def bag(config, params, ids, offsets=None, weights=None):
    """Lists become arrays, or each of their numbers would be an argument of its own."""
    offsets = None if offsets is None else np.asarray(offsets)
    return compiled_bag(config, params, np.asarray(ids), offsets, weights)


def stored(golden_dir, case):
    folder = golden_dir / "dlrm"
    config = json.loads((folder / f"{case}.json").read_text())
    return config, dict(np.load(folder / f"{case}.npz", allow_pickle=False))


def value_and_grad(config, params, arrays):
    @jax.jit
    def loss(params):
        out = embedding_bag(config, params, arrays["in/indices"], arrays["in/offsets"])
        return jnp.sum(out * arrays["in/cotangent"]), out

    (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return out, gradient


@pytest.mark.parametrize(
    "case", ["qr_mult_sum", "qr_mult_mean", "qr_add_sum", "qr_concat_sum"]
)
def test_replays_the_original_quotient_remainder_bags(golden_dir, case):
    stated, arrays = stored(golden_dir, case)
    width = stated["embedding_dim"] * (2 if stated["operation"] == "concat" else 1)
    config = TableConfig(
        stated["num_categories"],
        width,
        "qr",
        stated["operation"],
        collisions=stated["num_collisions"],
        pooling=stated["mode"],
        pool_order="pool_then_combine",
    )
    params = {"quotient": arrays["w/q"], "remainder": arrays["w/r"]}
    assert count_table_params(config) == sum(leaf.size for leaf in params.values())
    out, gradient = value_and_grad(config, params, arrays)
    np.testing.assert_allclose(out, arrays["out/y"], **NUMBERS)
    np.testing.assert_allclose(gradient["quotient"], arrays["grad/q"], **NUMBERS)
    np.testing.assert_allclose(gradient["remainder"], arrays["grad/r"], **NUMBERS)

    papers = dataclasses.replace(config, pool_order="combine_then_pool")
    out, _ = value_and_grad(papers, params, arrays)
    np.testing.assert_allclose(out, arrays["alt/combine_then_pool"], **NUMBERS)
    is_other = not np.allclose(arrays["out/y"], arrays["alt/combine_then_pool"])
    assert is_other == (stated["operation"] == "mult")

    everything = compiled_bag(config, params, np.arange(config.rows))
    np.testing.assert_allclose(everything, arrays["out/all_embeddings"], **NUMBERS)


def test_replays_the_original_bags_of_mixed_dimension(golden_dir):
    stated, arrays = stored(golden_dir, "md_basic")
    config = TableConfig(
        stated["sizes"][stated["table"]],
        stated["base_dim"],
        "mixed",
        component_dims=(stated["emb_dim"],),
    )
    params = {"table": arrays["w/emb"], "projection": arrays["w/proj"].T}
    out, gradient = value_and_grad(config, params, arrays)
    np.testing.assert_allclose(out, arrays["out/y"], **NUMBERS)
    np.testing.assert_allclose(gradient["table"], arrays["grad/emb"], **NUMBERS)
    np.testing.assert_allclose(gradient["projection"].T, arrays["grad/proj"], **NUMBERS)


@pytest.mark.parametrize("name", ["hash", "explicit concat", "path of digits"])
def test_every_id_has_its_embedding(name):
    config = TABLES[name]
    params = draw_params(config)
    found = compiled_bag(config, params, np.arange(ROWS))
    expected = [embed(config, params, x) for x in range(ROWS)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=["frequency mult", "path"])
def table(request):
    config = dataclasses.replace(TABLES[request.param], pooling="sum")
    return config, draw_params(config)


def test_offsets_and_lengths_name_the_same_bags(table):
    config, params = table
    out = embedding_bag(config, params, IDS, OFFSETS)
    from_lengths = offsets_from_lengths(LENGTHS, len(IDS))
    np.testing.assert_array_equal(out, embedding_bag(config, params, IDS, from_lengths))
    np.testing.assert_array_equal(out[1], 0.0)
    np.testing.assert_array_equal(out[4], 0.0)
    run = jax.jit(lambda p, i, o: embedding_bag(config, p, i, o))
    inside = run(params, jnp.asarray(IDS), jnp.asarray(OFFSETS))
    np.testing.assert_allclose(inside, out, rtol=1e-5, atol=1e-5)


def test_an_empty_bag_has_no_gradient(table):
    config, params = table

    def loss(params):
        out = bag(config, params, IDS, OFFSETS)
        return jnp.sum(out[1] ** 2 + jnp.exp(out[4]))

    gradients = jax.tree.leaves(jax.grad(loss)(params))
    assert all(not np.any(np.asarray(leaf)) for leaf in gradients)


def test_the_order_inside_a_bag_does_not_matter(table):
    config, params = table
    mixed = [22, 0, 7, 9, 9, 3]
    np.testing.assert_allclose(
        bag(config, params, mixed, OFFSETS),
        bag(config, params, IDS, OFFSETS),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("order", ["combine_then_pool", "pool_then_combine"])
def test_a_copy_of_an_id_counts_twice(table, order):
    config, params = table
    if config.method == "path" and order == "pool_then_combine":
        pytest.skip("there is no such path table")
    config = dataclasses.replace(config, pool_order=order)
    out = bag(config, params, [9, 9, 9, 9], [0, 1])
    power = 1
    if config.method in ("qr", "frequency") and order == "pool_then_combine":
        power = 2  # three times both factors
    np.testing.assert_allclose(out[1], 3.0**power * out[0], rtol=1e-5)
    mean = dataclasses.replace(config, pooling="mean")
    out = bag(mean, params, [9, 9, 9, 9], [0, 1])
    np.testing.assert_allclose(out[1], out[0], rtol=1e-5)


def test_two_batches_are_embedded_as_one(table):
    config, params = table
    first = bag(config, params, IDS, OFFSETS)
    second = bag(config, params, [5, 1, 12], [0, 1, 1])
    both = bag(
        config, params, [*IDS, 5, 1, 12], [*OFFSETS, *(6 + o for o in (0, 1, 1))]
    )
    np.testing.assert_allclose(
        both, np.concatenate([first, second]), rtol=1e-5, atol=1e-5
    )


def test_weights_multiply_the_vectors_and_have_a_gradient(table):
    config, params = table
    weights = jnp.asarray([2.0, 0.0, 1.0, -1.0, 0.5, 3.0])
    out = bag(config, params, IDS, OFFSETS, weights)
    single = np.asarray(bag(config, params, IDS))
    np.testing.assert_allclose(out[0], 2.0 * single[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out[2], 0.5 * single[4], rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda w: bag(config, params, IDS, OFFSETS, w).sum())(weights)
    np.testing.assert_allclose(gradient, single.sum(axis=1), rtol=1e-4, atol=1e-5)


def test_rows_out_of_range_are_zero_and_not_clamped():
    params = {"table": np.ones((3, 2), np.float32), "projection": np.ones((2, 4))}
    rows = gather_rows(params, {"table": jnp.asarray([2, 3, 2**31 - 1])})
    assert list(rows) == ["table"]
    np.testing.assert_array_equal(rows["table"], [[1, 1], [0, 0], [0, 0]])


@pytest.mark.parametrize("name", ["full", "qr add", "frequency mult", "path"])
def test_padding_inside_jit_reads_and_writes_no_row(name):
    config = dataclasses.replace(TABLES[name], pooling="mean")
    params = draw_params(config)

    @jax.jit
    def loss(params, ids, offsets):
        out = embedding_bag(config, params, ids, offsets)
        return jnp.sum(jnp.sin(out)), out

    run = jax.grad(loss, has_aux=True)
    padded, out = run(
        params, np.asarray([4, ROWS, -1, ROWS + 9, 11]), np.asarray([0, 3])
    )
    plain, expected = run(params, np.asarray([4, 11]), np.asarray([0, 1]))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(padded), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0, 23], [0, 1]), ValueError, r"in \[0, 23\), got 23 at place 1 \(bag 1\)"),
        (([0, -1],), ValueError, r"in \[0, 23\), got -1 at place 1 \(bag 1\)"),
        (([2**32 + 3],), ValueError, "got 4294967299 at place 0"),
        (([0, 1], [1, 1]), ValueError, "offsets of table must start at 0, got 1"),
        (([0, 1], [0, 3]), ValueError, "at most the number of ids 2, got 3"),
        (([0, 1], [0, 1, 0]), ValueError, "must not decrease, got 0 for bag 2"),
        (([0.5, 1], [0]), TypeError, "ids must be integers, got float64"),
        (([0, 1], [0.0]), TypeError, "offsets of table must be integers"),
    ],
)
def test_bad_bags_are_refused(arguments, error, message):
    params = draw_params(TABLES["qr mult"])
    with pytest.raises(error, match=message):
        embedding_bag(TABLES["qr mult"], params, *arguments)


def test_leaves_of_another_table_are_refused():
    config = TABLES["qr mult"]
    params = draw_params(config)
    short = {**params, "remainder": params["remainder"][:3]}
    with pytest.raises(ValueError, match=r"leaf 'remainder' .*\(4, 6\), got \(3, 6\)"):
        embedding_bag(config, short, [0])
    with pytest.raises(ValueError, match="leaf 'quotient' .* got no such leaf"):
        embedding_bag(config, {"table": np.ones((23, 6))}, [0])
