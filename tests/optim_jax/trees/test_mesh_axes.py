import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optim_jax.trees.mesh_axes import (
    constrain,
    current,
    explicit_mesh,
    is_explicit,
    type_specs,
    with_auto_axes,
)


def _mesh(kind):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_explicit_axes_are_recognised(kind):
    mesh = _mesh(kind)
    assert is_explicit(mesh) == (kind == AxisType.Explicit)
    array = jax.device_put(jnp.ones((8, 2)), NamedSharding(mesh, P("data", None)))
    found = explicit_mesh({"a": None, "b": array})
    assert (found is not None) == (kind == AxisType.Explicit)
    assert explicit_mesh({"a": jnp.ones(2)}) is None


def test_slices_of_explicit_arrays_need_no_sharding_inside():
    mesh = _mesh(AxisType.Explicit)
    with jax.set_mesh(mesh):
        array = jax.device_put(
            jnp.arange(16.0).reshape(8, 2), NamedSharding(mesh, P("data", None))
        )

        def swap_halves(array):
            inside = constrain(array, mesh, P("model"))
            assert not is_explicit(current(mesh))
            return jnp.concatenate([inside[4:], inside[:4]])

        specs = type_specs(array)
        run = with_auto_axes(swap_halves, explicit_mesh(array), specs)
        found = jax.jit(run)(array)
    assert jax.typeof(found).sharding.spec == specs == P("data", None)
    np.testing.assert_array_equal(found, np.roll(np.asarray(array), 4, axis=0))


def test_without_explicit_axes_the_function_is_left_alone():
    def function(x):
        return x

    assert with_auto_axes(function, None, P()) is function
    mesh = _mesh(AxisType.Auto)
    assert current(mesh) is mesh
    placed = constrain(jnp.ones((8, 2)), mesh, P("data"))
    assert placed.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 2)
