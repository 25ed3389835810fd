import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.benchmarks.contenders import CONTENDERS
from experiments.benchmarks.trees import TREES, make_grads, make_params, matrix_axes
from experiments.benchmarks.update_step import InPlaceStream, UpdateStep, state_bytes

TREE = TREES["small"]


def _step(name):
    transformation = CONTENDERS[name].build(matrix_axes(TREE))
    return UpdateStep(transformation, make_params(TREE), make_grads(TREE))


def test_state_bytes_counts_scalars_apart():
    state = (jnp.zeros([], jnp.int32), {"m": jnp.zeros((3, 4))}, jnp.zeros((2,)))
    assert state_bytes(state) == (4 * 14, 4)


def test_step_is_the_plain_optax_step():
    optimizer = optax.sgd(0.1, momentum=0.9)
    params, grads = {"w": jnp.arange(3.0)}, {"w": jnp.ones(3)}
    step = UpdateStep(optimizer, params, grads)
    step.step()
    updates, _ = step.update()
    result, _ = step.step()
    # Momentum: 1, then 1.9 (update only), then 2.71.
    np.testing.assert_allclose(updates["w"], -0.19, rtol=1e-6)
    np.testing.assert_allclose(result["w"], params["w"] - 0.371, rtol=1e-6)


def test_gpa_adamw_holds_one_buffer_beyond_adamw():
    memory = _step("gpa_adamw").memory()
    assert memory.state == 12
    assert memory.scalars <= 32
    assert memory.traffic == 36


@pytest.mark.parametrize("name", ["adamw", "gpa_adamw"])
def test_donated_step_needs_no_params_sized_temporary(name):
    # On the CPU the peak lies at the fraction of a byte for the scalars.
    assert _step(name).memory().temporary < 0.05


@pytest.mark.parametrize("name", sorted(CONTENDERS))
def test_every_contender_steps_to_finite_parameters(name):
    tree = TREES["tiny"]
    transformation = CONTENDERS[name].build(matrix_axes(tree))
    params = make_params(tree)
    step = UpdateStep(transformation, params, make_grads(tree))
    moved, _ = step.step()
    for leaf in jax.tree.leaves(moved):
        assert jnp.isfinite(leaf).all()
    assert any(
        (a != b).any()
        for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(params), strict=True)
    )


def test_stream_moves_its_buffer_twice():
    stream = InPlaceStream(1000)
    assert stream.traffic == 8000
    np.testing.assert_allclose(stream.run(), 1.000001, rtol=1e-6)
