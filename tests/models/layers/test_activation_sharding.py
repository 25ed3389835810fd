import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from models.layers.activation_sharding import BATCH, MODEL, shard_activation


def constrained(shape, *axes):
    trace = jax.make_jaxpr(lambda x: shard_activation(x, *axes))(jnp.zeros(shape))
    equations = trace.eqns
    assert len(equations) <= 1
    return equations[0].params["sharding"].spec if equations else None


def test_without_a_mesh_nothing_is_traced():
    assert constrained((8, 4), BATCH, None) is None


def test_axes_that_do_not_divide_are_left_to_the_partitioner():
    axes = ("data", "fsdp", "model")
    mesh = jax.make_mesh((2, 2, 2), axes, axis_types=(AxisType.Auto,) * 3)
    free = jax.sharding.PartitionSpec.UNCONSTRAINED
    with jax.set_mesh(mesh):
        assert tuple(constrained((8, 4, 6), BATCH, None, MODEL)) == (
            ("data", "fsdp"),
            None,
            "model",
        )
        assert tuple(constrained((6, 4, 5), BATCH, None, MODEL)) == (free, None, free)


def test_only_axes_of_the_mesh_are_named():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert tuple(constrained((8, 3), BATCH, MODEL)) == ("data", None)


def test_explicit_axes_are_left_alone():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        assert constrained((8, 3), BATCH, None) is None
