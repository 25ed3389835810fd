import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax import MatrixAxes
from optim_jax import noise_scale as ns
from tests.optim_jax.noise_scale.numpy_estimates import GEOMETRIES


def measure(draws, geometry, weight=1.0):
    layout = {"geometry": geometry, "matrix_axes": MatrixAxes("hidden")}

    @jax.jit
    def measured(draws):
        moments = ns.moments_from_stacked(draws, sample_weights=weight, **layout)
        return ns.noise_scale(moments, **layout), moments

    return measured(draws)


def gaussian(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("n", [2, 6, 8])
@pytest.mark.parametrize("weight", [1.0, 1000.0])
def test_equal_gradients_are_refused_also_where_their_mean_is_rounded(
    geometry, n, weight
):
    draws = np.repeat(gaussian(1, 6, 8), n, axis=0)
    with pytest.raises(ValueError, match=f"the {n} gradients of a measurement are eq"):
        ns.check_independent_draws(*measure(draws, geometry, weight))


def test_measurement_without_any_noise_is_refused():
    moments = ns.Moments({}, {}, jnp.int32(8), jnp.float32(8.0))
    with pytest.raises(ValueError, match=r"noise_sq = 0, signal_sq = 3\)"):
        ns.check_independent_draws(ns.measurement_of(0.0, 3.0, 8), moments)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_small_noise_is_accepted(geometry):
    # A hundred thousand times smaller than the mean.
    draws = 100.0 + 1e-3 * gaussian(8, 6, 8)
    ns.check_independent_draws(*measure(draws, geometry))


@pytest.mark.parametrize(
    ("noise", "signal", "count"), [(0.0, 3.0, 1), (0.0, 0.0, 8), (np.nan, 3.0, 8)]
)
def test_nothing_is_said_of_one_draw_no_signal_or_nan(noise, signal, count):
    moments = ns.Moments({}, {}, jnp.int32(count), jnp.float32(8.0))
    ns.check_independent_draws(ns.measurement_of(noise, signal, count), moments)
