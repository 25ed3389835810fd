import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim_jax


def _open_loop(params, gradients, **options):
    """x after the last step, and its distance from the start."""
    optimizer = optim_jax.gpa(optax.adam(3e-4), mu_x=0.9967, mu_y=0.7, **options)

    def step(carry, gradient):
        params, state = carry
        gradient = gradient.astype(params.dtype)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = (params, optimizer.init(params))
    (params, state), _ = jax.jit(lambda c: jax.lax.scan(step, c, gradients))(carry)
    return optim_jax.gpa_sequences(state, params)[0], params, state


@pytest.fixture(scope="module")
def runs():
    start = jax.random.normal(jax.random.key(0), (256,)).astype(jnp.bfloat16)
    drift = jax.random.normal(jax.random.key(1), (256,))
    noise = jax.random.normal(jax.random.key(2), (1000, 256))
    # Values that bfloat16 holds exactly, so that both runs see the same gradients.
    gradients = (drift + noise).astype(jnp.bfloat16).astype(jnp.float32)
    wide = _open_loop(start.astype(jnp.float32), gradients)
    return start, gradients, wide


def _relative_error(x, runs):
    start, _, (reference, _, _) = runs
    travelled = jnp.linalg.norm(reference - start.astype(jnp.float32))
    return float(jnp.linalg.norm(x - reference) / travelled)


def test_half_precision_params_follow_the_wide_run(runs):
    start, gradients, _ = runs
    x, params, state = _open_loop(start, gradients)
    assert _relative_error(x, runs) < 1e-3
    assert params.dtype == jnp.bfloat16
    assert state.z.dtype == state.y_master.dtype == x.dtype == jnp.float32
    assert state.base_state[0].nu.dtype == jnp.float32
    # The params are the rounded master, to at most one rounding.
    error = jnp.abs(params.astype(jnp.float32) - state.y_master)
    assert float(jnp.max(error / jnp.abs(state.y_master))) < 2**-7


def test_without_master_or_wide_state_x_is_lost(runs):
    start, gradients, _ = runs
    x, _, _ = _open_loop(start, gradients, master=False)
    assert _relative_error(x, runs) > 0.1
    with pytest.warns(UserWarning, match="bfloat16: small updates are lost"):
        x, _, _ = _open_loop(
            start.astype(jnp.float32), gradients, state_dtype=jnp.bfloat16
        )
    assert _relative_error(x, runs) > 0.1


def test_weight_sum_keeps_growing_for_half_precision_params():
    optimizer = optim_jax.schedule_free(optax.sgd(0.1), 1.0)
    params = jnp.zeros(1, jnp.bfloat16)

    def step(state, _):
        return optimizer.update(jnp.zeros(1, jnp.bfloat16), state, params)[1], None

    state, _ = jax.lax.scan(step, optimizer.init(params), length=400)
    assert float(state.weight_sum) == 400.0


def test_round_trip_through_x_in_float32():
    start = jax.random.uniform(jax.random.key(0), (512,), minval=1.0, maxval=3.0)
    optimizer = optim_jax.gpa(optax.sgd(0.01), mu_x=0.9, mu_y=0.3)
    state, params = optimizer.init(start), start
    for step in range(5):
        gradient = jax.random.normal(jax.random.key(step), (512,))
        updates, state = optimizer.update(gradient, state, params)
        params = params + updates
    back = optim_jax.gpa_train_params(state, optim_jax.gpa_eval_params(state, params))
    np.testing.assert_allclose(back, params, rtol=0, atol=4e-7)


def test_small_complement_is_taken_in_double_precision():
    mu_x = 0.9984
    optimizer = optim_jax.gpa(optax.identity(), mu_x=mu_x, mu_y=1.0)
    params = jnp.zeros(())
    updates, _ = optimizer.update(jnp.ones(()), optimizer.init(params), params)
    assert float(updates) == np.float32(1 - mu_x)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.complex128])
def test_scalars_are_double_as_soon_as_one_leaf_is(x64, dtype):
    params = {"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, dtype)}
    state = optim_jax.gpa(optax.sgd(0.1)).init(params)
    assert state.mu_y.dtype == state.weight_sum.dtype == jnp.float64
    assert state.z["a"].dtype == jnp.float32 and state.z["b"].dtype == dtype
