"""The batch that is asked for when the optimizer averages the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.noise_scale.momentum import momentum_batch_size
from tests.optim_jax.noise_scale.measurements import batches, config


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.8, 0.9, 0.95])
def test_the_effective_batch_just_reaches_the_noise_scale_over_theta_squared(beta):
    theta, noise, signal = 0.3, 50.0, 1.0
    options = config(theta=theta, momentum=beta, init_batch=1)
    batch = batches(options, [(noise, signal)])[-1]
    wanted = noise / signal / theta**2
    assert batch * (1 + beta) / (1 - beta) >= wanted * (1 - 1e-6)
    assert (batch - 1) * (1 + beta) / (1 - beta) < wanted
    assert momentum_batch_size(batch, beta) >= wanted * (1 - 1e-6)


def test_without_momentum_it_is_the_papers_rule():
    path = [(12.0, 1.0), (99.0, 0.7), (3.0, 1.0)]
    assert batches(config(momentum=0.0), path) == batches(config(), path)


def test_the_request_is_divided_before_it_is_rounded():
    # 48 / 19 = 2.5, on the grid of 8; 800 / 19 = 42.1.
    options = config(momentum=0.9, quantum=8)
    assert batches(options, [(12.0, 1.0), (200.0, 1.0)]) == [8, 8, 48]


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_an_average_of_gradients_has_the_noise_of_the_effective_batch(beta):
    batch, steps, coordinates = 4, 200, 4000
    expected = 1.0 / momentum_batch_size(batch, beta)
    # The closed form, summed term by term.
    weights = (1 - beta) * beta ** np.arange(steps)
    np.testing.assert_allclose(np.sum(weights**2) / batch, expected, rtol=1e-8)
    # Simulated: the standard error of a variance of 4000 numbers is 2.2 %.
    noise = jax.random.normal(jax.random.key(0), (steps, coordinates)) / batch**0.5
    average, _ = jax.lax.scan(
        lambda m, g: (beta * m + (1 - beta) * g, None), jnp.zeros(coordinates), noise
    )
    np.testing.assert_allclose(np.mean(average**2), expected, rtol=0.07)
