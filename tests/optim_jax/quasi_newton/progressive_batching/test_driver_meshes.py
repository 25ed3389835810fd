import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.optim_jax.quasi_newton.progressive_batching.logistic import (
    draw_rows,
    losses,
    make_solver,
)

# The number of samples is a multiple of no number of devices.
SAMPLES, FEATURES = 203, 6
OPTIONS = {"batch_size": 64, "memory_size": 4, "max_iterations": 8, "chunk_size": 32}


def make_mesh(kind, **axes):
    devices = jax.devices()[:4]
    return jax.make_mesh(
        tuple(axes.values()), tuple(axes), (kind,) * len(axes), devices=devices
    )


def solve(params, **options):
    data = draw_rows(samples=SAMPLES, features=FEATURES, dtype=np.float64)
    solver = make_solver(losses, data, **OPTIONS, **options)
    return solver.run(params, jax.random.key(0))


def assert_same(found, expected):
    np.testing.assert_allclose(found.params, expected.params, rtol=0, atol=1e-12)
    for name, column in expected.history._asdict().items():
        np.testing.assert_allclose(
            getattr(found.history, name), column, rtol=1e-10, atol=1e-12, err_msg=name
        )


@functools.cache
def solve_on_one_device():
    return solve(jnp.zeros(FEATURES))


def test_four_devices_find_what_one_finds(x64):
    expected = solve_on_one_device()
    assert len(set(expected.history.b.tolist())) > 2  # grows, and to all data
    found = solve(jnp.zeros(FEATURES), mesh=make_mesh(AxisType.Auto, data=4))
    assert_same(found, expected)
    # The shardings are those of the first state throughout.
    assert found.history.compilations[-1] == 1


def test_parameters_may_be_sharded_over_another_axis(x64):
    # The types of arrays name the axes of such a mesh, the default of `jax.make_mesh`.
    mesh = make_mesh(AxisType.Explicit, rows=2, model=2)
    sharding = NamedSharding(mesh, PartitionSpec("model"))
    w = jax.device_put(jnp.zeros(FEATURES), sharding)
    found = solve(w, mesh=mesh, data_axis="rows")
    assert_same(found, solve_on_one_device())
    assert found.params.sharding.spec == PartitionSpec("model")
    assert found.state.memory.s.sharding.spec == PartitionSpec(None, "model")
    assert found.history.compilations[-1] == 1


def test_an_axis_that_the_mesh_lacks_is_refused():
    with pytest.raises(ValueError, match=r"data_axis.*\('rows',\), got 'data'"):
        make_solver(losses, draw_rows(), mesh=make_mesh(AxisType.Auto, rows=4))
