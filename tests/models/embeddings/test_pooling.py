import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.embeddings import (
    TableConfig,
    component_ids,
    dense_leaves,
    gather_rows,
    output_width,
    pool_rows,
)
from tests.models.embeddings.tables import (
    ROWS,
    TABLES,
    combine,
    draw_params,
    embed,
    parts_of,
)

every_table = pytest.mark.parametrize("name", TABLES)
COMBINED = [name for name in TABLES if " mult" in name or " add" in name]
# Bags of hot and cold ids with duplicates, an empty bag, and padding.
IDS = np.asarray([0, 22, 9, 9, 7, 3, 6, 12, 21, ROWS, ROWS], np.int32)
SEGMENTS = np.asarray([0, 0, 1, 1, 1, 3, 3, 4, 4, 5, 5], np.int32)
BAGS = 5
WEIGHTS = np.asarray([1.0, -2.0, 0.5, 3.0, 0.0, 1.5, 2.0, -1.0, 4.0, 9.0, 9.0])


def pool(config, params, ids=IDS, segments=SEGMENTS, bags=BAGS, weights=None):
    ids = np.asarray(ids)
    return compiled_pool(config, params, ids, segments, bags, weights)


@functools.partial(jax.jit, static_argnums=(0, 4))
def compiled_pool(config, params, ids, segments, bags, weights):
    rows = gather_rows(params, component_ids(config, jnp.asarray(ids)))
    return pool_rows(config, rows, dense_leaves(params), ids, segments, bags, weights)


def expected(config, params, weights=None):
    """Sum or mean over the ids of each bag, from the definitions."""
    weights = np.ones(len(IDS)) if weights is None else weights
    out = np.zeros((BAGS, output_width(config)))
    for bag in range(BAGS):
        members = np.flatnonzero(SEGMENTS == bag)
        for place in members:
            out[bag] += weights[place] * embed(config, params, int(IDS[place]))
        if config.pooling == "mean":
            out[bag] /= max(len(members), 1)
    return out


@every_table
def test_bags_are_written_out(name):
    config = TABLES[name]
    mean = dataclasses.replace(config, pooling="mean")
    params = draw_params(config)

    @jax.jit
    def run(params):
        weighted = pool(mean, params, weights=WEIGHTS)
        return pool(config, params), pool(mean, params), weighted

    added, averaged, weighted = run(params)
    assert added.shape == (BAGS, output_width(config))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(added, expected(config, params))
    close(averaged, expected(mean, params))
    close(weighted, expected(mean, params, WEIGHTS))
    np.testing.assert_array_equal(weighted[2], 0.0)


@pytest.mark.parametrize("name", COMBINED)
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_pooling_before_combining_is_written_out(name, pooling):
    config = dataclasses.replace(
        TABLES[name], pooling=pooling, pool_order="pool_then_combine"
    )
    params = draw_params(config)
    out = np.zeros((BAGS, output_width(config)))
    for bag in range(BAGS):
        ids = [int(x) for x in IDS[bag == SEGMENTS]]
        hot = [x for x in ids if x < config.hot_rows]
        cold = [x for x in ids if x >= config.hot_rows]
        if cold:
            parts = zip(*(parts_of(config, params, x) for x in cold), strict=True)
            reduce = np.mean if pooling == "mean" else np.sum
            out[bag] = combine(config.op, [reduce(part, axis=0) for part in parts])
        share = len(cold) / len(ids) if ids and pooling == "mean" else 1.0
        out[bag] *= share
        for x in hot:
            scale = len(ids) if pooling == "mean" else 1
            out[bag] += params["hot"][x] / scale
    np.testing.assert_allclose(pool(config, params), out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["qr concat", "features", *COMBINED])
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_the_orders_differ_for_products_of_bags_only(name, pooling):
    first = dataclasses.replace(TABLES[name], pooling=pooling)
    second = dataclasses.replace(first, pool_order="pool_then_combine")
    one = np.arange(ROWS)

    @jax.jit
    def run(params):
        configs = (first, second)
        bags = [pool(config, params) for config in configs]
        return bags, [pool(config, params, one, one, ROWS) for config in configs]

    bags, single = run(draw_params(first))
    apart = np.abs(bags[0] - bags[1]).max(axis=1)
    if name.endswith(" mult"):
        assert apart.max() > 0.1
    else:
        assert apart.max() < 1e-5
    np.testing.assert_allclose(*single, rtol=1e-5)


