"""States with the padding of a mesh, and as checkpoints hold them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.config import MeshConfig
from experiments.sharding import make_mesh
from experiments.training.padding import find_padding


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig(data=4), jax.devices()[:4])


def _abstract(mesh, **shapes):
    specs = {"stack": P("data"), "param": P(), "count": P()}
    return {
        name: jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=NamedSharding(mesh, specs[name])
        )
        for name, shape in shapes.items()
    }


def test_a_round_trip_fills_the_empty_slots_as_they_were(mesh):
    state = _abstract(mesh, stack=(8, 3), param=(5,), count=())
    alone = _abstract(mesh, stack=(6, 3), param=(5,), count=())
    padding = find_padding(state, alone, mesh)

    def init():
        return {"stack": 7.0 * jnp.ones((8, 3)), "param": jnp.zeros(5), "count": 0.0}

    now = {
        "stack": jnp.concatenate([jnp.arange(18.0).reshape(6, 3), jnp.full((2, 3), 7)]),
        "param": jnp.ones(5),
        "count": jnp.float32(3),
    }
    now = jax.device_put(now, {name: leaf.sharding for name, leaf in state.items()})
    stored = padding.remove(now)
    assert jax.tree.map(jnp.shape, stored) == jax.tree.map(jnp.shape, alone)
    # Six slots do not lie evenly on four devices.
    assert stored["stack"].sharding.is_fully_replicated
    back = padding.add(stored, init)
    jax.tree.map(np.testing.assert_array_equal, back, now)
    assert back["stack"].sharding.is_equivalent_to(state["stack"].sharding, 2)


def test_what_a_checkpoint_holds_is_spread_where_that_goes_evenly(mesh):
    padding = find_padding(
        _abstract(mesh, stack=(8, 4)), _abstract(mesh, stack=(7, 4)), mesh
    )
    assert padding.stored["stack"].shape == (7, 4)
    assert padding.stored["stack"].sharding.spec == P(None, mesh.axis_names)


def test_without_padding_nothing_is_touched(mesh):
    state = _abstract(mesh, stack=(8, 3), count=())
    padding = find_padding(state, state, mesh)
    now = {"stack": jnp.ones((8, 3)), "count": jnp.float32(1)}
    assert padding.remove(now) is now
    assert padding.add(now, lambda: pytest.fail("not needed")) is now
