"""The alignment signal and the direct noise against loops over the draws."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from optim_jax import MatrixAxes
from optim_jax import noise_scale as ns
from tests.optim_jax.noise_scale.numpy_estimates import (
    AXES,
    GEOMETRIES,
    draw_gradients,
    matrices,
    nuclear_norm,
    weighted_mean,
)

WEIGHTS = np.array([3.0, 1.0, 2.0, 5.0])
SHAPES = {"wide": (3, 5), "layers": (2, 3, 4), "bias": (5,)}
HIDDEN = MatrixAxes("hidden")
FUNCTIONS = [ns.alignment_signal, ns.direct_noise]


def layout_of(geometry):
    return {
        "geometry": geometry,
        "matrix_axes": {name: AXES[name] for name in SHAPES},
    }


def compute(function, stacked, weights=1.0, **options):
    run = functools.partial(function, sample_weights=weights, **options)
    return float(jax.jit(lambda stacked: run(stacked))(stacked))


def direction(grads, geometry):
    """Steepest-descent direction of a tree in NumPy."""
    if geometry == "l2":
        norm = math.sqrt(sum(np.square(leaf).sum() for leaf in grads.values()))
        return {name: leaf / norm for name, leaf in grads.items()}
    return {name: np.sign(leaf) for name, leaf in grads.items()}


def inner(a, b, geometry):
    """<p(a), b> in NumPy."""
    if geometry != "spectral":
        p = direction(a, geometry)
        return sum(np.sum(p[name] * b[name]) for name in b)
    total = 0.0
    for name in b:
        pairs = zip(matrices(name, a[name]), matrices(name, b[name]), strict=True)
        for left, right in pairs:
            u, _, vt = np.linalg.svd(left, full_matrices=False)
            total += np.sum(u @ vt * right)
    return total


def dual_norm(grads, geometry):
    if geometry == "l2":
        return math.sqrt(sum(np.square(leaf).sum() for leaf in grads.values()))
    if geometry == "sign":
        return sum(np.abs(leaf).sum() for leaf in grads.values())
    return sum(
        nuclear_norm(matrix)
        for name, leaf in grads.items()
        for matrix in matrices(name, leaf)
    )


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("weights", [WEIGHTS, np.full(4, 2.0)], ids=["b_j", "b"])
def test_alignment_is_the_mean_inner_product_with_the_direction_of_the_others(
    geometry, weights, x64
):
    stacked = draw_gradients(4, shapes=SHAPES)
    wanted = 0.0
    for j in range(4):
        others = {
            name: sum(weights[i] * leaf[i] for i in range(4) if i != j)
            for name, leaf in stacked.items()
        }
        own = {name: leaf[j] for name, leaf in stacked.items()}
        wanted += weights[j] * inner(others, own, geometry) / weights.sum()
    found = compute(ns.alignment_signal, stacked, weights, **layout_of(geometry))
    assert found == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_direct_noise_is_the_mean_norm_of_the_deviations(geometry, x64):
    stacked, b, n = draw_gradients(4, shapes=SHAPES), 3.0, 4
    deviations = [
        {name: leaf[j] - leaf.mean(0) for name, leaf in stacked.items()}
        for j in range(n)
    ]
    mean = np.mean([dual_norm(deviation, geometry) for deviation in deviations])
    found = compute(ns.direct_noise, stacked, b, **layout_of(geometry))
    assert found == pytest.approx(math.sqrt(b * n / (n - 1)) * mean, rel=1e-10)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_direct_noise_of_unequal_weights(geometry, x64):
    stacked, total = draw_gradients(4, shapes=SHAPES), WEIGHTS.sum()
    norms = []
    for j, b in enumerate(WEIGHTS):
        deviation = {
            name: leaf[j] - weighted_mean(leaf, WEIGHTS)
            for name, leaf in stacked.items()
        }
        scale = math.sqrt(b / (1.0 - b / total))
        norms.append(dual_norm(deviation, geometry) * scale)
    found = compute(ns.direct_noise, stacked, WEIGHTS, **layout_of(geometry))
    assert found == pytest.approx(np.mean(norms), rel=1e-10)


def test_two_draws_under_l2_have_a_closed_form(x64):
    # Each is compared with the other: <a, b> (1/|a| + 1/|b|) / 2.
    a, b = np.array([3.0, 4.0]), np.array([1.0, 0.0])
    found = compute(ns.alignment_signal, np.stack([a, b]), geometry="l2")
    assert found == pytest.approx(3.0 * (1 / 5 + 1) / 2, rel=1e-12)


# Many draws.


def gaussian(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_alignment_vanishes_on_pure_noise_where_the_mean_does_not(geometry):
    # Two hundred independent matrices in one tree; under l2, whose norm is that of the
    # whole tree, two hundred trees.
    draws = gaussian(0, 8, 200, 4, 8)
    layout = {
        "geometry": geometry,
        "matrix_axes": MatrixAxes("hidden", (0,), (1,), (2,)),
    }

    def signals(draws):
        moments = ns.moments_from_stacked(draws, **layout)
        mean = jnp.sqrt(ns.noise_scale(moments, **layout).signal_sq)
        return ns.alignment_signal(draws, **layout), mean

    trees = jax.vmap(signals, in_axes=1) if geometry == "l2" else signals
    aligned, mean = jax.jit(trees)(draws)
    assert abs(np.mean(aligned)) < 0.05 * np.mean(mean)


@pytest.mark.parametrize("geometry", ["sign", "spectral"])
def test_alignment_is_below_the_dual_norm_and_tends_to_it(geometry):
    # The norm of the mean gradient is above both.
    gradient = np.ones((200, 4, 8), np.float32) * np.linspace(0.5, 1.0, 8)
    axes = MatrixAxes("hidden", (0,), (1,), (2,))
    exact = dual_norm_of_stack(gradient, geometry)
    ratios = []
    for samples in (1.0, 100.0):
        draws = gradient + gaussian(1, 8, 200, 4, 8) / math.sqrt(samples)
        layout = {"geometry": geometry, "matrix_axes": axes}
        found = compute(ns.alignment_signal, draws, samples, **layout) / exact
        moments = ns.moments_from_stacked(draws, sample_weights=samples, **layout)
        mean = math.sqrt(ns.noise_scale(moments, **layout).signal_sq) / exact
        assert found < 1.005 and found < mean + 0.001
        ratios.append(found)
    assert ratios[0] < ratios[1] and ratios[1] == pytest.approx(1.0, abs=0.03)


def dual_norm_of_stack(stack, geometry):
    if geometry == "sign":
        return np.abs(stack).sum()
    return np.linalg.svd(stack, compute_uv=False).sum()


@pytest.mark.parametrize("n", [2, 8])
def test_direct_noise_of_gaussian_coordinates_is_the_mean_absolute_deviation(n):
    draws = 3.0 + 2.0 * gaussian(2, n, 40_000)
    found = compute(ns.direct_noise, draws, geometry="sign") / 40_000
    assert found == pytest.approx(2.0 * math.sqrt(2 / math.pi), rel=0.01)


@pytest.mark.parametrize("n", [2, 4])
def test_direct_noise_of_square_gaussian_matrices_is_the_quarter_circle(n):
    draws = gaussian(3, n, 64, 64)
    found = compute(ns.direct_noise, draws, geometry="spectral", matrix_axes=HIDDEN)
    assert found / 64**1.5 == pytest.approx(8 / (3 * math.pi), rel=0.01)


def test_direct_noise_of_l2_is_the_root_of_the_variance_in_many_dimensions():
    draws = gaussian(4, 4, 40_000)
    found = compute(ns.direct_noise, draws, geometry="l2")
    assert found == pytest.approx(200.0, rel=0.01)


# Options that all geometries share.


@pytest.mark.parametrize("function", FUNCTIONS)
def test_products_alone_give_the_spectral_value(function):
    draws = {"wide": draw_gradients(4, shapes=SHAPES, dtype=np.float32)["wide"]}
    layout = {"geometry": "spectral", "matrix_axes": {"wide": HIDDEN}}
    exact = compute(function, draws, WEIGHTS, **layout)
    found = compute(function, draws, WEIGHTS, method="matmul", **layout)
    assert found == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_block_weights_scale_the_dual_norms(function, geometry, x64):
    stacked, layout = draw_gradients(4, shapes=SHAPES), layout_of(geometry)
    weights = {"wide": 0.5, "layers": 2.0, "bias": 3.0}
    found = compute(function, stacked, block_weights=weights, **layout)
    scaled = {name: weights[name] * leaf for name, leaf in stacked.items()}
    assert found == pytest.approx(compute(function, scaled, **layout), rel=1e-10)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_draws_of_weight_zero_do_not_count_whatever_they_hold(function, geometry):
    stacked = draw_gradients(4, shapes=SHAPES, dtype=np.float32)
    kept = {name: leaf[[0, 1, 3]].copy() for name, leaf in stacked.items()}
    for leaf in stacked.values():
        leaf[2] = np.nan
    weights, layout = np.array([3.0, 1.0, 0.0, 5.0]), layout_of(geometry)
    found = compute(function, stacked, weights, **layout)
    assert found == pytest.approx(
        compute(function, kept, weights[weights > 0], **layout), rel=1e-5
    )


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_one_draw_with_samples_gives_zero_and_no_nan(function, geometry):
    stacked = draw_gradients(4, shapes=SHAPES, dtype=np.float32)
    weights = np.array([0.0, 2.0, 0.0, 0.0])
    assert compute(function, stacked, weights, **layout_of(geometry)) == 0.0


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_nan_in_a_draw_that_counts_is_seen(function, geometry):
    stacked = draw_gradients(3, shapes=SHAPES, dtype=np.float32)
    stacked["wide"][1, 0, 0] = np.nan
    assert math.isnan(compute(function, stacked, **layout_of(geometry)))


def test_coordinate_that_one_draw_alone_touches_does_not_align_with_itself():
    # The others sum up to zero there, but for rounding, and its sign would be noise.
    draws = np.zeros((6, 3, 1000), np.float32)
    for j in range(6):
        draws[j, :, j::6] = gaussian(5 + j, 3, len(range(j, 1000, 6)))
    weights = np.array([3.0, 1.0, 7.0, 5.0, 0.1, 0.7])
    assert compute(ns.alignment_signal, draws, weights, geometry="sign") == 0.0
    assert compute(ns.alignment_signal, draws, weights, geometry="l2") == 0.0


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_result_is_in_the_precision_of_the_statistics(function, dtype, x64):
    draws = jnp.asarray(gaussian(6, 3, 4), dtype)
    wanted = "float64" if dtype == "float64" else "float32"
    assert function(draws, geometry="sign").dtype == wanted


# Over ranks.


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("per_rank", [1, 2])
def test_ranks_answer_for_all_draws(function, geometry, per_rank, x64):
    ranks, layout = 4, layout_of(geometry)
    n = ranks * per_rank
    stacked = draw_gradients(n, shapes=SHAPES)
    weights = np.arange(1.0, n + 1.0)
    expected = compute(function, stacked, weights, **layout)

    def local(stacked, weights):
        return function(stacked, sample_weights=weights, axis_name="ranks", **layout)

    mesh = jax.make_mesh(
        (ranks,),
        ("ranks",),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:ranks],
    )
    for check_vma in (True, False) if geometry == "sign" else (True,):
        mapped = jax.shard_map(
            local, mesh=mesh, in_specs=P("ranks"), out_specs=P(), check_vma=check_vma
        )
        found = float(jax.jit(mapped)(stacked, weights))
        assert found == pytest.approx(expected, rel=1e-10)
    if geometry == "spectral":  # LAPACK under vmap decomposes a batch at once
        return
    by_rank = jax.tree.map(
        lambda leaf: leaf.reshape(ranks, per_rank, *leaf.shape[1:]), (stacked, weights)
    )
    mapped = jax.vmap(local, axis_name="ranks", out_axes=None)
    assert float(jax.jit(mapped)(*by_rank)) == pytest.approx(expected, rel=1e-10)


# Errors.


@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_draw_is_refused(function):
    with pytest.raises(ValueError, match="at least 2 .* axis 0 of the gradients"):
        function({"w": jnp.ones((1, 3))}, geometry="sign")
    mapped = jax.vmap(
        functools.partial(function, geometry="sign", axis_name="ranks"),
        axis_name="ranks",
    )
    with pytest.raises(ValueError, match="at least 2 .* axis 'ranks' with axis 0"):
        mapped({"w": jnp.ones((1, 1, 3))})


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"geometry": "l1"}, "geometry must be one of"),
        ({"geometry": "sign", "method": "qr"}, "method must be one of eigh, matmul"),
        ({"geometry": "sign", "block_weights": {"x": 1.0}}, "block_weights has no"),
        ({"geometry": "sign", "sample_weights": [1.0]}, r"have the shape \(2,\)"),
        ({"geometry": "spectral"}, "needs matrix_axes"),
    ],
)
def test_options_that_do_not_fit_are_refused(function, options, message):
    with pytest.raises(ValueError, match=message):
        function({"w": jnp.ones((2, 2, 2))}, **options)
