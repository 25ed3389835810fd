"""Tables whose rows or columns lie on several devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from optim_jax.row_sparse import sparse_row_wise_adagrad, sparse_update
from tests.optim_jax.row_sparse.reference import RULES, random_case


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize("kind", RULES)
def test_sharded_columns_give_what_one_device_gives(kind, mesh):
    rule = RULES[kind](0.3)
    accumulator = {"sgd": P(), "adagrad": P(None, "columns"), "row_wise": P()}[kind]
    state_spec = (accumulator, P())

    def update(table, state, ids, values):
        state = rule.init(table)._replace(accumulator=state[0], count=state[1])
        new = sparse_update(rule, table, state, ids, values, axis_name="columns")
        return new[0], tuple(new[1])

    sharded = jax.jit(
        jax.shard_map(
            update,
            mesh=mesh,
            in_specs=(P(None, "columns"), state_spec, P(), P(None, "columns")),
            out_specs=(P(None, "columns"), state_spec),
        )
    )
    table, ids, values = random_case(11, rows=40, width=6, length=70)
    one = sparse_update(rule, table, rule.init(table), ids, values)
    many = sharded(table, tuple(rule.init(table)), ids, values)
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_sharded_rows_give_what_one_device_gives(mesh):
    rule = sparse_row_wise_adagrad(0.3)

    def update(table, accumulator, ids, values):
        local = ids - jax.lax.axis_index("rows") * table.shape[0]  # foreign: outside
        state = rule.init(table)._replace(accumulator=accumulator)
        table, state = sparse_update(rule, table, state, local, values)
        return table, state.accumulator

    sharded = jax.jit(
        jax.shard_map(
            update,
            mesh=mesh,
            in_specs=(P("rows"), P("rows"), P(), P()),
            out_specs=(P("rows"), P("rows")),
        )
    )
    table, ids, values = random_case(12, rows=40, width=6, length=70)
    one, state = sparse_update(rule, table, rule.init(table), ids, values)
    many, accumulator = sharded(table, rule.init(table).accumulator, ids, values)
    np.testing.assert_allclose(many, one, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(accumulator, state.accumulator, rtol=1e-6)
