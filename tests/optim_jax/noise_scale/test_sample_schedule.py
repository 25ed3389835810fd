"""Learning rates that follow the samples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim_jax.noise_scale.sample_schedule import (
    scale_by_batch_lr,
    schedule_by_samples,
)

SCHEDULES = {
    "cosine": optax.warmup_cosine_decay_schedule(0.0, 1.0, 15, 100),
    "linear": optax.linear_schedule(1.0, 0.0, 100),
    "piecewise": optax.piecewise_constant_schedule(1.0, {20: 0.5, 60: 0.1}),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("batch0", [64, 48, 7])
def test_at_a_constant_batch_it_is_the_schedule_of_the_steps(name, batch0):
    by_samples = schedule_by_samples(SCHEDULES[name], batch0)
    for step in (0, 1, 14, 15, 20, 21, 60, 61, 99, 100, 150):
        expected = SCHEDULES[name](step)
        for samples in (step * batch0, jnp.int32(step * batch0)):
            np.testing.assert_allclose(by_samples(samples), expected, atol=2e-7)
        traced = jax.jit(by_samples)(step * batch0)
        np.testing.assert_allclose(traced, expected, atol=2e-7)


@pytest.mark.parametrize("make", [int, jnp.int32, jnp.float32])
def test_the_quotient_is_not_floored(make):
    by_samples = schedule_by_samples(lambda step: step, 64)
    np.testing.assert_allclose(by_samples(make(96)), 1.5, rtol=1e-7)
    np.testing.assert_allclose(by_samples(make(63)), 63 / 64, rtol=1e-7)


def test_whole_steps_are_exact_at_the_last_sample_of_an_int32():
    # 2^31 - 1 is 300000 * 7158 + 83647; as a float32 it would be 2^31.
    by_samples = schedule_by_samples(lambda step: step, 300_000)
    assert jax.jit(by_samples)(jnp.int32(7158 * 300_000)) == 7158.0
    odd = schedule_by_samples(lambda step: step, 2**31 - 1)
    assert odd(jnp.int32(2**31 - 1)) == 1.0


def test_the_released_runs_evaluate_it_at_the_end_of_the_step():
    schedule = SCHEDULES["linear"]
    by_samples = schedule_by_samples(schedule, 64)
    samples_before_step_3 = 3 * 64
    assert by_samples(samples_before_step_3 + 64) == schedule(4)


@pytest.mark.parametrize("batch0", [0, -1, 64.0, True, None, 2**31])
def test_a_bad_initial_batch_is_an_error(batch0):
    with pytest.raises(ValueError, match="batch0 must be an int from 1 .* got"):
        schedule_by_samples(lambda step: step, batch0)


def test_a_schedule_that_is_a_number_is_an_error():
    with pytest.raises(ValueError, match="schedule must be a function .*got 0.1"):
        schedule_by_samples(0.1, 64)


UPDATES = {
    "a": jnp.asarray([1.0, -2.0]),
    "b": jnp.asarray([0.5, 3.0], jnp.bfloat16),
    "c": jnp.asarray(-4.0, jnp.float16),
}


def test_updates_are_multiplied_and_keep_sign_and_dtype():
    tx = scale_by_batch_lr()
    state = tx.init(UPDATES)
    scaled, after = tx.update(UPDATES, state, lr_scale=jnp.float32(1.5))
    assert after == state == optax.EmptyState()
    for name, update in UPDATES.items():
        assert scaled[name].dtype == update.dtype
        np.testing.assert_array_equal(scaled[name], 1.5 * update)


@pytest.mark.parametrize("make", [float, np.float32, np.float64, jnp.float32])
def test_the_factor_is_not_rounded_to_a_half_precision_leaf(make):
    # As a bfloat16 the factor would be 1.
    updates = {"w": jnp.asarray([1.0, 85.0], jnp.bfloat16)}
    scaled, _ = scale_by_batch_lr().update(
        updates, optax.EmptyState(), lr_scale=make(1.0035)
    )
    expected = (np.float32([1.0, 85.0]) * np.float32(1.0035)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(scaled["w"], expected)


def test_with_a_schedule_the_factors_multiply():
    schedule = schedule_by_samples(SCHEDULES["linear"], 64)
    tx = scale_by_batch_lr(schedule)
    scaled, _ = tx.update(
        UPDATES, tx.init(UPDATES), lr_scale=2.0, samples_seen=jnp.int32(64 * 25)
    )
    np.testing.assert_allclose(scaled["a"], 1.5 * UPDATES["a"], rtol=1e-6)


def test_integers_serve_as_factors():
    scaled, _ = scale_by_batch_lr().update(UPDATES, optax.EmptyState(), lr_scale=2)
    np.testing.assert_array_equal(scaled["a"], 2 * UPDATES["a"])


def test_absent_leaves_stay_absent():
    updates = {"a": None, "b": optax.MaskedNode(), "c": jnp.ones(2)}
    scaled, _ = scale_by_batch_lr().update(updates, optax.EmptyState(), lr_scale=0.5)
    assert jax.tree.structure(scaled) == jax.tree.structure(updates)
    np.testing.assert_array_equal(scaled["c"], [0.5, 0.5])


def test_a_missing_factor_is_an_error():
    tx = scale_by_batch_lr(schedule_by_samples(SCHEDULES["linear"], 64))
    state = tx.init(UPDATES)
    with pytest.raises(ValueError, match="needs lr_scale"):
        tx.update(UPDATES, state, samples_seen=3)
    with pytest.raises(ValueError, match="needs samples_seen"):
        tx.update(UPDATES, state, lr_scale=1.0)
    # Without a schedule the samples are not needed.
    scale_by_batch_lr().update(UPDATES, state, lr_scale=1.0)


def test_a_factor_that_is_no_scalar_is_an_error():
    with pytest.raises(ValueError, match=r"lr_scale must be a scalar, got .*\(2,\)"):
        scale_by_batch_lr().update(UPDATES, optax.EmptyState(), lr_scale=jnp.ones(2))


def test_a_schedule_of_samples_that_is_a_number_is_an_error():
    with pytest.raises(ValueError, match="sample_schedule must be None or a function"):
        scale_by_batch_lr(0.1)


def test_in_a_chain_it_is_sgd_with_that_rate():
    schedule = schedule_by_samples(lambda step: 0.1 / (1 + step), 8)
    tx = optax.chain(optax.sgd(1.0), scale_by_batch_lr(schedule))
    params = {"w": jnp.asarray([1.0, 2.0])}
    state = tx.init(params)

    @jax.jit
    def step(state, grads, lr_scale, samples):
        return tx.update(
            grads, state, params, lr_scale=lr_scale, samples_seen=samples, other=1
        )

    updates, _ = step(state, params, jnp.float32(2.0), jnp.int32(12))
    np.testing.assert_allclose(updates["w"], [-0.08, -0.16], rtol=1e-6)
