import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.directional_derivatives import directional_derivatives
from optim_jax.quasi_newton.gradient_variance import (
    HUTCHINSON_PROBES,
    exact_variance,
    hutchinson_variance,
    read_weights,
    sample_variance,
)
from tests.optim_jax.quasi_newton.golden_sample import read_golden_sample


def test_the_golden_variance_about_r(x64):
    numbers = read_golden_sample().numbers
    found = sample_variance(
        numbers["a"], numbers["r"], read_weights(24, None, jnp.float64)
    )
    assert float(found) == pytest.approx(float(numbers["var_ipqn"]), rel=1e-13)


def test_masks_leave_the_divisor_n_minus_one(x64):
    values = np.array([1.0, 4.0, np.nan, 2.0, np.inf])
    mask = np.array([1, 1, 0, 1, 0])
    found = sample_variance(values, 7 / 3, read_weights(5, mask, jnp.float64))
    assert float(found) == pytest.approx(np.var([1, 4, 2], ddof=1), rel=1e-14)


def test_weighted_deviations_and_the_scale_of_weights(x64):
    values, weights = np.array([1.0, 4.0, 2.0]), np.array([0.5, 2.0, 1.0])
    mean = weights @ values / 3.5
    expected = 3 / 2 * (weights @ (values - mean) ** 2) / 3.5
    for scale in (1.0, 100.0):
        sample = read_weights(3, scale * weights, jnp.float64)
        found = sample_variance(values, mean, sample)
        assert float(found) == pytest.approx(expected, rel=1e-14)


def test_deviations_are_squared_in_float32_not_the_values():
    values = np.float32(1000.0) + np.random.default_rng(0).normal(0, 0.01, 4096)
    values = jnp.asarray(values, jnp.float32)
    exact = np.var(np.asarray(values, np.float64), ddof=1)
    mean = np.float32(np.mean(np.asarray(values, np.float64)))
    found = sample_variance(values, mean, read_weights(4096, None, jnp.float32))
    assert found.dtype == jnp.float32
    # r is rounded to 3e-5, a 300th of the deviation.
    assert float(found) == pytest.approx(exact, rel=1e-3)
    squares = jnp.sum(values**2) - jnp.sum(values) ** 2 / 4096
    assert not 0.5 < float(squares) / 4095 / exact < 2


def test_half_precision_losses_are_summed_in_float32():
    values = jnp.asarray([1.0, 2.0, 4.0], jnp.bfloat16)
    found = sample_variance(values, 7 / 3, read_weights(3, None, jnp.float32))
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx(np.var([1, 2, 4], ddof=1), rel=1e-6)


def test_one_sample_has_no_variance():
    found = sample_variance(jnp.ones(3), 1.0, read_weights(3, [0, 1, 0], jnp.float32))
    assert np.isnan(found)


def test_draws_without_replacement(x64):
    # All 56 samples of three of eight: the variance of the mean of g_i^T u over the
    # samples is, in expectation, what the test makes of each sample's own variance.
    golden = read_golden_sample()
    u = jnp.asarray(golden.numbers["u"])
    a = directional_derivatives(lambda w: golden.losses(w)[:8], golden.w, u)
    gradients = golden.numbers["G"][:8]
    index = np.arange(8)
    subsets = [[i, j, k] for i in index for j in index[i + 1 :] for k in index[j + 1 :]]
    means = gradients[np.array(subsets)].mean(1)
    np.testing.assert_allclose(means.mean(0), gradients.mean(0), rtol=1e-12)

    def own_variance(subset):
        drawn = a[subset]
        return sample_variance(
            drawn, jnp.mean(drawn), read_weights(3, None, jnp.float64)
        )

    of_mean = np.var(means @ np.asarray(u))
    truth = np.var(np.asarray(a), ddof=1)
    assert of_mean == pytest.approx(truth / 3 * (1 - 3 / 8), rel=1e-12)
    estimates = jax.vmap(own_variance)(jnp.array(subsets))
    assert float(jnp.mean(estimates)) == pytest.approx(truth, rel=1e-12)


def test_the_exact_variance_is_that_of_the_golden_norm_test(x64):
    golden = read_golden_sample()
    sample = read_weights(24, None, jnp.float64)
    found = exact_variance(golden.losses, golden.w, golden.gradient, sample)
    assert float(found) == pytest.approx(float(golden.numbers["var_norm"]), rel=1e-12)


def test_random_signs_estimate_the_variance_without_bias(x64):
    golden = read_golden_sample()
    sample = read_weights(24, None, jnp.float64)
    truth = float(golden.numbers["var_norm"])

    @jax.jit
    @jax.vmap
    def estimate(key):
        return hutchinson_variance(
            golden.losses, golden.w, golden.gradient, sample, key
        )

    found = np.asarray(estimate(jax.random.split(jax.random.key(1), 256)))
    error = found.std() / np.sqrt(256)
    assert error < 0.02 * truth
    assert found.mean() == pytest.approx(truth, abs=4 * error)
    # The variance of one product is 2 sum_{i != j} C_ij^2, C the covariance.
    covariance = np.cov(golden.numbers["G"], rowvar=False)
    off = covariance - np.diag(np.diag(covariance))
    expected = 2 * np.sum(off**2) / HUTCHINSON_PROBES
    assert found.var() == pytest.approx(expected, rel=0.4)


def test_random_signs_are_exact_in_one_dimension(x64):
    x = jnp.asarray([1.0, 2.0, 4.0])
    found = hutchinson_variance(
        lambda w: x * w, jnp.asarray(0.5), jnp.mean(x), read_weights(3, None, x.dtype)
    )
    assert float(found) == pytest.approx(np.var([1, 2, 4], ddof=1), rel=1e-14)


def test_the_fixed_key_gives_one_answer(x64):
    golden = read_golden_sample()
    arguments = (
        golden.losses,
        golden.w,
        golden.gradient,
        read_weights(24, None, jnp.float64),
    )
    assert hutchinson_variance(*arguments) == hutchinson_variance(*arguments)
    other = hutchinson_variance(*arguments, jax.random.key(3))
    assert other != hutchinson_variance(*arguments)
