"""Monte-Carlo: bias, consistency and bounds of the estimators. Seeds are fixed.

Stacks of matrices and long vectors stand for many independent trials in one call.
"""

import math

import jax
import numpy as np
import pytest

from optim_jax import MatrixAxes
from optim_jax import noise_scale as ns

STACK = {"w": MatrixAxes("hidden", (0,), (1,), (2,))}


def gaussian(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def moments_of(draws, weights=1.0, **layout):
    return jax.jit(
        lambda w: ns.moments_from_stacked({"w": w}, sample_weights=weights, **layout)
    )(draws)


def measure(draws, weights=1.0, options=None, **layout):
    moments = moments_of(draws, weights, **layout)
    return jax.jit(lambda m: ns.noise_scale(m, **(options or {}), **layout))(moments)


@pytest.mark.parametrize("weights", [[2.0] * 4, [1.0, 2.0, 4.0, 9.0]])
def test_variance_of_a_sample_is_unbiased(weights):
    # 14. 40 000 trials of three coordinates; the standard error is 0.5 %.
    std = np.array([0.5, 1.0, 2.0], np.float32)
    scale = std / np.sqrt(np.array(weights, np.float32))[:, None, None]
    draws = 3.0 + scale * gaussian(0, 4, 40_000, 3)
    variance = moments_of(draws, weights, geometry="sign").m2["w"] / 3
    np.testing.assert_allclose(variance.mean(0), std**2, rtol=0.02)


@pytest.mark.parametrize("side", ["row", "col"])
@pytest.mark.parametrize("weights", [[2.0] * 4, [1.0, 2.0, 4.0, 9.0]])
def test_covariance_of_a_sample_is_unbiased(side, weights):
    # 14. Entry (i, j) has the variance a_i c_j: the row covariance is a_i sum_j c_j.
    a, c = np.array([1.0, 4.0], np.float32), np.array([1.0, 2.0, 0.5], np.float32)
    std = np.sqrt(a[:, None] * c)
    scale = std / np.sqrt(np.array(weights, np.float32))[:, None, None, None]
    draws = scale * gaussian(1, 4, 20_000, 2, 3)
    layout = {"geometry": "spectral", "side": side, "matrix_axes": STACK}
    covariance = moments_of(draws, weights, **layout).m2["w"].mean(0) / 3
    wanted = np.diag(a * c.sum() if side == "row" else c * a.sum())
    np.testing.assert_allclose(covariance, wanted, rtol=0.03, atol=0.05)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_estimated_standard_deviation_is_low_by_c4_and_corrected_by_it(n):
    # 15. 40 000 coordinates of standard deviation 1: the standard error is 0.4 %.
    draws = 0.3 + gaussian(2, n, 40_000)
    plain = measure(draws, geometry="sign")
    corrected = measure(draws, 1.0, {"sqrt_bias": "gaussian"}, geometry="sign")
    c4 = float(ns.c4(n))
    assert math.sqrt(plain.noise_sq) / 40_000 == pytest.approx(c4, rel=0.01)
    assert math.sqrt(corrected.noise_sq) / 40_000 == pytest.approx(1.0, rel=0.01)


def test_many_draws_give_the_noise_itself():
    # 16. The bound, not the tighter expectation of the norm.
    std = np.array([[1.0, 2.0, 0.5], [0.1, 1.0, 3.0]], np.float32)
    draws = std / 2.0 * gaussian(3, 20_000, 2, 3)  # four samples each
    sign = measure(draws, 4.0, geometry="sign")
    assert float(sign.noise_sq) == pytest.approx(std.sum() ** 2, rel=0.02)
    layout = {"geometry": "spectral", "side": "row"}
    axes = {"w": MatrixAxes("hidden")}
    spectral = measure(draws, 4.0, matrix_axes=axes, **layout)
    trace = np.sqrt(np.square(std).sum(1)).sum()
    assert float(spectral.noise_sq) == pytest.approx(trace**2, rel=0.02)


@pytest.mark.parametrize(
    ("n", "rows", "columns", "value"),
    [(2, 64, 64, 0.85), (2, 32, 96, 0.9564), (8, 64, 64, 0.9818)],
)
def test_spectral_noise_is_low_by_the_marchenko_pastur_mean(n, rows, columns, value):
    # 17. White noise of variance 1: tr C^(1/2) is rows * sqrt(columns).
    matrices = 6
    draws = gaussian(4, n, matrices, rows, columns)
    found = measure(draws, geometry="spectral", matrix_axes=STACK)
    mean = math.sqrt(found.noise_sq) / (matrices * rows * math.sqrt(columns))
    assert mean == pytest.approx(value, abs=0.02)
    limit = ns.marchenko_pastur_sqrt_mean(rows / ((n - 1) * columns))
    assert mean == pytest.approx(float(limit), abs=0.02)


@pytest.mark.parametrize(
    ("geometry", "shape", "n", "value", "rel"),
    [
        ("l2", (40_000,), 8, 1.0, 0.02),
        ("sign", (40_000,), 8, 1.463, 0.02),
        ("sign", (40_000,), 2, 1.0, 0.02),
        ("spectral", (96, 96), 8, 1.338, 0.02),
        ("spectral", (96, 96), 2, 1.0, 0.02),
        ("spectral", (4, 2000), 8, 1.0, 0.02),
    ],
)
def test_pure_noise_saturates_at_a_constant_times_the_samples(
    geometry, shape, n, value, rel
):
    # 18. No true gradient; b = 3 samples per draw.
    layout = {"geometry": geometry, "matrix_axes": {"w": MatrixAxes("hidden")}}
    moments = moments_of(gaussian(5, n, *shape) / math.sqrt(3.0), 3.0, **layout)
    found = ns.noise_scale(moments, **layout)
    assert float(found.value) / (3 * n) == pytest.approx(value, rel=rel)
    factor = float(ns.saturation_factor(moments.mean, n, **layout))
    assert factor == pytest.approx(value, rel=rel)
    assert ns.is_saturated(found, moments, **layout)
    # A gradient far above the noise is not saturated.
    moments = moments_of(5.0 + gaussian(6, n, *shape), 3.0, **layout)
    found = ns.noise_scale(moments, **layout)
    assert not ns.is_saturated(found, moments, **layout)


def test_sign_estimate_is_low_near_the_critical_batch():
    # Section 3.6: homogeneous coordinates at B = noise scale / theta^2, n large.
    theta, wanted = 0.6, 0.954
    batch, n = 36, 36  # samples, each of them a draw
    signal = 1.0 / (theta * math.sqrt(batch))
    draws = signal + gaussian(7, n, 40_000)
    options = {"sqrt_bias": "gaussian"}
    found = measure(draws, 1.0, options, geometry="sign")
    true = 1.0 / signal**2
    assert true == pytest.approx(batch * theta**2)
    # 1/theta: the ratio of the noise of the batch to the signal is theta.
    assert float(found.value) / true == pytest.approx(wanted, rel=0.02)


# Theory that the estimates stand for.


def closed_form_progress(gradient, std, batch):
    """E <gradient, sign(g)> over its l1 norm, for Gaussian g."""
    ratio = np.abs(gradient) * math.sqrt(batch) / (std * math.sqrt(2.0))
    erf = np.array([math.erf(value) for value in ratio])
    return np.sum(np.abs(gradient) * erf) / np.abs(gradient).sum()


@pytest.mark.parametrize("theta", [0.3, 0.6, 0.9])
def test_progress_of_sign_descent_is_at_least_one_minus_theta(theta):
    # 20. E <gradient, p(g)> >= (1 - theta) |gradient|_1 at B = noise scale / theta^2.
    gradient = np.array([1.0, -2.0, 1.5, 1.0])
    std = np.array([2.0, 2.0, 1.0, 1.0])
    two_draws = gradient + std / math.sqrt(2.0) * np.array([[1.0], [-1.0]])
    noise_scale = float(measure(two_draws.astype(np.float32), geometry="sign").value)
    batch = noise_scale / theta**2
    noise = std / math.sqrt(batch) * np.random.default_rng(8).normal(size=(40_000, 4))
    progress = (np.sign(gradient + noise) @ gradient).mean() / np.abs(gradient).sum()
    wanted = closed_form_progress(gradient, std, batch)
    assert progress == pytest.approx(wanted, abs=0.01)
    assert wanted >= 1.0 - theta


def test_sign_descent_contracts_a_quadratic_as_the_bound_says():
    # 21. L = x^T diag(h) x / 2, L_s = sum(h), mu = min(h), theta = 1/2: a factor of at
    # most 1 - (1 - theta)^2 mu / L_s = 0.975 per step.
    h, std, theta = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 1.0, 1.0]), 0.5
    rng = np.random.default_rng(9)
    x = np.tile([1.0, -1.0, 0.5, 0.25], (2000, 1))
    bound = 1.0 - (1.0 - theta) ** 2 * h.min() / h.sum()
    assert bound == pytest.approx(0.975)
    losses = [0.5 * np.mean(x * x @ h)]
    for _ in range(6):
        gradient = h * x
        norm = np.abs(gradient).sum(1, keepdims=True)
        batch = std.sum() ** 2 / norm**2 / theta**2  # noise scale / theta^2, each run's
        noisy = gradient + std / np.sqrt(batch) * rng.normal(size=x.shape)
        x = x - (1.0 - theta) * norm / h.sum() * np.sign(noisy)
        losses.append(0.5 * np.mean(x * x @ h))
    ratios = np.array(losses[1:]) / np.array(losses[:-1])
    assert np.all(ratios <= bound)
    assert 0.3 < ratios[0] < 0.7


@pytest.mark.parametrize("shape", [(4, 12), (8, 8)])
def test_mean_nuclear_norm_of_the_noise_is_below_both_traces(shape):
    # 22. E |gradient - G|_S1 <= tr C_row^(1/2) / sqrt(B), and the same with columns.
    rng = np.random.default_rng(10)
    std = rng.uniform(0.2, 2.0, size=shape).astype(np.float32)
    batch, draws = 16, 400
    noise = std / 4.0 * gaussian(11, draws, *shape)
    expected = np.linalg.svd(noise, compute_uv=False).sum(1).mean()
    axes = {"w": MatrixAxes("hidden")}
    for side in ("row", "col"):
        layout = {"geometry": "spectral", "side": side, "matrix_axes": axes}
        trace = math.sqrt(measure(noise, float(batch), **layout).noise_sq)
        exact = np.sqrt(np.square(std).sum(1 if side == "row" else 0)).sum()
        assert trace == pytest.approx(exact, rel=0.05)
        assert expected <= trace / math.sqrt(batch)
