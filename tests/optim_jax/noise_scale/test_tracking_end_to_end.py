"""A chain as a user writes it, on a quadratic whose noise scale is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim_jax
from optim_jax import noise_scale
from optim_jax.noise_scale.sample_schedule import schedule_by_samples

# L = x^T diag(h) x / 2, and a gradient of one sample is h x plus normal noise.
CURVATURE = jnp.asarray([1.0, 2.0, 3.0, 4.0])
START = {"x": jnp.asarray([1.0, -1.0, 0.5, 0.25])}
NOISE = np.asarray([2.0, 2.0, 1.0, 1.0])
DRAWS, SAMPLES = 2000, 40


def gradients(params, key, draws=DRAWS, samples=SAMPLES):
    """Gradients of `samples` samples each, stacked."""
    noise = jax.random.normal(key, (draws, 4)) * (NOISE / samples**0.5)
    return {"x": CURVATURE * params["x"] + noise}


def exact(geometry, params):
    """The noise scale in closed form."""
    gradient = np.asarray(CURVATURE * params["x"], np.float64)
    if geometry == "l2":
        return np.sum(NOISE**2) / np.sum(gradient**2)
    return np.sum(NOISE) ** 2 / np.sum(np.abs(gradient)) ** 2


@pytest.mark.parametrize(("geometry", "value"), [("sign", 1.190083), ("l2", 1.212121)])
def test_a_chain_measures_the_noise_scale_of_the_quadratic(geometry, value):
    optimizer = optax.chain(
        optim_jax.track_noise_scale(geometry, stacked=True, every=2),
        optax.clip_by_global_norm(1.0),
        optax.adam(1e-3),
    )

    @jax.jit
    def step(params, state, key):
        grads = gradients(params, key)
        updates, state = optimizer.update(
            grads, state, params, samples_per_grad=SAMPLES
        )
        return optax.apply_updates(params, updates), state

    params, state = START, optimizer.init(START)
    np.testing.assert_allclose(exact(geometry, START), value, rtol=1e-6)
    for index, key in enumerate(jax.random.split(jax.random.key(0), 9)):
        before = params
        params, state = step(params, state, key)
        if index % 2 == 0:
            # The estimated variances have a standard error of 3 %, four of them 2 %.
            expected = exact(geometry, before)
            np.testing.assert_allclose(state[0].value, expected, rtol=0.05)
    tracked = state[0]
    assert (tracked.count, tracked.ticks, tracked.skipped) == (9, 5, 0)
    # Adam moves every coordinate by about its learning rate: x hardly moved.
    smoothed = tracked.noise_ema / tracked.signal_ema
    np.testing.assert_allclose(smoothed, value, rtol=0.03)
    assert optax.tree_utils.tree_get(state, "noise_ema") == tracked.noise_ema
    # Before the clip: the gradient's norm is above 1.
    assert tracked.signal_sq > 8.0


def test_batch_and_rate_follow_the_measured_noise_scale():
    # The whole of it in one scan: the stack is a fixed number of draws whose size is
    # the batch over their number; the batch is a number of the graph.
    theta, draws = 0.25, 8
    optimizer = optax.chain(
        optim_jax.track_noise_scale("sign", stacked=True, every=5),
        optax.sgd(0.02),
        optim_jax.scale_by_batch_lr(
            schedule_by_samples(optax.constant_schedule(1.0), 16)
        ),
    )
    controller = noise_scale.batch_size_controller(
        noise_scale.BatchSizeConfig(
            theta=theta, init_batch=16, every=5, quantum=8, max_batch=4096
        )
    )

    @jax.jit
    def train(key):
        def step(carry, inputs):
            params, state, control = carry
            index, key = inputs
            samples = control.batch_size / draws
            grads = gradients(params, key, draws, samples)
            updates, state = optimizer.update(
                grads,
                state,
                params,
                samples_per_grad=samples,
                lr_scale=control.lr_scale,
                samples_seen=control.samples_seen,
            )
            params = optax.apply_updates(params, updates)
            carry = (params, state, controller.update(control, state[0], index))
            return carry, (control.batch_size, control.lr_scale, params["x"])

        start = (START, optimizer.init(START), controller.init())
        inputs = (jnp.arange(100), jax.random.split(key, 100))
        (_, _, control), path = jax.lax.scan(step, start, inputs)
        return control, path

    control, (batches, scales, xs) = train(jax.random.key(1))
    assert control.samples_seen == np.sum(batches)
    assert np.all(np.diff(batches) >= 0) and np.all(batches % 8 == 0)
    np.testing.assert_allclose(scales, np.sqrt(batches / 16), rtol=1e-6)
    # The noise scale is 1.19 at first, asking for 19.04; it grows with the distance
    # gone, and so does the batch.
    assert 16 <= batches[1] <= 32
    assert batches[-1] > 4 * batches[1]
    assert np.sum(CURVATURE * xs[-1] ** 2) < 0.05 * np.sum(CURVATURE * START["x"] ** 2)
