import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from optim_jax.quasi_newton.progressive_batching import sources


def make_mesh():
    return jax.make_mesh(
        (4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4]
    )


def shares(placed, indices, mesh):
    def share(local, wanted):
        return sources.take_share(local, wanted, "data", 4)

    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(
        share, mesh=mesh, in_specs=(rows, everywhere), out_specs=rows
    )
    return jax.jit(mapped)(placed, indices)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "at least one array, got an empty tree"),
        ({"x": np.zeros((3, 2)), "n": np.float32(1)}, "leaf 'n' is a scalar"),
        (
            {"x": np.zeros((3, 2)), "y": np.zeros(4)},
            "leading axes of data must agree, got 'x': 3, 'y': 4",
        ),
    ],
)
def test_data_without_a_common_axis_of_samples_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        sources.population_of(data)


def test_the_population_is_the_leading_axis():
    assert sources.population_of((np.zeros((7, 2)), np.zeros(7))) == 7
    assert sources.population_of(lambda key, n: None) is None


def test_rows_are_taken_by_index():
    data = {"x": np.arange(12.0).reshape(6, 2), "ids": np.arange(6)}
    placed = sources.place(data, None, "data")
    batch = sources.take(placed, jnp.array([4, 1, 4]))
    np.testing.assert_array_equal(batch["x"], data["x"][[4, 1, 4]])
    np.testing.assert_array_equal(batch["ids"], [4, 1, 4])


@pytest.mark.parametrize("rows", [8, 10, 3])
def test_each_device_gets_its_share_of_the_rows(rows):
    mesh = make_mesh()
    rng = np.random.default_rng(0)
    data = {
        "x": rng.normal(size=(rows, 2)).astype(np.float32),
        "ids": np.arange(rows, dtype=np.int32),
        "flags": np.arange(rows) % 3 == 0,
    }
    placed = sources.place(data, mesh, "data")
    assert placed["x"].shape[0] % 4 == 0
    np.testing.assert_array_equal(placed["x"][:rows], data["x"])
    indices = rng.integers(0, rows, size=8).astype(np.int32)

    found = shares(placed, indices, mesh)
    for name, leaf in data.items():
        np.testing.assert_array_equal(found[name], leaf[indices])
        assert found[name].dtype == leaf.dtype


def test_a_row_that_is_not_finite_stays_in_its_place():
    mesh = make_mesh()
    x = np.arange(8.0, dtype=np.float32)
    x[5] = np.nan
    indices = np.array([0, 1, 5, 7], np.int32)
    found = shares(sources.place(x, mesh, "data"), indices, mesh)
    np.testing.assert_array_equal(found, x[indices])


def test_a_sample_of_a_stream_depends_on_its_index_alone():
    def sampler(key, n):
        x_key, y_key = jax.random.split(key)
        return jax.random.normal(x_key, (n, 3)), jax.random.randint(y_key, (n,), 0, 9)

    @jax.jit
    def draw(stream, indices):
        return sources.draw(stream, sampler, indices)

    stream = sources.Stream(jax.random.key_data(jax.random.key(1)))
    one = draw(stream, jnp.array([5, 2, 9], jnp.int32))
    other = draw(stream, jnp.array([9, 5, 40, 5], jnp.int32))
    assert one[0].shape == (3, 3) and one[1].shape == (3,)
    for index in range(2):
        np.testing.assert_array_equal(one[index][0], other[index][1])
        np.testing.assert_array_equal(one[index][2], other[index][0])
        np.testing.assert_array_equal(other[index][1], other[index][3])
    assert (np.asarray(one[0][0]) != np.asarray(one[0][1])).all()
    elsewhere = sources.Stream(jax.random.key_data(jax.random.key(2)))
    moved = draw(elsewhere, jnp.array([5, 2, 9], jnp.int32))
    assert (np.asarray(moved[0][0]) != np.asarray(one[0][0])).all()
