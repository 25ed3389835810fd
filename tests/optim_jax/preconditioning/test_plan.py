"""The plan: counts and costs from shapes alone."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

import optim_jax
from tests.optim_jax.preconditioning.architectures import gpt2_shapes, resnet50_shapes


def _abstract(shapes):
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    (
        "shapes",
        "limit",
        "blocks",
        "block_shapes",
        "sizes",
        "factors",
        "packed",
        "cubes",
        "flops",
    ),
    [
        (gpt2_shapes, 256, 2373, 3, 2, 2.248, 1.129, 7.16e10, 1.27e11),
        (gpt2_shapes, 1024, 317, 8, 4, 2.967, 1.485, 3.38e11, 4.38e11),
        (gpt2_shapes, 8192, 154, 10, 6, 7.681, 3.842, 4.70e12, 1.27e12),
        (resnet50_shapes, 1024, 176, 25, 9, 3.269, 1.637, 7.47e10, 6.35e10),
        (resnet50_shapes, 2048, 161, 28, 11, 4.574, 2.289, 1.75e11, 8.40e10),
    ],
)
def test_published_architectures(
    shapes, limit, blocks, block_shapes, sizes, factors, packed, cubes, flops
):
    plan = optim_jax.plan_preconditioners(
        _abstract(shapes()), max_preconditioner_dim=limit
    )
    number = {gpt2_shapes: 124_439_808, resnet50_shapes: 25_557_032}[shapes]
    assert plan.num_params == number
    assert plan.num_blocks == blocks and len(plan.block_shapes) == block_shapes
    assert len(plan.factor_dims) == sizes
    assert plan.factor_elements / number == pytest.approx(factors, abs=6e-4)
    assert plan.packed_factor_elements / number == pytest.approx(packed, abs=6e-4)
    assert plan.refresh_cost == pytest.approx(cubes, rel=6e-3)
    assert plan.apply_flops == pytest.approx(flops, rel=6e-3)


def test_half_of_gpt2s_blocks_are_vectors():
    plan = optim_jax.plan_preconditioners(_abstract(gpt2_shapes()))
    vectors = sum(n for shape, n in plan.block_shapes.items() if len(shape) == 1)
    assert vectors == 146
    without = optim_jax.plan_preconditioners(
        _abstract(gpt2_shapes()), precondition_1d=False
    )
    assert without.factor_elements < plan.factor_elements
    assert all(len(bucket.modes) != 1 for bucket in without.layout.buckets)


def test_refresh_load_of_resnet50_on_64_devices():
    plan = optim_jax.plan_preconditioners(_abstract(resnet50_shapes()))
    assert plan.refresh_imbalance(64) <= 1.11


def test_flops_of_the_methods():
    params = _abstract({"kernel": (64, 32)})
    options = {"max_preconditioner_dim": 64, "target_dimensionality": 2}
    plan = functools.partial(optim_jax.plan_preconditioners, params, **options)
    one = 2 * 64 * 32 * (64 + 32)
    assert plan().apply_flops == one and plan().step_flops == 2 * one
    soap = plan(preconditioner=optim_jax.EigenvalueCorrected())
    assert soap.step_flops == 4 * one
    assert plan(preconditioner=optim_jax.KLRootInverse()).step_flops == 3 * one
    qr = plan(preconditioner=optim_jax.EigenvalueCorrected(method=optim_jax.QR()))
    assert qr.refresh_flops == 11 * (64**3 + 32**3)
    muon = plan(preconditioner=optim_jax.Spectral())
    assert muon.step_flops == 5 * (4 * 64 * 32**2 + 2 * 32**3)
    # The rule of thumb: 8 b FLOPs per parameter over 6 per token.
    square = optim_jax.plan_preconditioners(
        _abstract({"kernel": (1024, 1024)}), target_dimensionality=2
    )
    assert square.overhead(2**20) == pytest.approx(8 * 1024 / (6 * 2**20))


def test_state_bytes_are_those_of_the_state():
    params = {"kernel": jnp.ones((12, 8)), "bias": jnp.ones(5)}
    tx = optim_jax.scale_by_shampoo(max_preconditioner_dim=8, grafting="adam")
    state = tx.init(params)
    assert tx.plan(params).state_bytes == sum(x.nbytes for x in jax.tree.leaves(state))


def test_prints_costs_and_loads():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    plan = optim_jax.plan_preconditioners(
        _abstract({"kernel": (96, 64), "bias": (64,)}),
        max_preconditioner_dim=32,
        mesh=mesh,
    )
    text = str(plan)
    assert "6,208 parameters in 2 leaves, 8 blocks of 2 shapes" in text
    assert "6 of 32x32, 2 of 32" in text
    assert "at 131,072 tokens" in text and "8 devices" in text
    assert math.isclose(sum(plan.device_loads), 14 * 32**3)
    assert max(plan.device_loads) == 2 * 32**3


def test_is_a_static_argument_of_jit():
    params = {"kernel": jnp.ones((8, 8))}
    tx = optim_jax.scale_by_shampoo(refresh="external", grafting="adam")
    first, second = tx.plan(params), tx.plan(params)
    assert first == second and hash(first) == hash(second)
    state = tx.update(params, tx.init(params), params)[1]
    refresh = jax.jit(optim_jax.refresh_preconditioners, static_argnums=1)
    assert int(refresh(state, first).health.refreshes) == 1
    refresh(state, second)
    assert refresh._cache_size() == 1
