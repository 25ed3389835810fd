"""What is a valid measurement, and its value: the table of edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax import noise_scale as ns
from tests.optim_jax.noise_scale.numpy_estimates import AXES, GEOMETRIES

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("noise", "signal", "count", "value", "valid"),
    [
        pytest.param(6.0, 2.0, 2, 3.0, True, id="ordinary"),
        pytest.param(6.0, 2.0, 1, 0.0, False, id="one draw"),
        pytest.param(6.0, 2.0, 0, 0.0, False, id="no draw"),
        pytest.param(0.0, 0.0, 8, 0.0, False, id="all zero"),
        pytest.param(0.0, 2.0, 8, 0.0, True, id="no noise"),
        pytest.param(6.0, 0.0, 8, INF, True, id="no signal"),
        pytest.param(6.0, -1.0, 8, INF, True, id="negative signal"),
        pytest.param(0.0, -1.0, 8, 0.0, True, id="negative signal without noise"),
        pytest.param(NAN, 2.0, 8, 0.0, False, id="noise NaN"),
        pytest.param(6.0, NAN, 8, 0.0, False, id="signal NaN"),
        pytest.param(INF, 2.0, 8, 0.0, False, id="noise infinite"),
        pytest.param(6.0, INF, 8, 0.0, False, id="signal infinite"),
        pytest.param(6.0, -INF, 8, 0.0, False, id="signal minus infinity"),
    ],
)
def test_value_and_validity(noise, signal, count, value, valid):
    for function in (ns.measurement_of, jax.jit(ns.measurement_of)):
        found = function(noise, signal, count)
        assert bool(found.valid) == valid
        assert float(found.value) == value
        np.testing.assert_equal(float(found.noise_sq), noise)
        np.testing.assert_equal(float(found.signal_sq), signal)
        assert {x.dtype for x in found[:3]} == {jnp.dtype("float32")}
        assert found.leaf_noise is None and found.leaf_signal is None


def measure(moments, geometry, axes=None):
    return jax.jit(lambda m: ns.noise_scale(m, geometry=geometry, matrix_axes=axes))(
        moments
    )


def push_draws(geometry, *draws):
    layout = {"geometry": geometry, "matrix_axes": {"w": AXES["square"]}}
    moments = ns.moments_init({"w": draws[0]}, **layout)
    for draw in draws:
        moments = ns.moments_push(moments, {"w": draw}, 4.0, **layout)
    return measure(moments, geometry, layout["matrix_axes"])


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_one_draw_that_is_known_at_run_time_only_is_invalid_without_nan(geometry):
    found = push_draws(geometry, jnp.eye(3))
    assert not found.valid
    assert float(found.noise_sq) == 0.0 and float(found.signal_sq) > 0.0
    assert float(found.value) == 0.0


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_no_draw_is_invalid_without_nan(geometry):
    layout = {"geometry": geometry, "matrix_axes": {"w": AXES["square"]}}
    moments = ns.moments_init({"w": jnp.eye(3)}, **layout)
    found = measure(moments, geometry, layout["matrix_axes"])
    assert not found.valid
    assert all(float(number) == 0.0 for number in found[:3])


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_that_are_all_zero_are_invalid(geometry):
    found = push_draws(geometry, jnp.zeros((3, 3)), jnp.zeros((3, 3)))
    assert not found.valid and float(found.value) == 0.0


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_noise_without_signal_is_infinite_and_valid(geometry):
    found = push_draws(geometry, jnp.eye(3), -jnp.eye(3))
    assert found.valid and float(found.value) == INF
    assert float(found.signal_sq) == 0.0


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equal_gradients_have_the_value_zero(geometry):
    draw = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), jnp.float32)
    found = push_draws(geometry, draw, draw, draw)
    assert found.valid and float(found.value) == 0.0


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("rubbish", [NAN, INF, -INF])
def test_one_number_that_is_not_finite_makes_the_measurement_invalid(geometry, rubbish):
    bad = jnp.eye(3).at[1, 2].set(rubbish)
    found = push_draws(geometry, jnp.eye(3), bad, 2 * jnp.eye(3))
    assert not found.valid and float(found.value) == 0.0


def test_weight_that_is_not_finite_makes_the_measurement_invalid():
    draws = {"w": jnp.arange(6.0).reshape(2, 3)}

    @jax.jit
    def measured(weights):
        moments = ns.moments_from_stacked(
            draws, sample_weights=weights, geometry="sign"
        )
        return ns.noise_scale(moments, geometry="sign")

    assert measured(jnp.array([1.0, 2.0])).valid
    assert not measured(jnp.array([1.0, NAN])).valid
