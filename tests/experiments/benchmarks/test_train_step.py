"""The predicted cost of a training step with Shampoo."""

import jax
import jax.numpy as jnp
import pytest

import optim_jax
from experiments.benchmarks.train_step import predict, with_optimizer
from experiments.presets import LLAMA, preset_by_name


def test_prediction_is_the_plans():
    shapes = {"kernel": jax.ShapeDtypeStruct((256, 256), jnp.float32)}
    plan = optim_jax.plan_preconditioners(shapes, max_preconditioner_dim=256)
    prediction = predict(plan, tokens=1000, period=50)
    # 8 b FLOPs per parameter and step over 6 per parameter and token.
    assert prediction.step == pytest.approx(8 * 256 / (6 * 1000))
    refresh = 2 * 27 * 256**3 / 50 / (6 * 256**2 * 1000)
    assert prediction.refresh == pytest.approx(refresh)
    assert prediction.ratio == pytest.approx(1.0 + prediction.step + prediction.refresh)


def test_only_the_optimizer_changes():
    base = preset_by_name("llama_nano_stdlib", LLAMA)
    other = with_optimizer(base, "soap", 20, "staggered")
    assert other.optimizer.name == "soap" and other.optimizer.refresh == "staggered"
    assert other.optimizer.precondition_frequency == 20
    assert other.model == base.model and other.batch == base.batch