@every_table
def test_one_id_per_bag_needs_no_sum(name):
    config = dataclasses.replace(TABLES[name], pooling="mean")
    ids, bags = np.asarray([3, 22, ROWS, 9, 0, -1], np.int32), np.arange(6)

    @jax.jit
    def run(params):
        return pool(config, params, ids, None, 6), pool(config, params, ids, bags, 6)

    alone, as_bags = run(draw_params(config))
    np.testing.assert_allclose(alone, as_bags, rtol=1e-6)
    np.testing.assert_array_equal(alone[np.asarray([2, 5])], 0.0)


@pytest.mark.parametrize("order", ["combine_then_pool", "pool_then_combine"])
def test_no_sum_is_compiled_for_one_id_per_bag(order):
    config = dataclasses.replace(
        TABLES["frequency mult"], pooling="mean", pool_order=order
    )
    params = draw_params(config)

    def program(segments, bags):
        return str(
            jax.make_jaxpr(lambda p: pool(config, p, IDS, segments, bags))(params)
        )

    assert "scatter" not in program(None, len(IDS))
    assert "scatter" in program(SEGMENTS, BAGS)


@every_table
def test_padding_adds_nothing_and_gets_no_gradient(name):
    """Whatever its rows hold, also where it stands inside a bag."""
    config = dataclasses.replace(TABLES[name], pooling="mean")
    params = draw_params(config)
    ids, padding = np.asarray([4, ROWS, 17, -1, 10**6]), np.asarray([1, 3, 4])
    rows = {
        leaf: np.pad(params[leaf], ((0, 1), (0, 0)), constant_values=7.0)[found]
        for leaf, found in component_ids(config, ids).items()
    }

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(rows):
        pooled = functools.partial(pool_rows, config, rows, dense_leaves(params), ids)
        bags, single = pooled(np.asarray([0, 0, 0, 1, 1]), 2), pooled(None, 5)
        return jnp.sum(jnp.cos(bags)) + jnp.sum(jnp.cos(single)), (bags, single)

    gradient, (bags, single) = run(rows)
    both = (embed(config, params, 4) + embed(config, params, 17)) / 2
    np.testing.assert_allclose(bags, [both, 0 * both], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(single[padding], 0.0)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf[padding], 0.0)
        assert np.any(np.asarray(leaf) != 0)


@pytest.mark.parametrize("name", ["qr add", "frequency mult", "path"])
def test_ids_of_the_padding_segment_do_not_count(name):
    config = dataclasses.replace(TABLES[name], pooling="mean")
    params = draw_params(config)
    ids, segments = np.asarray([4, 17, 5, 9]), np.asarray([0, 1, 2, 2])
    np.testing.assert_allclose(
        pool(config, params, ids, segments, 2), pool(config, params, [4, 17], None, 2)
    )


def test_wide_host_ids_do_not_wrap_into_range():
    config = TABLES["path"]
    params = draw_params(config)
    rows = {"part_0": params["part_0"][[0, 0]]}
    ids = np.asarray([3, 2**32 + 3])
    out = pool_rows(config, rows, dense_leaves(params), ids, None, 2)
    assert np.any(np.asarray(out[0]) != 0)
    np.testing.assert_array_equal(out[1], 0.0)


@pytest.mark.parametrize("order", ["combine_then_pool", "pool_then_combine"])
def test_a_zero_in_a_product_passes_the_gradient_of_the_others(order):
    config = TableConfig(
        24, 3, "mixed_radix", moduli=(2, 3, 4), pool_order=order, threshold=0
    )
    rows = {
        "part_0": jnp.asarray([[0.0, 2.0, 0.0]]),
        "part_1": jnp.asarray([[3.0, 0.0, 0.0]]),
        "part_2": jnp.asarray([[5.0, 7.0, 11.0]]),
    }
    gradient = jax.grad(lambda r: pool_rows(config, r, {}, [1], [0], 1).sum())(rows)
    np.testing.assert_array_equal(gradient["part_0"], [[15.0, 0.0, 0.0]])
    np.testing.assert_array_equal(gradient["part_1"], [[0.0, 14.0, 0.0]])
    np.testing.assert_array_equal(gradient["part_2"], [[0.0, 0.0, 0.0]])


