from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from experiments.config import MeshConfig
from experiments.sharding import make_mesh, param_shardings, state_shardings
from experiments.sharding.partitioning import fit_to_shape, partition_spec

RULES = (
    (r"attention/kernel$", P("fsdp", "model")),
    (r"kernel$", P("model")),
)


class Moments(NamedTuple):
    count: jax.Array
    mu: dict
    blocks: dict


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, model=2))


def test_first_matching_rule_wins_and_default_is_replicated():
    assert partition_spec("layers/0/attention/kernel", RULES) == P("fsdp", "model")
    assert partition_spec("head/kernel", RULES) == P("model")
    assert partition_spec("norm/scale", RULES) == P()


def test_axes_that_do_not_divide_are_dropped(mesh):
    assert fit_to_shape("w", P("fsdp", "model"), (3, 4), mesh) == P(None, "model")
    assert fit_to_shape(
        "w",
        P(
            ("data", "fsdp"),
        ),
        (6,),
        mesh,
    ) == P("data")
    assert fit_to_shape(
        "w",
        P(
            ("data", "fsdp"),
        ),
        (8,),
        mesh,
    ) == P(("data", "fsdp"))


def test_rule_longer_than_the_array_is_refused(mesh):
    with pytest.raises(ValueError, match=r"rule for w has 2 entries.*shape \(4,\)"):
        fit_to_shape("w", P("fsdp", "model"), (4,), mesh)


def test_state_leaves_inherit_by_path_and_shape(mesh):
    params = {"attention": {"kernel": jnp.zeros((4, 4))}, "scale": jnp.zeros(4)}
    state = (
        Moments(
            count=jnp.zeros((), jnp.int32),
            mu=params,
            blocks={"attention": {"kernel": jnp.zeros((2, 2, 4))}},
        ),
        params,
    )
    moments, same = state_shardings(state, params, RULES, mesh)
    wanted = param_shardings(params, RULES, mesh)
    assert moments.mu == wanted and same == wanted
    assert wanted["attention"]["kernel"].spec == P("fsdp", "model")
    assert moments.count.spec == P()
    # Same path, another shape: not a copy of the parameter.
    assert moments.blocks["attention"]["kernel"].spec == P()
