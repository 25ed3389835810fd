"""Every factor is solved once, by a device with room, and comes home."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim_jax
from optim_jax.preconditioning.routing import make_route

SHAPES = {"a": (5, 8, 8), "b": (3, 8, 4), "c": (8,), "d": (1, 4, 4)}


def _layout(devices):
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
    axes = optim_jax.MatrixAxes("hidden", (0,), (1,), (2,))
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()
    }
    return optim_jax.plan_preconditioners(
        params,
        max_preconditioner_dim=8,
        target_dimensionality=2,
        mesh=mesh,
        matrix_axes={n: axes if len(s) == 3 else None for n, s in SHAPES.items()},
    ).layout


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_everything_is_solved_once_and_comes_home(devices):
    layout = _layout(devices)
    for stack in layout.stacks:
        route = make_route(layout, stack)
        devices_, local = route.home.shape
        lanes, share = route.lanes, route.solved.shape[1]
        names = np.arange(devices * local).reshape(devices, local)
        # Play the exchange: what device s sends in its lanes to t.
        pool = np.concatenate([names, np.full((devices, 1), -1)], axis=1)
        sent = np.take_along_axis(pool, route.outgoing, axis=1)
        received = (
            sent.reshape(devices, devices, lanes)
            .transpose(1, 0, 2)
            .reshape(devices, devices * lanes)
        )
        pool = np.concatenate([names, received, np.full((devices, 1), -1)], axis=1)
        solved = np.take_along_axis(pool, route.solved, axis=1)
        assert sorted(solved[solved >= 0]) == sorted(names[route.real])
        assert share == -(-int(route.real.sum()) // devices)
        back = np.take_along_axis(solved, route.returned, axis=1)
        back = (
            back.reshape(devices, devices, lanes)
            .transpose(1, 0, 2)
            .reshape(devices, devices * lanes)
        )
        pool = np.concatenate([solved, back], axis=1)
        home = np.take_along_axis(pool, route.home, axis=1)
        np.testing.assert_array_equal(home[route.real], names[route.real])
        assert devices_ == devices


def test_one_device_moves_nothing():
    layout = _layout(1)
    assert all(make_route(layout, stack).is_identity for stack in layout.stacks)


def test_only_the_excess_moves():
    layout = _layout(4)
    for stack in layout.stacks:
        route = make_route(layout, stack)
        share = route.solved.shape[1]
        excess = np.maximum(route.real.sum(axis=1) - share, 0).sum()
        local = route.home.shape[1]
        assert np.sum(route.outgoing < local) == excess
