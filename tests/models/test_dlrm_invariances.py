"""What must not change a prediction, and what a prediction must not depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.categorical import split_tables
from models.click_batch import bucket
from models.dlrm import DLRMConfig, dlrm, make_batch
from models.dlrm_reference import reference_params
from models.embeddings import TableConfig

CONFIG = DLRMConfig((TableConfig(9, 3), TableConfig(5, 3)), (4, 3), (5, 1))
MODEL = dlrm(CONFIG)
PARAMS = jax.tree.map(jnp.asarray, reference_params(CONFIG))
apply = jax.jit(MODEL.apply)
# Four samples: an empty bag, a duplicate, a bag of one, several ids.
LENGTHS = ([2, 0, 3, 1], [1, 2, 0, 4])
IDS = ([8, 0, 4, 4, 2, 7], [3, 1, 1, 0, 2, 4, 3])
DENSE = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
LABELS = np.asarray([0, 1, 1, 0])


def bags_of(table):
    return np.split(np.asarray(IDS[table]), np.cumsum(LENGTHS[table])[:-1])


def batch_of(samples, bags, config=CONFIG, **more):
    """A batch of these samples with bags given by table and sample."""
    return make_batch(
        config,
        DENSE[samples],
        [np.concatenate([t[s] for s in samples]).astype(int) for t in bags],
        lengths=[[len(t[s]) for s in samples] for t in bags],
        labels=LABELS[samples],
        **more,
    )


BAGS = [bags_of(0), bags_of(1)]
BATCH = batch_of([0, 1, 2, 3], BAGS)


def pooled(config, params, batch):
    tables = config.categorical
    rows = tables.lookup(params["tables"], tables.row_ids(batch))
    return [np.asarray(v) for v in tables.pool(rows, params["tables"], batch)]


def test_bags_are_sums_of_rows():
    for table, vectors in enumerate(pooled(CONFIG, PARAMS, BATCH)):
        rows = np.asarray(PARAMS["tables"][str(table)]["table"])
        for sample, bag in enumerate(BAGS[table]):
            np.testing.assert_allclose(vectors[sample], rows[bag].sum(0), rtol=1e-6)
    empty = pooled(CONFIG, PARAMS, BATCH)[0][1]
    np.testing.assert_array_equal(empty, 0.0)


def test_mean_pooling_divides_by_the_ids_of_the_bag():
    tables = [dataclasses.replace(t, pooling="mean") for t in CONFIG.tables]
    config = dataclasses.replace(CONFIG, tables=tables)
    sums, means = pooled(CONFIG, PARAMS, BATCH), pooled(config, PARAMS, BATCH)
    for table in range(2):
        counts = np.maximum(LENGTHS[table], 1)[:, None]
        np.testing.assert_allclose(means[table], sums[table] / counts, rtol=1e-6)


def test_offsets_and_lengths_are_the_same_batch():
    starts = [np.cumsum([0, *lengths[:-1]]) for lengths in LENGTHS]
    other = make_batch(CONFIG, DENSE, IDS, offsets=starts, labels=LABELS)
    assert set(other) == set(BATCH)
    for name, array in other.items():
        np.testing.assert_array_equal(array, BATCH[name], err_msg=name)


def test_bags_of_one_id_need_no_lengths():
    ids = [[8, 0, 4, 2], [3, 1, 0, 2]]
    plain = make_batch(CONFIG, DENSE, ids)
    bags = make_batch(CONFIG, DENSE, ids, lengths=np.ones((2, 4), int))
    assert "segments" not in plain and "segments" in bags
    assert plain["ids"].shape == (2, 4)
    np.testing.assert_allclose(apply(PARAMS, plain), apply(PARAMS, bags), rtol=1e-6)


def test_the_order_in_a_bag_does_not_matter_and_duplicates_count_twice():
    turned = [[bag[::-1] for bag in bags] for bags in BAGS]
    same = apply(PARAMS, batch_of([0, 1, 2, 3], turned))
    np.testing.assert_allclose(same, apply(PARAMS, BATCH), rtol=1e-5)
    twice = [[np.repeat(bag, 2) for bag in bags] for bags in BAGS]
    doubled = pooled(CONFIG, PARAMS, batch_of([0, 1, 2, 3], twice))
    for once, two in zip(pooled(CONFIG, PARAMS, BATCH), doubled, strict=True):
        np.testing.assert_allclose(two, 2 * once, rtol=1e-6)


def test_empty_bags_and_rows_nobody_looked_up_have_no_gradient():
    gradient = jax.jit(jax.grad(lambda p: MODEL.loss(p, BATCH)[0]))(PARAMS)
    for table, ids in enumerate(IDS):
        moved = np.any(np.asarray(gradient["tables"][str(table)]["table"]) != 0, 1)
        assert set(np.flatnonzero(moved)) <= set(ids) and moved.any()
    empty = batch_of([0, 1, 2, 3], [[[]] * 4] * 2)
    assert empty["ids"].shape == (2, 1)
    gradient = jax.jit(jax.grad(lambda p: MODEL.loss(p, empty)[0]))(PARAMS)
    for leaf in jax.tree.leaves(gradient["tables"]):
        np.testing.assert_array_equal(leaf, 0.0)


def test_samples_do_not_see_each_other():
    together = np.asarray(apply(PARAMS, BATCH))
    order = [2, 0, 3, 1]
    turned = apply(PARAMS, batch_of(order, BAGS))
    np.testing.assert_allclose(turned, together[order], rtol=1e-6)
    first, second = (apply(PARAMS, batch_of(half, BAGS)) for half in ([0, 1], [2, 3]))
    np.testing.assert_allclose(np.append(first, second), together, rtol=1e-6)


@pytest.mark.parametrize(
    ("interaction", "itself"), [("dot", False), ("dot", True), ("cat", False)]
)
def test_tables_in_another_order_with_columns_of_the_top_in_that_order(
    interaction, itself
):
    rows, order = (9, 5, 7), [2, 0, 1]
    tables = tuple(TableConfig(n, 3) for n in rows)
    config = DLRMConfig(tables, (4, 3), (5, 1), interaction, itself)
    turned = dataclasses.replace(config, tables=[tables[t] for t in order])
    params = reference_params(config)
    moved = {str(new): params["tables"][str(old)] for new, old in enumerate(order)}
    vector = [0, *(1 + t for t in order)]  # where each vector was before
    if interaction == "cat":
        columns = [3 * v + d for v in vector for d in range(3)]
    else:
        pairs = [(i, j) for i in range(4) for j in range(i + itself)]
        number = {frozenset(pair): place for place, pair in enumerate(pairs)}
        of_pairs = [number[frozenset((vector[i], vector[j]))] for i, j in pairs]
        columns = [0, 1, 2, *(3 + place for place in of_pairs)]
    first = params["top"]["layer_0"]
    top = params["top"] | {"layer_0": first | {"kernel": first["kernel"][columns]}}
    ids = [np.asarray([0, 4, 2]), np.asarray([3, 0, 1]), np.asarray([6, 5, 5])]
    here = make_batch(config, DENSE[:3], ids)
    there = make_batch(turned, DENSE[:3], [ids[t] for t in order])
    np.testing.assert_allclose(
        jax.jit(dlrm(turned).apply)(params | {"tables": moved, "top": top}, there),
        jax.jit(dlrm(config).apply)(params, here),
        rtol=1e-5,
        atol=1e-6,
    )


def test_padded_samples_count_for_nothing():
    gradient = jax.jit(jax.value_and_grad(MODEL.loss, has_aux=True))
    (loss, aux), expected = gradient(PARAMS, batch_of([0, 1, 2], BAGS))
    padded = batch_of([0, 1, 2, 3], BAGS, weights=[1, 1, 1, 0])
    (same, of_padded), found = gradient(PARAMS, padded)
    np.testing.assert_allclose(same, loss, rtol=1e-6)
    assert of_padded["weight"] == aux["weight"] == 3
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_micro_batches_add_up_to_the_batch():
    gradient = jax.jit(jax.value_and_grad(MODEL.loss, has_aux=True))
    (_, aux), whole = gradient(PARAMS, BATCH)
    parts = [gradient(PARAMS, batch_of(half, BAGS)) for half in ([0, 1, 2], [3])]
    weights = [float(part_aux["weight"]) for (_, part_aux), _ in parts]
    mean = jax.tree.map(
        lambda *leaves: np.average(leaves, axis=0, weights=weights),
        *(part for _, part in parts),
    )
    assert sum(weights) == aux["weight"]
    for ours, theirs in zip(*map(jax.tree.leaves, (mean, whole)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_ids_beyond_every_range_are_padding():
    batch = make_batch(CONFIG, DENSE, [[8, 0, 4, 2], [3, 1, 0, 2]])
    far = dict(batch, ids=batch["ids"].copy())
    far["ids"][0, 1] = far["ids"][1, 3] = np.iinfo(np.int32).max
    bags = batch_of([0, 1, 2, 3], [[[8], [], [4], [2]], [[3], [1], [0], []]])
    np.testing.assert_allclose(apply(PARAMS, far), apply(PARAMS, bags), rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda p: MODEL.loss(p, dict(far, labels=LABELS))[0]))
    moved = gradient(PARAMS)["tables"]["0"]["table"]
    assert set(np.flatnonzero(np.any(np.asarray(moved) != 0, 1))) <= {8, 4, 2}


@pytest.mark.parametrize("dtype", [np.uint64, np.int64, np.uint32])
def test_raw_ids_of_any_size_are_hashed_exactly(dtype):
    # Above 2**24 float32 no longer tells neighbours apart, above 2**31 int32 wraps.
    raw = np.asarray([2**32 - 1, 2**31, 2**24 + 1, 2**24], np.uint64)
    if dtype == np.uint64:
        raw = raw + np.uint64(2**63)
    expected = [[int(x) % table.rows for x in raw] for table in CONFIG.tables]
    hashed = dataclasses.replace(CONFIG.batch_rules, id_policy="hash")
    batch = make_batch(hashed, DENSE, [raw.astype(dtype)] * 2)
    np.testing.assert_array_equal(batch["ids"], expected)


def test_hundred_batches_of_random_lengths_compile_a_few_times():
    generator = np.random.default_rng(0)
    traced, shapes = [], set()

    @jax.jit
    def step(params, batch):
        traced.append(batch["ids"].shape)
        return MODEL.loss(params, batch)[0]

    for _ in range(100):
        lengths = generator.integers(0, generator.integers(1, 17), (2, 4))
        ids = [
            generator.integers(0, table.rows, n.sum())
            for table, n in zip(CONFIG.tables, lengths, strict=True)
        ]
        batch = make_batch(CONFIG, DENSE, ids, lengths=lengths, labels=LABELS)
        shapes.add(bucket(int(lengths.sum(1).max())))
        assert np.isfinite(step(PARAMS, batch))
    assert len(traced) == len(shapes) <= 7  # 1, 2, 4, … 64
    most = dataclasses.replace(CONFIG.batch_rules, capacities=(64, 60))
    batch = make_batch(most, DENSE, IDS, lengths=LENGTHS, labels=LABELS)
    assert [ids.shape for ids in batch["ids"]] == [(64,), (60,)]
    found = jax.jit(MODEL.loss)(PARAMS, batch)[0]
    np.testing.assert_allclose(found, step(PARAMS, BATCH), rtol=1e-6)


def test_no_gradient_of_rows_is_as_large_as_a_table():
    config = DLRMConfig((TableConfig(10_000, 3),), (4, 3), (5, 1))
    model = dlrm(config)
    batch = make_batch(config, DENSE, [[0, 9_999, 5, 5]], labels=LABELS)
    tables, dense = split_tables(jax.eval_shape(model.init, jax.random.key(0)))
    rows = jax.eval_shape(config.categorical.lookup, tables, model.row_ids(batch))
    assert "table" not in dense["tables"]["0"]
    gradient = jax.grad(lambda r, p: model.loss_from_rows(r, p, batch)[0], (0, 1))
    found = jax.eval_shape(gradient, rows, dense)
    assert found[0]["0"]["table"].shape == (4, 3)
    assert max(leaf.size for leaf in jax.tree.leaves(found)) < 100
