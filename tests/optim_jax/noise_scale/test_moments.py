"""Moments from stacks, loops and merges: the same numbers from any arrangement."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optim_jax import MatrixAxes
from optim_jax import noise_scale as ns
from tests.optim_jax.noise_scale.numpy_estimates import (
    AXES,
    GEOMETRIES,
    SHAPES,
    SIDES,
    covariance,
    draw_gradients,
    layout_of,
    matrices,
    variance,
    weighted_mean,
)

WEIGHTS = np.array([3.0, 1.0, 2.0, 5.0])
# Under `l2` the moments are those of `sign`.
LAYOUTS = [("sign", "min"), *(("spectral", side) for side in SIDES)]


def draw(stacked, index):
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def from_stacked(stacked, **options):
    return jax.jit(lambda draws: ns.moments_from_stacked(draws, **options))(stacked)


def pushing(**layout):
    return jax.jit(lambda moments, *one: ns.moments_push(moments, *one, **layout))


def assert_moments(actual, expected, rtol=1e-12):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol),
        actual,
        expected,
    )


@pytest.mark.parametrize("geometry", ["l2", "sign"])
def test_mean_and_second_moment_are_those_of_numpy(geometry, x64):
    stacked = draw_gradients(4)
    moments = ns.moments_from_stacked(
        stacked, sample_weights=WEIGHTS, **layout_of(geometry)
    )
    for name, draws in stacked.items():
        mean, spread = weighted_mean(draws, WEIGHTS), variance(draws, WEIGHTS) * 3
        np.testing.assert_allclose(moments.mean[name], mean, rtol=1e-12)
        np.testing.assert_allclose(moments.m2[name], spread, rtol=1e-12)
    assert int(moments.count) == 4 and moments.count.dtype == jnp.int32
    assert float(moments.weight) == 11.0


@pytest.mark.parametrize("side", SIDES)
def test_spectral_second_moments_are_gram_matrices_of_the_chosen_side(side, x64):
    stacked = draw_gradients(4)
    moments = ns.moments_from_stacked(
        stacked, sample_weights=WEIGHTS, **layout_of("spectral", side)
    )
    for name, draws in stacked.items():
        found = moments.m2[name]
        if name in ("bias", "scale"):
            assert found == optax.MaskedNode()
            continue
        grams = {}
        for s in ("row", "col"):
            per_draw = [matrices(name, g) for g in draws]
            grams[s] = np.stack(
                [
                    3 * covariance(of_matrix, WEIGHTS, s)
                    for of_matrix in zip(*per_draw, strict=True)
                ]
            )
            if name != "layers":
                grams[s] = grams[s][0]
        if side == "tightest":
            np.testing.assert_allclose(found[0], grams["row"], rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(found[1], grams["col"], rtol=1e-12, atol=1e-12)
        else:
            smaller = min(grams, key=lambda s: (grams[s].shape[-1], s == "col"))
            wanted = grams[smaller if side == "min" else side]
            np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_batch_axes_keep_their_shape_in_the_gram_matrices():
    stacked = {"w": jnp.ones((2, 3, 4, 2, 5))}
    axes = {"w": MatrixAxes("hidden", (1, 2), (0,), (3,))}
    moments = ns.moments_from_stacked(
        stacked, geometry="spectral", matrix_axes=axes, side="tightest"
    )
    assert [gram.shape for gram in moments.m2["w"]] == [(4, 2, 3, 3), (4, 2, 5, 5)]


@pytest.mark.parametrize(("geometry", "side"), LAYOUTS)
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_raw_scanned_and_merged_moments_are_the_centred_ones(
    geometry, side, order, x64
):
    stacked, layout = draw_gradients(4), layout_of(geometry, side)
    expected = from_stacked(stacked, sample_weights=WEIGHTS, **layout)
    raw = from_stacked(stacked, sample_weights=WEIGHTS, centred=False, **layout)
    assert_moments(raw, expected)

    permuted = jax.tree.map(lambda leaf: leaf[np.array(order)], stacked)
    empty = ns.moments_init(draw(stacked, 0), **layout)

    @jax.jit
    def scanned(draws, weights):
        def push(moments, one):
            return ns.moments_push(moments, *one, **layout), None

        return jax.lax.scan(push, empty, (draws, weights))[0]

    assert_moments(scanned(permuted, jnp.asarray(WEIGHTS[order])), expected)

    parts, push = [empty, empty], pushing(**layout)
    for index in range(4):
        half = index // 2
        one = draw(permuted, index)
        parts[half] = push(parts[half], one, WEIGHTS[order][index])
    merge = jax.jit(lambda a, b: ns.moments_merge(a, b, **layout))
    assert_moments(merge(*parts), expected)


@pytest.mark.parametrize(("geometry", "side"), LAYOUTS)
def test_merging_with_empty_moments_changes_nothing(geometry, side):
    layout = layout_of(geometry, side)
    stacked = draw_gradients(3, dtype=np.float32)
    moments = from_stacked(stacked, **layout)
    empty = ns.moments_init(draw(stacked, 0), **layout)
    merge = jax.jit(lambda a, b: ns.moments_merge(a, b, **layout))
    assert_moments(merge(moments, empty), moments, rtol=0.0)
    assert_moments(merge(empty, moments), moments, rtol=0.0)
    assert_moments(merge(empty, empty), empty, rtol=0.0)


def test_moments_begin_with_shapes_as_well_as_with_arrays():
    params = {name: jnp.ones(shape, jnp.bfloat16) for name, shape in SHAPES.items()}
    shapes = jax.eval_shape(lambda: params)
    for side in SIDES:
        layout = layout_of("spectral", side)
        of_arrays = ns.moments_init(params, **layout)
        of_shapes = ns.moments_init(shapes, **layout)
        assert_moments(of_shapes, of_arrays, rtol=0.0)
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(of_arrays))
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(of_arrays)} == {
            "float32",
            "int32",
        }


def test_buffers_of_the_first_moments_are_all_different():
    moments = ns.moments_init({"w": jnp.ones(3)}, geometry="sign")
    push = jax.jit(
        lambda m, g: ns.moments_push(m, g, geometry="sign"), donate_argnums=0
    )
    moments = push(push(moments, {"w": jnp.ones(3)}), {"w": 3 * jnp.ones(3)})
    np.testing.assert_array_equal(moments.m2["w"], 2.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("centred", [True, False])
def test_statistics_are_float32_or_float64_for_float64(dtype, centred, x64):
    stacked = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4)), dtype)}
    wanted = "float64" if dtype == "float64" else "float32"
    for geometry in GEOMETRIES:
        layout = {"geometry": geometry, "matrix_axes": {"w": AXES["square"]}}
        moments = ns.moments_from_stacked(stacked, centred=centred, **layout)
        pushed = ns.moments_push(
            ns.moments_init(draw(stacked, 0), **layout), draw(stacked, 0), **layout
        )
        for found in (moments, pushed):
            assert found.mean["w"].dtype == found.m2["w"].dtype == wanted
            assert found.weight.dtype == wanted


def test_half_precision_is_cast_before_anything_is_subtracted():
    # In bfloat16, with mean 1 and standard deviation 0.01, squares cancel.
    rng = np.random.default_rng(0)
    draws = jnp.asarray(1.0 + 0.01 * rng.normal(size=(8, 4000)), jnp.bfloat16)
    moments = ns.moments_from_stacked({"w": draws}, geometry="sign")
    exact = np.var(np.asarray(draws, np.float64), axis=0, ddof=1)
    np.testing.assert_allclose(moments.m2["w"] / 7, exact, rtol=1e-3)


def test_centred_form_does_not_cancel_in_single_precision_and_raw_one_is_clipped():
    rng = np.random.default_rng(1)
    draws = (100.0 + 1e-3 * rng.normal(size=(8, 100))).astype(np.float32)
    exact = np.var(draws.astype(np.float64), axis=0, ddof=1).mean()
    moments = ns.moments_from_stacked({"w": draws}, geometry="l2")
    assert float(moments.m2["w"].mean()) / 7 == pytest.approx(exact, rel=5e-3)
    raw = ns.moments_from_stacked({"w": draws}, geometry="l2", centred=False)
    unclipped = np.square(draws).sum(0) - 8 * np.square(draws.mean(0))
    assert unclipped.min() < 0.0  # what the clipping is for
    assert float(raw.m2["w"].min()) >= 0.0


# Draws without samples.


@pytest.mark.parametrize(("geometry", "side"), LAYOUTS)
def test_draws_of_weight_zero_do_not_count_whatever_they_hold(geometry, side):
    layout = layout_of(geometry, side)
    stacked = draw_gradients(4, dtype=np.float32)
    for leaf, rubbish in zip(
        stacked.values(), itertools.cycle((np.nan, np.inf, 0.0)), strict=False
    ):
        leaf[1] = rubbish
    weights = np.array([2.0, 0.0, 1.0, 3.0])
    kept = jax.tree.map(lambda leaf: leaf[weights > 0], stacked)
    expected = from_stacked(kept, sample_weights=weights[weights > 0], **layout)
    moments = ns.moments_from_stacked(stacked, sample_weights=weights, **layout)
    assert_moments(moments, expected, rtol=1e-5)
    assert int(moments.count) == 3

    pushed, push = ns.moments_init(draw(kept, 0), **layout), pushing(**layout)
    for index in range(4):
        pushed = push(pushed, draw(stacked, index), weights[index])
    assert_moments(pushed, expected, rtol=1e-5)


# Which leaves are kept.


def test_mean_covers_every_real_leaf_and_second_moment_those_that_count():
    stacked = {
        "w": jnp.ones((2, 3, 4)),
        "bias": jnp.ones((2, 3)),
        "steps": jnp.ones((2, 3), jnp.int32),
        "gone": None,
        "masked": optax.MaskedNode(),
    }
    for geometry, mask in (("sign", {"w": True, "bias": False, "steps": False}),):
        moments = ns.moments_from_stacked(stacked, geometry=geometry, mask=mask)
    node = optax.MaskedNode()
    assert moments.mean["steps"] == moments.m2["steps"] == node
    assert moments.mean["gone"] is None and moments.m2["gone"] is None
    assert moments.mean["masked"] == moments.m2["masked"] == node
    assert moments.m2["bias"] == node
    assert moments.mean["bias"].shape == (3,) and moments.m2["w"].shape == (3, 4)
    pushed = ns.moments_push(moments, draw(stacked, 0), geometry="sign", mask=mask)
    assert int(pushed.count) == 3
    assert jax.tree.structure(pushed) == jax.tree.structure(moments)


# Compilation.


@pytest.mark.parametrize(("geometry", "side"), LAYOUTS)
def test_accumulation_of_any_count_is_one_trace(geometry, side):
    layout = layout_of(geometry, side)
    slots = draw_gradients(6, dtype=np.float32)
    traces = []

    @jax.jit
    def accumulate(slots, count):
        traces.append(count)

        def body(index, moments):
            return ns.moments_push(moments, draw(slots, index), 2.0, **layout)

        empty = ns.moments_init(draw(slots, 0), **layout)
        return jax.lax.fori_loop(0, count, body, empty)

    for count in (2, 3, 6):
        moments = accumulate(slots, jnp.int32(count))
        expected = from_stacked(
            jax.tree.map(lambda leaf, n=count: leaf[:n], slots),
            sample_weights=2.0,
            **layout,
        )
        assert_moments(moments, expected, rtol=2e-5)
    assert len(traces) == 1


# Errors.


def test_one_stacked_draw_is_refused():
    with pytest.raises(ValueError, match="at least 2 .* axis 0 of the gradients holds"):
        ns.moments_from_stacked({"w": jnp.ones((1, 3))}, geometry="sign")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("sign", "min"), ("spectral", "min")),
        (("spectral", "row"), ("spectral", "col")),
        (("spectral", "row"), ("l2", "min")),
        (("spectral", "tightest"), ("spectral", "row")),
    ],
)
def test_moments_of_another_layout_are_refused_even_where_shapes_agree(first, second):
    stacked = {"w": jnp.ones((2, 4, 4))}
    axes = {"w": AXES["square"]}
    a, b = (
        ns.moments_from_stacked(stacked, geometry=g, side=s, matrix_axes=axes)
        for g, s in (first, second)
    )
    layout = {"geometry": first[0], "side": first[1], "matrix_axes": axes}
    message = "give every call on the same moments the same geometry and side"
    with pytest.raises(ValueError, match=message):
        ns.moments_merge(a, b, **layout)
    with pytest.raises(ValueError, match=message):
        ns.moments_push(b, draw(stacked, 0), **layout)
    with pytest.raises(ValueError, match=message):
        ns.noise_scale(b, **layout)


def test_moments_of_l2_and_sign_are_interchangeable():
    stacked = draw_gradients(3, dtype=np.float32)
    of_l2 = ns.moments_from_stacked(stacked, geometry="l2")
    of_sign = ns.moments_from_stacked(stacked, geometry="sign")
    assert_moments(of_l2, of_sign, rtol=0.0)
    ns.noise_scale(of_l2, geometry="sign")
    ns.moments_merge(of_l2, of_sign, geometry="l2")


def test_moments_of_another_mask_or_shape_are_refused_by_the_name_of_the_leaf():
    stacked = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))}
    moments = ns.moments_from_stacked(
        stacked, geometry="sign", mask={"a": True, "b": False}
    )
    with pytest.raises(ValueError, match="moments of leaf 'b'"):
        ns.noise_scale(moments, geometry="sign")
    grads = {"a": jnp.ones(4), "b": jnp.ones(3)}
    moments = ns.moments_from_stacked(stacked, geometry="sign")
    with pytest.raises(ValueError, match="moments of leaf 'a'"):
        ns.moments_push(moments, grads, geometry="sign")


def test_moments_made_by_hand_fit_any_layout_of_their_shapes():
    gram = jnp.eye(2)
    by_hand = ns.Moments({"w": jnp.ones((2, 2))}, {"w": gram}, 3, jnp.float32(3.0))
    axes = {"w": AXES["square"]}
    found = ns.noise_scale(by_hand, geometry="spectral", matrix_axes=axes)
    assert float(found.noise_sq) == pytest.approx(2.0)


def test_anything_but_moments_is_refused():
    with pytest.raises(ValueError, match="moments must be what"):
        ns.moments_push({"w": 1.0}, {"w": jnp.ones(2)}, geometry="sign")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-1.0, "sample_weights must be finite and >= 0, got -1.0"),
        (np.array([1.0, np.nan]), "sample_weights must be finite and >= 0"),
        ([1.0, 2.0, 3.0], r"must be a scalar or have the shape \(2,\), got the shape"),
    ],
)
def test_weights_out_of_range_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        ns.moments_from_stacked(
            {"w": jnp.ones((2, 3))}, geometry="sign", sample_weights=weights
        )
