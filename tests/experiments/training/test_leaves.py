import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.training.leaves import checksums, named_leaves


def test_paths_of_dicts_tuples_and_empty_nodes():
    tree = {"a": (jnp.zeros(1), None, ()), "b": {"c": 2.0}}
    assert list(named_leaves(tree)) == ["a/0", "b/c"]


DTYPES = ["float32", "bfloat16", "float8_e4m3fn", "int8", "uint32", "bool", "complex64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checksum_sees_every_element(dtype):
    x = (jnp.arange(24) % 7 > 2).astype(dtype).reshape(4, 6)
    whole = checksums({"x": x})["x"]
    assert checksums({"x": x})["x"] == whole
    for index in np.ndindex(x.shape):
        changed = x.at[index].set((x[index] == 0).astype(dtype))
        assert checksums({"x": changed})["x"] != whole


def test_checksum_of_float32_bits():
    x = np.array([1.5, -2.0, np.nan, 0.0], np.float32)
    expected = int(x.view(np.uint32).astype(np.uint64).sum() % 2**32)
    assert checksums({"x": jnp.asarray(x)}) == {"x": expected}


def test_checksum_of_float64_bits(x64):
    x = np.array([1.5, -2.0, 1e300])
    expected = int(x.view(np.uint32).astype(np.uint64).sum() % 2**32)
    assert checksums({"x": jnp.asarray(x)}) == {"x": expected}


def test_checksum_does_not_depend_on_the_layout():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.random.normal(jax.random.key(0), (8, 16))
    split = jax.device_put(x, NamedSharding(mesh, P("data")))
    assert checksums({"x": x}) == checksums({"x": split})


def test_checksum_of_keys_and_scalars():
    leaves = {"key": jax.random.key(5), "step": jnp.int32(-1)}
    assert checksums(leaves) == {"key": 5, "step": 2**32 - 1}
