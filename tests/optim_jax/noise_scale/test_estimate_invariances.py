"""What leaves a noise scale alone, and what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax import MatrixAxes
from optim_jax import noise_scale as ns
from tests.optim_jax.noise_scale.numpy_estimates import (
    GEOMETRIES,
    draw_gradients,
    layout_of,
)

HIDDEN = {"w": MatrixAxes("hidden")}
RTOL = 1e-9


def measure(stacked, weights=1.0, **layout):
    @jax.jit
    def measured(stacked):
        moments = ns.moments_from_stacked(stacked, sample_weights=weights, **layout)
        return ns.noise_scale(moments, **layout)

    return measured(stacked)


def assert_same(found, expected, noise=1.0, signal=1.0):
    np.testing.assert_allclose(found.noise_sq, noise * expected.noise_sq, rtol=RTOL)
    np.testing.assert_allclose(found.signal_sq, signal * expected.signal_sq, rtol=RTOL)
    ratio = noise / signal
    np.testing.assert_allclose(found.value, ratio * expected.value, rtol=RTOL)


def is_same(found, expected):
    return abs(float(found.value) / float(expected.value) - 1.0) < 1e-6


def orthogonal(size, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_scale_of_the_loss_is_lost(geometry, x64):
    # 6.
    layout, stacked = layout_of(geometry), draw_gradients(4)
    expected = measure(stacked, **layout)
    scaled = {name: 3.0 * leaf for name, leaf in stacked.items()}
    assert_same(measure(scaled, **layout), expected, noise=9.0, signal=9.0)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_noise_scale_is_in_units_of_a_sample(geometry, x64):
    # 6. Counting 2048 tokens for each sequence.
    layout, stacked = layout_of(geometry), draw_gradients(4)
    weights = np.array([1.0, 2.0, 3.0, 1.0])
    expected = measure(stacked, weights, **layout)
    assert_same(measure(stacked, 2048 * weights, **layout), expected, noise=2048.0)


def test_sign_survives_permutations_sign_flips_and_any_partition(x64):
    # 7.
    draws = draw_gradients(4, shapes={"w": (12,)})["w"]
    expected = measure({"w": draws}, geometry="sign")
    rng = np.random.default_rng(1)
    flipped = (draws * rng.choice([-1.0, 1.0], size=12))[:, rng.permutation(12)]
    assert_same(measure({"w": flipped}, geometry="sign"), expected)
    parts = {"a": draws[:, :5].reshape(4, 5, 1), "b": draws[:, 5], "c": draws[:, 6:]}
    assert_same(measure(parts, geometry="sign"), expected)
    rotated = draws @ orthogonal(12)
    assert not is_same(measure({"w": rotated}, geometry="sign"), expected)


def test_l2_survives_orthogonal_maps_and_any_partition(x64):
    # 7.
    draws = draw_gradients(4, shapes={"w": (12,)})["w"]
    expected = measure({"w": draws}, geometry="l2")
    assert_same(measure({"w": draws @ orthogonal(12)}, geometry="l2"), expected)
    parts = {"a": draws[:, :5].reshape(4, 5, 1), "b": draws[:, 5], "c": draws[:, 6:]}
    assert_same(measure(parts, geometry="l2"), expected)


@pytest.mark.parametrize("side", ["row", "col", "tightest"])
def test_spectral_survives_orthogonal_maps_on_both_sides_of_a_matrix(side, x64):
    # 7.
    layout = {"geometry": "spectral", "matrix_axes": HIDDEN, "side": side}
    draws = draw_gradients(4, shapes={"w": (4, 6)})["w"]
    expected = measure({"w": draws}, **layout)
    turned = orthogonal(4) @ draws @ orthogonal(6, seed=1)
    assert_same(measure({"w": turned}, **layout), expected)
    halves = {"a": draws[:, :, :3], "b": draws[:, :, 3:]}
    layout["matrix_axes"] = {name: MatrixAxes("hidden") for name in halves}
    assert not is_same(measure(halves, **layout), expected)


def test_default_side_does_not_see_how_a_matrix_is_stored(x64):
    draws = draw_gradients(4, shapes={"w": (4, 6)})["w"]
    stored, transposed = (
        measure({"w": array}, geometry="spectral", matrix_axes={"w": axes})
        for array, axes in (
            (draws, MatrixAxes("hidden")),
            (draws.transpose(0, 2, 1), MatrixAxes("hidden")),
        )
    )
    assert_same(transposed, stored)


@pytest.mark.parametrize("side", ["row", "col", "min"])
def test_axes_say_what_is_a_row_whatever_the_layout_of_the_leaf(side, x64):
    draws = draw_gradients(4, shapes={"w": (4, 4)})["w"]
    flax, torch = (
        measure({"w": array}, geometry="spectral", side=side, matrix_axes={"w": axes})
        for array, axes in (
            (draws, MatrixAxes("hidden", (), (0,), (1,))),
            (draws.transpose(0, 2, 1), MatrixAxes("hidden", (), (1,), (0,))),
        )
    )
    assert_same(torch, flax)


@pytest.mark.parametrize("side", ["row", "col", "min", "tightest"])
def test_diagonal_matrices_have_the_sign_noise_scale_of_their_diagonals(side, x64):
    # 8.
    vectors = draw_gradients(4, shapes={"v": (5,)})["v"]
    matrices = jax.vmap(jnp.diag)(vectors)
    layout = {"geometry": "spectral", "matrix_axes": HIDDEN, "side": side}
    assert_same(measure({"w": matrices}, **layout), measure(vectors, geometry="sign"))


def test_matrices_of_one_row_have_the_l2_noise_scale(x64):
    # 9. The noise of the short side is the root of the trace of C.
    draws = draw_gradients(4, shapes={"w": (1, 7)})["w"]
    found = measure({"w": draws}, geometry="spectral", matrix_axes=HIDDEN)
    assert_same(found, measure({"w": draws}, geometry="l2"))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equal_gradients_have_no_noise(geometry, x64):
    # 10.
    layout, stacked = layout_of(geometry), draw_gradients(1)
    repeated = {name: np.repeat(leaf, 4, axis=0) for name, leaf in stacked.items()}
    found = measure(repeated, **layout)
    assert float(found.value) == 0.0 and found.valid


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_order_of_the_draws_is_irrelevant(geometry, x64):
    # 10.
    layout, stacked = layout_of(geometry), draw_gradients(4)
    weights = np.array([1.0, 2.0, 3.0, 1.0])
    expected = measure(stacked, weights, **layout)
    order = [2, 0, 3, 1]
    permuted = {name: leaf[order] for name, leaf in stacked.items()}
    assert_same(measure(permuted, weights[order], **layout), expected)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_constant_added_to_all_gradients_changes_the_signal_only(geometry, x64):
    # 10.
    layout, stacked = layout_of(geometry), draw_gradients(4)
    expected = measure(stacked, **layout)
    rng = np.random.default_rng(2)
    moved = {
        name: leaf + 5.0 * rng.normal(size=leaf.shape[1:])
        for name, leaf in stacked.items()
    }
    found = measure(moved, **layout)
    np.testing.assert_allclose(found.noise_sq, expected.noise_sq, rtol=RTOL)
    assert float(found.signal_sq) > 2.0 * float(expected.signal_sq)
