"""Several devices train as one, whatever lies where."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.sharding.table_placement import LAYOUTS, Plan, place_tables
from models.dlrm import DLRMConfig, dlrm
from models.embeddings import TableConfig
from tests.experiments.training.sparse_runs import (
    FULL,
    adagrad_step,
    assert_trees_close,
    bag_batches,
    train,
)

# Every kind of table, bags of several ids, capacities of their own.
MIXED = DLRMConfig(
    tables=(
        TableConfig(37, 8),
        TableConfig(50, 8, method="qr", op="mult"),
        TableConfig(24, 8, method="features"),
        TableConfig(30, 8, method="path", path_hidden=4),
        TableConfig(21, 8, method="mixed", component_dims=(3,)),
    ),
    bottom=(4, 8),
    top=(6, 1),
)
CAPACITIES = (30, 30, 30, 36, 30)


def _mesh(*shape):
    names = ("x", "y")[: len(shape)]
    return jax.make_mesh(shape, names, devices=jax.devices()[: int(np.prod(shape))])


@pytest.fixture(scope="module")
def on_one_device():
    params = jax.device_get(dlrm(MIXED).init(jax.random.key(1)))
    batches = list(bag_batches(MIXED, 10, capacities=CAPACITIES))
    trained = train(adagrad_step(MIXED), params, batches)
    return params, batches, jax.device_get(trained)


MIX = ("table", "row", "table", "column", "replicated")
SPREAD = [
    ((8,), MIX, ()),
    ((2, 2), MIX[::-1], pytest.mark.slow),
    ((2,), MIX, pytest.mark.slow),
    *(((8,), layout, pytest.mark.slow) for layout in LAYOUTS),
]


@pytest.mark.parametrize(
    ("shape", "plan"), [pytest.param(s, p, marks=marks) for s, p, marks in SPREAD]
)
def test_many_devices_train_as_one(on_one_device, shape, plan):
    params, batches, (expected, expected_states, losses) = on_one_device
    step = adagrad_step(MIXED, mesh=_mesh(*shape), plan=plan)
    found, states, found_losses = train(step, params, batches)
    np.testing.assert_allclose(found_losses, losses, rtol=1e-5, atol=1e-5)
    assert_trees_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_trees_close(states, expected_states, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_learned_pooling_weights_are_spread_too():
    config = dataclasses.replace(FULL, weighted_pooling="learned")
    params = jax.device_get(dlrm(config).init(jax.random.key(1)))
    batches = list(bag_batches(config, 7))
    plan = Plan(place_tables(["table", "row"], [1, 1], 4), 4)
    found = train(adagrad_step(config, mesh=_mesh(4), plan=plan), params, batches)
    assert_trees_close(found, train(adagrad_step(config), params, batches), 1e-5, 1e-5)


def test_one_device_of_a_mesh_is_no_mesh():
    assert adagrad_step(FULL, mesh=_mesh(1), plan="table").mesh is None


def test_parameters_may_lie_on_one_device_and_another_mesh_be_current():
    params = jax.device_get(dlrm(FULL).init(jax.random.key(0)))
    mesh = _mesh(4)
    step = adagrad_step(FULL, mesh=mesh, plan="row")
    placed = jax.device_put(params, jax.devices()[1])
    (batch,) = bag_batches(FULL, 6, count=1)
    with jax.set_mesh(mesh):  # of explicit axes
        state, _ = step.step(step.init(placed), batch)
        found = step.params(state)
    expected, _, _ = train(adagrad_step(FULL), params, [batch])
    assert_trees_close(found, expected)
