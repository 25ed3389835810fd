import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.categorical import (
    POOLING_WEIGHT,
    CategoricalTables,
    join_tables,
    split_tables,
)
from models.embeddings import component_shapes, output_width
from tests.models.embeddings.tables import ROWS, TABLES, draw_params, embed

CONFIGS = tuple(TABLES.values())
PARAMS = {str(i): draw_params(config, seed=i) for i, config in enumerate(CONFIGS)}
FULL = CategoricalTables((TABLES["full"],), learned_weights=True)
WEIGHTS = np.arange(1.0, ROWS + 1, dtype=np.float32)[:, None]


def one_each(ids, count):
    return {"ids": np.asarray([ids] * count), "dense": np.zeros((len(ids), 1))}


def test_split_and_join_are_inverse_and_move_no_array():
    params = {"tables": PARAMS, "bottom": {"kernel": np.ones(3)}}
    rows, rest = split_tables(params)
    assert rest["bottom"] is params["bottom"]
    for index, config in enumerate(CONFIGS):
        assert set(rows[str(index)]) == set(component_shapes(config))
        assert not set(rows[str(index)]) & set(rest["tables"][str(index)])
    again = join_tables(rows, rest)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for ours, theirs in zip(*map(jax.tree.leaves, (again, params)), strict=True):
        assert ours is theirs


def test_every_method_gives_its_own_embeddings():
    tables = CategoricalTables(CONFIGS)
    ids = np.asarray([0, 22, 9, 9])
    batch = one_each(ids, len(CONFIGS))
    rows = tables.lookup(PARAMS, tables.row_ids(batch))
    # The leaves that are looked up are not needed any more.
    _, rest = split_tables({"tables": PARAMS})
    for params in (PARAMS, rest["tables"]):
        pooled = tables.pool(rows, params, batch)
        for index, config in enumerate(CONFIGS):
            expected = np.stack([embed(config, PARAMS[str(index)], x) for x in ids])
            assert pooled[index].shape == (4, output_width(config))
            np.testing.assert_allclose(pooled[index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", [ROWS, ROWS + 1, np.iinfo(np.int32).max])
def test_padding_is_out_of_range_everywhere_and_pools_to_zero(padding):
    tables = CategoricalTables(CONFIGS)
    batch = one_each([3, padding], len(CONFIGS))
    row_ids = tables.row_ids(batch)
    for index, config in enumerate(CONFIGS):
        for leaf, (rows, _) in component_shapes(config).items():
            assert row_ids[str(index)][leaf][1] == rows
    pooled = tables.pool(tables.lookup(PARAMS, row_ids), PARAMS, batch)
    for vectors in pooled:
        assert np.any(vectors[0] != 0)
        np.testing.assert_array_equal(vectors[1], 0.0)


def test_wide_ids_of_the_host_do_not_wrap_into_range():
    tables = CategoricalTables((TABLES["full"],))
    ids = tables.row_ids({"ids": np.asarray([[2**32 + 1, 1]])})["0"]["table"]
    assert isinstance(ids, jax.Array) and ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, [ROWS, 1])


def test_ids_inside_jit_are_those_outside():
    tables = CategoricalTables(CONFIGS)
    batch = {"ids": jnp.asarray([[3, 22, ROWS]] * len(CONFIGS))}
    outside = tables.row_ids({"ids": np.asarray(batch["ids"])})
    inside = jax.jit(tables.row_ids)(batch)
    assert jax.tree.all(jax.tree.map(np.array_equal, inside, outside))
    several = {"ids": tuple(batch["ids"])}
    again = tables.row_ids(several)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, outside))


def test_learned_weights_multiply_rows_and_are_looked_up_like_them():
    params = {"0": {**PARAMS["0"], POOLING_WEIGHT: WEIGHTS}}
    batch = {
        "ids": np.asarray([[3, 5, 5, ROWS]]),
        "segments": np.asarray([[0, 1, 1, 2]]),
        "dense": np.zeros((2, 1)),
    }
    row_ids = FULL.row_ids(batch)
    np.testing.assert_array_equal(row_ids["0"][POOLING_WEIGHT], [3, 5, 5, ROWS])
    rows = FULL.lookup(params, row_ids)
    table = np.asarray(PARAMS["0"]["table"])
    (pooled,) = FULL.pool(rows, {}, batch)
    np.testing.assert_allclose(pooled, [4 * table[3], 12 * table[5]], rtol=1e-6)
    # Weights of single ids come on top of those of the rows.
    weighted = batch | {"id_weights": np.asarray([[0.5, 1, -1, 7]])}
    (pooled,) = FULL.pool(rows, {}, weighted)
    np.testing.assert_allclose(pooled, [2 * table[3], 0 * table[5]], atol=1e-5)


def test_initial_leaves():
    # No two tables begin alike, and weights begin as ones.
    twins = CategoricalTables((TABLES["full"], TABLES["full"]), learned_weights=True)
    leaves = twins.init(jax.random.key(0))
    assert not np.array_equal(leaves["0"]["table"], leaves["1"]["table"])
    np.testing.assert_array_equal(leaves["0"][POOLING_WEIGHT], np.ones((ROWS, 1)))
    shapes = jax.eval_shape(CategoricalTables(CONFIGS).init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, PARAMS) == jax.tree.map(lambda a: a.shape, shapes)


@pytest.mark.parametrize("learned", [False, True])
def test_counts_are_those_of_the_arrays(learned):
    tables = CategoricalTables((TABLES["full"],) * 2 if learned else CONFIGS, learned)
    shapes = jax.eval_shape(tables.init, jax.random.key(0))
    assert tables.num_params == sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_ids_of_another_number_of_tables_are_refused():
    with pytest.raises(ValueError, match="model has 1 tables, but the batch ids of 3"):
        FULL.row_ids(one_each([0], count=3))
