import jax
import pytest

from experiments.config import MeshConfig
from experiments.sharding.mesh import (
    batch_ways,
    make_mesh,
    require_divisible_batch,
)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(data=-1, fsdp=2, model=2), (2, 2, 2)),
        (MeshConfig(data=1, fsdp=-1), (1, 8, 1)),
        (MeshConfig(data=2, fsdp=2, model=2), (2, 2, 2)),
    ],
)
def test_mesh_takes_all_devices(config, shape):
    mesh = make_mesh(config)
    assert mesh.axis_names == ("data", "fsdp", "model")
    assert mesh.devices.shape == shape
    assert batch_ways(mesh) == shape[0] * shape[1]


@pytest.mark.parametrize(
    "config", [MeshConfig(data=-1, model=3), MeshConfig(data=4), MeshConfig(data=16)]
)
def test_mesh_that_does_not_divide_is_refused(config):
    with pytest.raises(ValueError, match=r"mesh.data=.* over 8 device\(s\)"):
        make_mesh(config)


def test_mesh_of_given_devices():
    assert make_mesh(MeshConfig(), jax.devices()[:1]).devices.shape == (1, 1, 1)


def test_batch_that_does_not_split_is_refused():
    mesh = make_mesh(MeshConfig(data=-1, model=2))
    require_divisible_batch(8, mesh)
    with pytest.raises(ValueError, match="6 rows .* 4 data-parallel devices"):
        require_divisible_batch(6, mesh)
