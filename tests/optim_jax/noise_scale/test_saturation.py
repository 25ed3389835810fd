"""Constants of Gaussian noise, and measurements that only repeat their batch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax import MatrixAxes
from optim_jax import noise_scale as ns
from tests.optim_jax.noise_scale.numpy_estimates import GEOMETRIES

HIDDEN = {"w": MatrixAxes("hidden")}


@pytest.mark.parametrize(
    ("n", "value"), [(2, 0.7979), (4, 0.9213), (8, 0.9650), (16, 0.9835)]
)
def test_c4_has_its_tabulated_values(n, value):
    assert float(ns.c4(n)) == pytest.approx(value, abs=5e-5)


@pytest.mark.parametrize(("precision", "rel"), [("float32", 3e-6), ("float64", 1e-10)])
def test_c4_is_accurate_for_any_count_and_may_be_traced(precision, rel):
    counts = np.array([2, 3, 8, 31, 32, 33, 34, 35, 100, 10_000, 2_000_000])
    with jax.enable_x64(precision == "float64"):
        found = jax.jit(ns.c4)(jnp.asarray(counts, jnp.int32))
        assert found.dtype == precision
        for n, value in zip(counts, np.asarray(found), strict=True):
            log_ratio = math.lgamma(n / 2) - math.lgamma((n - 1) / 2)
            exact = math.sqrt(2 / (n - 1)) * math.exp(log_ratio)
            tolerance = rel if n < 1e6 else max(rel, 1e-9)  # of lgamma itself
            assert value == pytest.approx(exact, rel=tolerance)


def test_c4_of_less_than_two_draws_is_finite():
    np.testing.assert_allclose(ns.c4(np.array([0, 1])), float(ns.c4(2)))


@pytest.mark.parametrize(
    ("aspect", "value"),
    [(1.0, 8 / (3 * math.pi)), (1 / 3, 0.9564), (1 / 7, 0.9818), (1 / 28, 0.9955)],
)
def test_marchenko_pastur_mean_has_its_tabulated_values(aspect, value):
    found = jax.jit(ns.marchenko_pastur_sqrt_mean)(aspect)
    assert float(found) == pytest.approx(value, abs=6e-5)


def test_marchenko_pastur_mean_of_small_and_large_aspects():
    assert float(ns.marchenko_pastur_sqrt_mean(1e-3)) == pytest.approx(1 - 1e-3 / 8)
    # The other side of the same matrix: mp(y) = mp(1/y) / sqrt(y).
    found = ns.marchenko_pastur_sqrt_mean(jnp.array([0.2, 5.0]))
    assert float(found[1]) == pytest.approx(float(found[0]) / math.sqrt(5.0), rel=1e-5)


@pytest.mark.parametrize("n", [2, 8])
def test_saturation_factors(n):
    square, wide = {"w": jnp.ones((4, 4))}, {"w": jnp.ones((4, 6))}
    mp = ns.marchenko_pastur_sqrt_mean

    def factor(grads, geometry, axes=HIDDEN, **options):
        return float(
            jax.jit(
                lambda n: ns.saturation_factor(
                    grads, n, geometry=geometry, matrix_axes=axes, **options
                )
            )(n)
        )

    assert factor(square, "l2") == 1.0
    assert factor(square, "sign") == pytest.approx(math.pi / 2 * float(ns.c4(n)) ** 2)
    assert factor(square, "sign", sqrt_bias="gaussian") == pytest.approx(math.pi / 2)
    one_square = float(mp(1 / (n - 1)) / mp(1.0)) ** 2
    assert factor(square, "spectral") == pytest.approx(one_square)
    assert factor(wide, "spectral") == 1.0
    two = {"w": jnp.ones((2, 4, 4))}
    axes = {"w": MatrixAxes("hidden", (0,), (1,), (2,))}
    assert factor(two, "spectral", axes) == 1.0


def test_saturation_factor_of_eight_draws():
    square = {"w": jnp.ones((4, 4))}
    sign = ns.saturation_factor(square, 8, geometry="sign")
    spectral = ns.saturation_factor(square, 8, geometry="spectral", matrix_axes=HIDDEN)
    assert float(sign) == pytest.approx(1.463, abs=5e-4)
    assert float(spectral) == pytest.approx(1.338, abs=5e-4)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(
    ("relative", "saturated"),
    [(0.89, False), (0.91, True), (1.09, True), (1.11, False)],
)
def test_saturated_within_a_tenth_of_the_constant(geometry, relative, saturated):
    moments = ns.Moments({"w": jnp.ones((4, 4))}, None, jnp.int32(8), jnp.float32(24.0))
    layout = {"geometry": geometry, "matrix_axes": HIDDEN}
    factor = float(ns.saturation_factor(moments.mean, 8, **layout))
    found = ns.measurement_of(relative * factor * 24.0, 1.0, moments.count)
    answer = jax.jit(lambda *both: ns.is_saturated(*both, **layout))(found, moments)
    assert bool(answer) == saturated


def test_invalid_measurement_is_not_saturated():
    moments = ns.Moments({"w": jnp.ones(4)}, None, jnp.int32(1), jnp.float32(0.0))
    found = ns.measurement_of(0.0, 1.0, moments.count)
    assert not ns.is_saturated(found, moments, geometry="sign")
    moments = moments._replace(weight=jnp.float32(8.0))
    found = ns.measurement_of(8.0 * math.pi / 2, 1.0, moments.count)
    assert not ns.is_saturated(found, moments, geometry="sign")


def test_infinite_value_is_not_saturated():
    moments = ns.Moments({"w": jnp.ones(4)}, None, jnp.int32(8), jnp.float32(8.0))
    found = ns.measurement_of(1.0, 0.0, moments.count)
    assert found.valid and not ns.is_saturated(found, moments, geometry="sign")
