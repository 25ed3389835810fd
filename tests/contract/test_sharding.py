"""Eight devices give what one gives, and the state lies where the params lie."""

import re

import jax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.contract.problem import (
    assert_close,
    at,
    make_gradients,
    make_params,
    params_like,
    reference,
    stepper,
)

LAYOUTS = {
    "rows": (
        (8,),
        ("data",),
        {"dense": {"bias": P(), "kernel": P("data", None)}, "scale": P()},
    ),
    "data_and_model": (
        (4, 2),
        ("data", "model"),
        {"dense": {"bias": P("model"), "kernel": P("data", "model")}, "scale": P()},
    ),
}
COMMUNICATION = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
)


def _shardings(layout, axis_type):
    shape, names, specs = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, names, axis_types=(axis_type,) * len(shape))
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda node: isinstance(node, P),
    )
    return mesh, shardings


def _assert_params_like_shardings(state, params):
    for entry, leaf in params_like(state, params):
        assert entry.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eight_devices_are_one(row, layout):
    _, shardings = _shardings(layout, AxisType.Auto)
    tx = row.make()
    params = jax.device_put(make_params(), shardings)
    gradients = make_gradients()
    state = tx.init(params)
    _assert_params_like_shardings(state, params)
    # Scalars join the params' devices, as in any training loop.
    everywhere = NamedSharding(shardings["scale"].mesh, P())
    state = jax.tree.map(
        lambda x: jax.device_put(x, everywhere) if x.ndim == 0 else x, state
    )
    grads = jax.device_put(at(gradients, 0), shardings)
    step = jax.jit(stepper(row, tx)).lower(params, state, grads).compile()
    if row.elementwise:
        assert not COMMUNICATION.search(step.as_text())
    point = (params, state)
    for index in range(3):
        # The compiled step accepts no other sharding: the state keeps its own.
        grads = jax.device_put(at(gradients, index), shardings)
        point = step(*point, grads)[:2]
        _assert_params_like_shardings(point[1], params)
    assert_close(point, reference(row)[3][:2], 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_explicit_axes_are_stable(row, dtype):
    # Under explicit axes the sharding is part of the type: scan refuses a carry whose
    # sharding changes. Tracing is enough.
    mesh, shardings = _shardings("data_and_model", AxisType.Explicit)
    tx = row.make()
    step = stepper(row, tx)
    with jax.set_mesh(mesh):
        params = jax.device_put(make_params(dtype), shardings)
        grads = jax.device_put(at(make_gradients(dtype), 0), shardings)
        state = tx.init(params)

        def body(carry, _):
            point = step(*carry, grads)
            return point[:2], None

        (_, after), _ = jax.eval_shape(
            lambda: jax.lax.scan(body, (params, state), length=2)
        )
        for entry, leaf in params_like(after, params):
            assert entry.sharding.spec == jax.typeof(leaf).sharding.spec
