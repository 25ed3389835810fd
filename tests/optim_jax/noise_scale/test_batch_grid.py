"""Grids of batch sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.noise_scale.batch_grid import INT32_MAX, is_on_grid, round_to_grid
from tests.optim_jax.noise_scale import numpy_controller

RELEASED = ((1, 32), (128, 128))
GRIDS = (1, 7, 64, RELEASED, ((64, 32), (100, 50), (101, 64)), ((5, 3), (6, 100)))


@pytest.mark.parametrize("quantum", GRIDS, ids=str)
def test_points_are_those_listed_one_by_one(quantum):
    points = numpy_controller.grid_points(quantum, 1000)
    found = [size for size in range(-5, 1001) if is_on_grid(size, quantum)]
    assert found == points


@pytest.mark.parametrize("rounding", ["ceil", "floor"])
@pytest.mark.parametrize("quantum", GRIDS, ids=str)
def test_rounding_finds_the_next_point_listed(quantum, rounding):
    points = numpy_controller.grid_points(quantum, 1500)
    sizes = [-3.0, 0.0, *np.linspace(0.3, 1000.0, 700), *map(float, points[:40])]
    reference = numpy_controller.up if rounding == "ceil" else numpy_controller.down
    expected = [reference(size, points) for size in sizes]
    assert [round_to_grid(size, quantum, rounding) for size in sizes] == expected
    traced = jax.jit(lambda size: round_to_grid(size, quantum, rounding))
    rounded = traced(jnp.asarray(sizes))
    assert rounded.dtype == jnp.int32
    np.testing.assert_array_equal(rounded, expected)


def test_the_released_grid_steps_by_32_and_from_128_on_by_128():
    sizes = [size for size in range(64, 800) if is_on_grid(size, RELEASED)]
    assert sizes == [64, 96, 128, 256, 384, 512, 640, 768]
    assert round_to_grid(127.9, RELEASED, "floor") == 96
    assert round_to_grid(96.1, RELEASED, "ceil") == 128
    assert round_to_grid(255.9, RELEASED, "floor") == 128


@pytest.mark.parametrize("make", [float, jnp.float32], ids=["host", "array"])
def test_an_integer_off_by_rounding_errors_stays_the_integer(make):
    for size in (3, 77, 640):
        for error in (-5e-7, 5e-7):
            off = make(size * (1 + error))
            assert round_to_grid(off, 1, "ceil") == size
            assert round_to_grid(off, 1, "floor") == size
        above, below = make(size * (1 + 2e-6)), make(size * (1 - 2e-6))
        assert round_to_grid(above, 1, "ceil") == size + 1
        assert round_to_grid(below, 1, "floor") == size - 1


def test_points_stay_where_they_are_however_large():
    for size in (3_000_001, 2**24 - 1, 2**31 - 2):
        assert round_to_grid(size, 1, "ceil") == size
        assert round_to_grid(size, 1, "floor") == size
    for size in (3_000_001, 2**24 - 1, 2**30):
        assert round_to_grid(jnp.asarray(size), 1, "ceil") == size
        assert round_to_grid(jnp.asarray(size), 1, "floor") == size


@pytest.mark.parametrize("make", [float, jnp.float32], ids=["host", "array"])
@pytest.mark.parametrize("quantum", [1, 1000, RELEASED], ids=str)
def test_sizes_beyond_int32_give_its_largest_grid_point(quantum, make):
    step = quantum if isinstance(quantum, int) else 128
    for size in (2.0**31, 3e9, 1e30):
        for rounding in ("ceil", "floor"):
            rounded = int(round_to_grid(make(size), quantum, rounding))
            assert rounded == INT32_MAX // step * step


def test_an_infinite_size_in_the_graph_gives_the_largest_point():
    assert round_to_grid(jnp.inf * jnp.ones([]), 64, "ceil") == INT32_MAX // 64 * 64


def test_sizes_below_the_grid_give_its_smallest_point():
    for rounding in ("ceil", "floor"):
        assert round_to_grid(0.0, 64, rounding) == 64
        assert round_to_grid(jnp.float32(-1e30), 64, rounding) == 64


def test_integers_of_numpy_are_integers_and_booleans_are_not():
    assert is_on_grid(np.int64(128), np.int32(64))
    assert not is_on_grid(True, 1)
    assert not is_on_grid(64.0, 64)


@pytest.mark.parametrize(
    "quantum",
    [
        0,
        -4,
        True,
        2.0,
        "32",
        None,
        (),
        (32,),
        ((1, 32, 3),),
        ((0, 32),),
        ((1, 0),),
        ((1, 32), (1, 64)),
        ((128, 32), (1, 128)),
        ((1, 1.5),),
        2**31,
        ((2**31 - 5, 2**30),),
    ],
    ids=str,
)
def test_a_bad_quantum_is_an_error(quantum):
    with pytest.raises(ValueError, match="quantum must be an int >= 1 or pairs"):
        round_to_grid(10.0, quantum, "ceil")


def test_bad_sizes_and_roundings_are_errors():
    with pytest.raises(ValueError, match="rounding must be one of ceil, floor"):
        round_to_grid(10.0, 1, "nearest")
    for size in (np.nan, np.inf, None, "64"):
        with pytest.raises(ValueError, match="size must be a finite number"):
            round_to_grid(size, 1, "ceil")
