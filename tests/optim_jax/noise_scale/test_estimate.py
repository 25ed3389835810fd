"""Noise scales of given gradients: hand examples, closed forms and options."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim_jax import MatrixAxes
from optim_jax import noise_scale as ns
from tests.optim_jax.noise_scale.numpy_estimates import (
    GEOMETRIES,
    SIDES,
    draw_gradients,
    layout_of,
    matrices,
    noise_and_signal,
    noise_of_matrix,
    nuclear_norm,
    weighted_mean,
)

WEIGHTS = np.array([3.0, 1.0, 2.0, 5.0])
HIDDEN = {"w": MatrixAxes("hidden")}


def measure(stacked, weights=1.0, options=None, **layout):
    """Noise scale of stacked gradients; `options` are those of `noise_scale` only."""

    @jax.jit
    def measured(stacked):
        moments = ns.moments_from_stacked(stacked, sample_weights=weights, **layout)
        return ns.noise_scale(moments, **(options or {}), **layout)

    return measured(stacked)


# The paper's definition, on paper and in NumPy.


def test_hand_example_of_sign_and_l2():
    # 1. Two ranks, eight samples.
    stacked = {"w": jnp.array([[3.0, -1.0, 0.0], [1.0, 1.0, 4.0]])}
    sign = measure(stacked, 4.0, geometry="sign")
    assert float(sign.noise_sq) == pytest.approx(128.0)
    assert float(sign.signal_sq) == 16.0
    assert float(sign.value) == pytest.approx(8.0)
    l2 = measure(stacked, 4.0, geometry="l2")
    assert float(l2.noise_sq) == 48.0
    assert float(l2.signal_sq) == pytest.approx(8.0)
    assert float(l2.value) == pytest.approx(6.0)
    debiased = measure(stacked, 4.0, {"signal": "debiased"}, geometry="l2")
    assert float(debiased.signal_sq) == pytest.approx(2.0)
    assert float(debiased.value) == pytest.approx(24.0)


@pytest.mark.parametrize(
    ("side", "method", "rel"),
    [*((side, "eigh", 1e-6) for side in SIDES), ("tightest", "matmul", 1e-3)],
)
def test_hand_example_of_spectral(side, method, rel):
    # 2. Two ranks, four samples.
    stacked = {
        "w": jnp.stack([jnp.diag(jnp.array(d)) for d in ([2.0, 0.0], [0.0, 2.0])])
    }
    layout = {"geometry": "spectral", "matrix_axes": HIDDEN, "side": side}
    found = measure(stacked, 2.0, {"method": method}, **layout)
    assert float(found.noise_sq) == pytest.approx(16.0, rel=rel)
    assert float(found.signal_sq) == pytest.approx(4.0, rel=rel)
    assert float(found.value) == pytest.approx(4.0, rel=rel)


@pytest.mark.parametrize(
    ("geometry", "side"),
    [("l2", "min"), ("sign", "min"), *(("spectral", side) for side in SIDES)],
)
def test_noise_and_signal_are_those_of_numpy(geometry, side, x64):
    stacked = draw_gradients(4)
    found = measure(stacked, WEIGHTS, **layout_of(geometry, side))
    noise, signal = noise_and_signal(stacked, WEIGHTS, geometry, side)
    assert float(found.noise_sq) == pytest.approx(noise, rel=1e-10)
    assert float(found.signal_sq) == pytest.approx(signal, rel=1e-10)
    assert float(found.value) == pytest.approx(noise / signal, rel=1e-10)
    assert found.valid


def test_products_alone_give_the_spectral_noise_scale():
    stacked = draw_gradients(4, shapes={"layers": (2, 3, 4)}, dtype=np.float32)
    axes = {"layers": MatrixAxes("hidden", (0,), (1,), (2,))}
    layout = {"geometry": "spectral", "matrix_axes": axes, "side": "tightest"}
    exact = measure(stacked, WEIGHTS, **layout)
    found = measure(stacked, WEIGHTS, {"method": "matmul"}, **layout)
    assert float(found.noise_sq) == pytest.approx(float(exact.noise_sq), rel=2e-3)
    assert float(found.signal_sq) == pytest.approx(float(exact.signal_sq), rel=2e-3)


def test_stated_noise_and_signal_of_a_noisy_quadratic(x64):
    # 19. Two draws of one sample whose deviations give the stated standard deviations.
    curvature, point = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, -1.0, 0.5, 0.25])
    std = np.array([2.0, 2.0, 1.0, 1.0])
    gradient = curvature * point
    np.testing.assert_array_equal(gradient, [1.0, -2.0, 1.5, 1.0])
    stacked = gradient + std / np.sqrt(2.0) * np.array([[1.0], [-1.0]])
    assert float(measure(stacked, geometry="sign").value) == pytest.approx(
        36 / 30.25, rel=1e-12
    )
    assert float(measure(stacked, geometry="l2").value) == pytest.approx(
        10 / 8.25, rel=1e-12
    )


def test_concatenating_the_deviations_gives_the_trace_of_the_root(x64):
    # 5. tr C^(1/2) is the nuclear norm of the scaled deviations side by side (rows) or
    # below each other (columns), over sqrt(n - 1).
    draws = draw_gradients(4, shapes={"w": (3, 5)})["w"]
    mean = weighted_mean(draws, WEIGHTS)
    scaled = [np.sqrt(b) * (g - mean) for b, g in zip(WEIGHTS, draws, strict=True)]
    for side, axis in (("row", 1), ("col", 0)):
        layout = {"geometry": "spectral", "matrix_axes": HIDDEN, "side": side}
        found = measure({"w": draws}, WEIGHTS, **layout)
        wanted = nuclear_norm(np.concatenate(scaled, axis)) / np.sqrt(3)
        assert float(found.noise_sq) == pytest.approx(wanted**2, rel=1e-10)


def test_tightest_side_is_the_smaller_one_of_each_matrix(x64):
    # 5. Noise in one fixed column of the first matrix, in one fixed row of the second.
    rng = np.random.default_rng(0)
    draws = np.zeros((6, 2, 4, 4))
    draws[:, 0, :, 1], draws[:, 1, 2, :] = rng.normal(size=(2, 6, 4))
    axes = {"w": MatrixAxes("hidden", (0,), (1,), (2,))}
    noise = {
        side: float(
            measure(
                {"w": draws}, geometry="spectral", side=side, matrix_axes=axes
            ).noise_sq
        )
        for side in SIDES
    }
    assert noise["tightest"] < min(noise["row"], noise["col"])
    per_matrix = sum(
        noise_of_matrix(list(draws[:, i]), np.ones(6), "tightest") for i in range(2)
    )
    assert noise["tightest"] == pytest.approx(per_matrix**2, rel=1e-10)
    assert noise["min"] == noise["row"]  # a square matrix: the reduction axes


# Bias of signal and noise.


def test_debiased_signal_is_the_pair_of_two_batch_sizes_and_a_u_statistic(x64):
    # 4. McCandlish et al., 2018, appendix A.1, with small batch b and large batch B.
    stacked, b, n = draw_gradients(5), 3, 5
    flat = np.concatenate([leaf.reshape(n, -1) for leaf in stacked.values()], axis=1)
    large = n * b
    norm_large = np.square(flat.mean(0)).sum()
    norm_small = np.square(flat).sum(1).mean()
    signal = (large * norm_large - b * norm_small) / (large - b)
    noise = (norm_small - norm_large) / (1 / b - 1 / large)
    found = measure(stacked, b, {"signal": "debiased"}, geometry="l2")
    assert float(found.signal_sq) == pytest.approx(signal, rel=1e-10)
    assert float(found.noise_sq) == pytest.approx(noise, rel=1e-10)
    products = flat @ flat.T
    u_statistic = (products.sum() - np.trace(products)) / (n * (n - 1))
    assert float(found.signal_sq) == pytest.approx(u_statistic, rel=1e-10)


def test_negative_debiased_signal_is_valid_with_an_infinite_value():
    stacked = {"w": jnp.array([[1.0, 0.1], [-1.0, 0.1]])}
    options = {"signal": "debiased", "per_leaf": True}
    found = measure(stacked, 1.0, options, geometry="l2")
    assert found.valid and float(found.value) == np.inf
    assert float(found.signal_sq) == pytest.approx(0.01 - 1.0)
    assert float(found.leaf_signal["w"]) == pytest.approx(-np.sqrt(0.99))


@pytest.mark.parametrize("n", [2, 5])
def test_correction_of_the_root_divides_the_noise_by_c4(n, x64):
    stacked = draw_gradients(n)
    plain = measure(stacked, geometry="sign")
    corrected = measure(stacked, 1.0, {"sqrt_bias": "gaussian"}, geometry="sign")
    ratio = float(plain.noise_sq) / float(corrected.noise_sq)
    assert ratio == pytest.approx(float(ns.c4(n)) ** 2, rel=1e-12)
    assert float(plain.signal_sq) == float(corrected.signal_sq)


def test_correction_of_the_root_changes_nothing_under_l2():
    stacked = draw_gradients(3, dtype=np.float32)
    plain = measure(stacked, geometry="l2")
    corrected = measure(stacked, 1.0, {"sqrt_bias": "gaussian"}, geometry="l2")
    assert float(plain.noise_sq) == float(corrected.noise_sq)


# Leaves.


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_noise_and_signal_of_each_leaf(geometry, x64):
    stacked = draw_gradients(4)
    found = measure(stacked, WEIGHTS, {"per_leaf": True}, **layout_of(geometry))
    for name, draws in stacked.items():
        if geometry == "spectral" and not matrices(name, draws[0]):
            assert found.leaf_noise[name] == optax.MaskedNode()
            assert found.leaf_signal[name] == optax.MaskedNode()
            continue
        noise, signal = noise_and_signal({name: draws}, WEIGHTS, geometry)
        assert float(found.leaf_noise[name]) == pytest.approx(noise**0.5, rel=1e-10)
        assert float(found.leaf_signal[name]) == pytest.approx(signal**0.5, rel=1e-10)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_leaves_are_summed_first_and_squared_at_the_end(geometry, x64):
    # 11. Neither a mean of ratios nor a ratio of sums of squares; for l2, where the
    # norm is Euclidean, the squares are what is summed.
    stacked = draw_gradients(4, shapes={"wide": (3, 5), "tall": (6, 4)})
    stacked["tall"] *= 3.0
    layout = layout_of(geometry)
    layout["matrix_axes"] = {name: layout["matrix_axes"][name] for name in stacked}
    found = measure(stacked, 1.0, {"per_leaf": True}, **layout)
    noises = np.array([float(found.leaf_noise[name]) for name in stacked])
    signals = np.array([float(found.leaf_signal[name]) for name in stacked])
    ratio_of_squares = np.square(noises).sum() / np.square(signals).sum()
    if geometry == "l2":
        assert float(found.value) == pytest.approx(ratio_of_squares, rel=1e-10)
        return
    wanted = noises.sum() ** 2 / signals.sum() ** 2
    assert float(found.value) == pytest.approx(wanted, rel=1e-10)
    for wrong in (ratio_of_squares, np.mean(noises**2 / signals**2)):
        assert abs(wanted / wrong - 1.0) > 1e-3


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_block_weights_multiply_the_dual_norms(geometry, x64):
    stacked = draw_gradients(4, shapes={"wide": (3, 5), "tall": (6, 4)})
    layout = layout_of(geometry)
    layout["matrix_axes"] = {name: layout["matrix_axes"][name] for name in stacked}
    weights = {"wide": 0.5, "tall": jnp.float32(2.0)}
    found = measure(stacked, 1.0, {"block_weights": weights}, **layout)
    scaled = {"wide": 0.5 * stacked["wide"], "tall": 2.0 * stacked["tall"]}
    wanted = measure(scaled, 1.0, **layout)
    assert float(found.noise_sq) == pytest.approx(float(wanted.noise_sq), rel=1e-10)
    assert float(found.signal_sq) == pytest.approx(float(wanted.signal_sq), rel=1e-10)


def test_block_weights_may_be_traced():
    stacked = {"a": jnp.ones((2, 3)), "b": 2 * jnp.ones((2, 3))}
    moments = ns.moments_from_stacked(stacked, geometry="sign")

    @jax.jit
    def signal(weight):
        weights = {"a": 1.0, "b": weight}
        return ns.noise_scale(moments, geometry="sign", block_weights=weights).signal_sq

    assert float(signal(0.5)) == pytest.approx((3.0 + 3.0) ** 2)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_leaves_that_do_not_count_change_nothing(geometry):
    stacked = draw_gradients(3, shapes={"wide": (3, 5), "tall": (6, 4)}, dtype="f4")
    axes = {name: MatrixAxes("hidden") for name in stacked}
    whole = {"geometry": geometry, "matrix_axes": axes}
    alone = measure(
        {"wide": stacked["wide"]}, **{**whole, "matrix_axes": {"wide": axes["wide"]}}
    )
    stacked["tall"][:] = np.nan
    masked = measure(stacked, mask={"wide": True, "tall": False}, **whole)
    assert float(masked.noise_sq) == float(alone.noise_sq)
    assert float(masked.signal_sq) == float(alone.signal_sq)
    assert masked.valid


# Options that do not go together.


@pytest.mark.parametrize(
    ("geometry", "options", "message"),
    [
        ("sign", {"signal": "debiased"}, "signal='debiased' .* alignment_signal"),
        ("spectral", {"signal": "debiased"}, "signal='debiased' .* alignment_signal"),
        ("spectral", {"sqrt_bias": "gaussian"}, "use sqrt_bias='none'"),
        ("sign", {"signal": "median"}, "signal must be one of debiased, mean, got"),
        ("sign", {"sqrt_bias": "c4"}, "sqrt_bias must be one of gaussian, none, got"),
        ("sign", {"method": "qr"}, "method must be one of eigh, matmul, got 'qr'"),
        ("sign", {"block_weights": {"x": 1.0}}, "block_weights has no entry"),
    ],
)
def test_options_that_do_not_fit_are_refused(geometry, options, message):
    stacked = {"w": jnp.ones((2, 2, 2))}
    with pytest.raises(ValueError, match=message):
        measure(stacked, 1.0, options, geometry=geometry, matrix_axes=HIDDEN)