def test_many_functions_are_gathered_and_few_are_all_applied():
    few = TableConfig(64, 9, "path", collisions=8, path_hidden=9)
    params = draw_params(few)
    # The same functions, told apart by more classes than the vectors have entries.
    many = TableConfig(64, 9, "path", collisions=32, path_hidden=9)
    repeated = {
        "part_0": params["part_0"][:2],
        "functions": jax.tree.map(
            lambda x: np.concatenate([x, x, x, x]), params["functions"]
        ),
    }
    ids = np.asarray([0, 5, 13, 31, 32, 63])
    matching = ids % 8 + 8 * (ids // 32)
    np.testing.assert_allclose(
        pool(many, repeated, ids, None, 6),
        pool(few, params, matching, None, 6),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "name",
    ["features", "path of digits", "mixed", "mixed_radix mult", "frequency mult"],
)
def test_gradients_of_all_leaves(name, x64):
    """Against central differences along a random direction."""
    config = TABLES[name]
    params = jax.tree.map(np.float64, draw_params(config))
    generator = np.random.default_rng(1)
    along = jax.tree.map(lambda x: generator.standard_normal(x.shape), params)

    def loss(params):
        return jnp.sum(jnp.sin(pool(config, params, weights=WEIGHTS)))

    def moved(step):
        return loss(jax.tree.map(lambda x, d: x + step * d, params, along))

    gradient = jax.jit(jax.grad(loss))(params)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(along), strict=True)
    slope = sum(float(np.sum(np.asarray(g) * np.asarray(d))) for g, d in pairs)
    change = float(moved(1e-6) - moved(-1e-6))
    assert slope == pytest.approx(change / 2e-6, rel=1e-6)


def test_half_precision_rows_are_added_in_float32():
    config = TableConfig(3, 1)
    rows = {"table": jnp.full((1000, 1), 1.0, jnp.bfloat16)}
    ids, segments = np.zeros(1000, int), np.zeros(1000, int)
    out = pool_rows(config, rows, {}, ids, segments, 1)
    assert out.dtype == jnp.bfloat16 and float(out[0, 0]) == 1000.0


def test_bags_outside_jit_equal_those_inside():
    config = TABLES["frequency mult"]
    params = draw_params(config)
    rows = gather_rows(params, component_ids(config, jnp.asarray(IDS)))
    outside = pool_rows(config, rows, {}, IDS, SEGMENTS, BAGS)
    np.testing.assert_allclose(outside, pool(config, params), rtol=1e-6)


ROWS_OF_TWO = {"quotient": jnp.ones((2, 6)), "remainder": jnp.ones((2, 6))}


@pytest.mark.parametrize(
    ("name", "rows", "arguments", "message"),
    [
        (
            "qr mult",
            {"table": jnp.ones((2, 6))},
            ([0, 1], None, 2),
            r"'qr' must have the shapes \{'quotient': \(2, 6\).* got \{'table'",
        ),
        ("qr mult", ROWS_OF_TWO, ([0], None, 1), r"quotient': \(1, 6\).* got"),
        ("qr mult", ROWS_OF_TWO, ([0, 1], None, 3), "there are 2 ids for num_bags=3"),
        ("qr mult", ROWS_OF_TWO, ([[0, 1]], None, 1), r"ids must be a vector, .*1, 2"),
        (
            "qr mult",
            ROWS_OF_TWO,
            ([0, 1], np.zeros(3, int), 2),
            r"segments must have the shape \(2,\) of ids, got \(3,\)",
        ),
        (
            "qr mult",
            ROWS_OF_TWO,
            ([0, 1], None, 2, np.ones(3)),
            r"per_sample_weights must have the shape \(2,\) of ids, got \(3,\)",
        ),
        (
            "mixed",
            {"table": jnp.ones((2, 4))},
            ([0, 1], None, 2),
            "method='mixed' needs the dense leaves projection, got none",
        ),
        ("path", {"part_0": jnp.ones((2, 6))}, ([0, 1], None, 2), "leaves functions"),
    ],
)
def test_what_does_not_fit_is_refused(name, rows, arguments, message):
    with pytest.raises(ValueError, match=message):
        pool_rows(TABLES[name], rows, {}, *arguments)


def test_weights_of_products_of_sums_are_refused():
    config = dataclasses.replace(TABLES["qr mult"], pool_order="pool_then_combine")
    with pytest.raises(
        ValueError, match="per_sample_weights with op='mult' need pool_"
    ):
        pool_rows(config, ROWS_OF_TWO, {}, [0, 1], None, 2, np.ones(2))


@pytest.mark.parametrize(
    ("ids", "segments"), [([0.0, 1.0], [0, 1]), ([0, 1], [0.0, 1.0])]
)
def test_only_integers(ids, segments):
    with pytest.raises(TypeError, match="must be integers, got float64"):
        pool_rows(TABLES["qr mult"], ROWS_OF_TWO, {}, ids, segments, 2)
