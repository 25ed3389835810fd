import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim_jax
from optim_jax import MatrixAxes
from tests.optim_jax.steepest_descent.trees import (
    AMPLIFIED_ROUNDING,
    AXES,
    HIDDEN,
    assert_trees_close,
    draw,
    matrices,
    walk,
)

METHODS = ("svd", "polar", "newton_schulz")
CONVERGENT = {"svd": 1e-12, "polar": 1e-4}


def _polar(matrices_bmn):
    left, _, right = np.linalg.svd(matrices_bmn, full_matrices=False)
    return left @ right


def _direction(gradients, axes=None, **options):
    tx = optim_jax.scale_by_spectral(axes or AXES, **options)
    updates, _ = tx.update(gradients, tx.init(gradients))
    return updates


@pytest.mark.parametrize("method", CONVERGENT)
def test_hidden_matrices_become_polar_factors_and_others_pass(method, x64):
    gradients = draw(1, "float64")
    found = _direction(gradients, method=method)
    for name, gradient in gradients.items():
        if name in HIDDEN:
            np.testing.assert_allclose(
                matrices(name, found[name]),
                _polar(matrices(name, gradient)),
                atol=CONVERGENT[method],
            )
        else:
            np.testing.assert_array_equal(found[name], gradient)


@pytest.mark.parametrize("method", CONVERGENT)
def test_the_direction_attains_the_nuclear_norm(method, x64):
    gradients = draw(1, "float64")
    found = _direction(gradients, method=method)
    for name in HIDDEN:
        values = np.linalg.svd(matrices(name, gradients[name]), compute_uv=False)
        inner = float(jnp.vdot(gradients[name], found[name]))
        assert inner == pytest.approx(values.sum(), rel=CONVERGENT[method])
        norms = np.linalg.norm(matrices(name, found[name]), 2, axis=(1, 2))
        assert norms.max() <= 1.0 + CONVERGENT[method]


@pytest.mark.parametrize("method", CONVERGENT)
def test_the_direction_of_a_diagonal_matrix_is_its_sign(method, x64):
    diagonal = np.array([3.0, -0.5, 1.0, -2.0])
    gradient = {"w": jnp.asarray(np.diag(diagonal))}
    found = _direction(gradient, {"w": MatrixAxes("hidden")}, method=method)
    np.testing.assert_allclose(
        found["w"], np.diag(np.sign(diagonal)), atol=CONVERGENT[method]
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(6, 4), (4, 4), (4, 7)])
def test_rotations_of_both_sides_pass_through(method, shape, x64):
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=shape)
    left, right = (np.linalg.qr(rng.normal(size=(d, d)))[0] for d in shape)
    axes = {"w": MatrixAxes("hidden")}

    def direction(matrix):
        return _direction({"w": jnp.asarray(matrix)}, axes, method=method)["w"]

    np.testing.assert_allclose(
        direction(left @ gradient @ right),
        left @ direction(gradient) @ right,
        atol=1e-11,
    )


@pytest.mark.parametrize("method", METHODS)
def test_zero_stays_zero(method):
    zeros = jax.tree.map(jnp.zeros_like, draw(1))
    assert_trees_close(_direction(zeros, method=method), zeros, 0.0)


def test_the_direction_of_a_singular_matrix_is_a_partial_isometry():
    rng = np.random.default_rng(0)
    gradient = (rng.normal(size=(12, 3)) @ rng.normal(size=(3, 8))).astype(np.float32)
    found = _direction({"w": jnp.asarray(gradient)}, {"w": MatrixAxes("hidden")})["w"]
    values = np.linalg.svd(found, compute_uv=False)
    np.testing.assert_allclose(values, [1.0] * 3 + [0.0] * 5, atol=1e-5)
    nuclear = np.linalg.svd(gradient, compute_uv=False).sum()
    assert float(jnp.vdot(gradient, found)) == pytest.approx(nuclear, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_non_finite_gradient_shows_in_the_update(method):
    gradients = draw(1)
    gradients["wide"] = gradients["wide"].at[1, 2].set(jnp.nan)
    found = _direction(gradients, method=method)
    assert np.all(np.isnan(found["wide"]))
    assert np.all(np.isfinite(found["wide_again"]))  # of the same stack


def test_factors_of_the_shape():
    gradients = draw(1)
    plain = _direction(gradients)
    width = _direction(gradients, shape_scale="width")
    matched = _direction(gradients, shape_scale="width", consistent_rms=0.2)
    fans = {"wide": (4, 9), "tall": (9, 4), "layers": (5, 7), "convolution": (24, 5)}
    for name, (fan_in, fan_out) in fans.items():
        factor = np.sqrt(max(1.0, fan_out / fan_in))
        np.testing.assert_allclose(width[name], factor * plain[name], rtol=1e-5)
        factor = 0.2 * np.sqrt(max(fan_in, fan_out))
        np.testing.assert_allclose(matched[name], factor * plain[name], rtol=1e-5)
        # An isometry of a smaller side d has the squared norm d, over d n entries.
        rms = float(jnp.sqrt(jnp.mean(jnp.square(matched[name]))))
        assert rms == pytest.approx(0.2, rel=1e-4)


def test_traced_numbers_are_as_good_as_known_ones():
    def build(b1, eps, consistent_rms):
        return optim_jax.scale_by_spectral(
            AXES,
            b1=b1,
            nesterov=True,
            method="newton_schulz",
            eps=eps,
            consistent_rms=consistent_rms,
        )

    known, _ = walk(build(0.9, 1e-3, 0.2))
    traced, _ = walk(optax.inject_hyperparams(build)(0.9, 1e-3, 0.2))
    assert_trees_close(traced, known, AMPLIFIED_ROUNDING)


def test_only_the_number_zero_drops_the_buffer():
    params = draw(0)

    def buffers(b1):
        state = optim_jax.scale_by_spectral(AXES, b1=b1).init(params)
        return [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]

    assert buffers(0.0) == buffers(0) == []
    assert len(buffers(0.9)) == len(buffers(jnp.asarray(0.0))) == len(HIDDEN)
    with_buffer, _ = walk(optim_jax.scale_by_spectral(AXES, b1=jnp.asarray(0.0)))
    without, _ = walk(optim_jax.scale_by_spectral(AXES, b1=0.0))
    assert_trees_close(with_buffer, without, 1e-5)


def test_dtypes_of_the_average():
    params = draw(0, "bfloat16")
    for mu_dtype, expected in ((None, jnp.float32), ("bfloat16", jnp.bfloat16)):
        tx = optim_jax.scale_by_spectral(AXES, b1=0.9, mu_dtype=mu_dtype)
        updates, state = tx.update(params, tx.init(params))
        assert all(m.dtype == expected for m in jax.tree.leaves(state.momentum))
        assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(updates))


def test_absent_leaves_stay_absent_and_keep_their_average():
    tx = optim_jax.scale_by_spectral(AXES, b1=0.9)
    params = draw(0)
    _, state = tx.update(draw(1), tx.init(params))
    gradients = draw(2) | {"wide": None, "tall": optax.MaskedNode(), "bias": None}
    updates, after = tx.update(gradients, state)
    assert jax.tree.structure(updates) == jax.tree.structure(gradients)
    np.testing.assert_array_equal(after.momentum["wide"], state.momentum["wide"])
    np.testing.assert_array_equal(after.momentum["tall"], state.momentum["tall"])
    # The other matrix of the stack moves as ever.
    expected, _ = tx.update(draw(2), state)
    np.testing.assert_allclose(
        updates["wide_again"], expected["wide_again"], rtol=1e-4, atol=1e-6
    )


def test_what_is_stated_of_absent_leaves_is_not_read():
    params = draw(0) | {"tall": None, "square": optax.MaskedNode()}
    axes = AXES | {"tall": "anything", "square": ("goes", {"here": 1})}
    tx = optim_jax.scale_by_spectral(axes, b1=0.9)
    updates, _ = tx.update(params, tx.init(params))
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_rules_state_the_axes():
    rules = [(r"square|wide|tall", MatrixAxes("hidden")), (r"", MatrixAxes("norm"))]
    by_rules = _direction(draw(1), optim_jax.matrix_axes_from_rules(rules))
    direct = _direction(draw(1))
    np.testing.assert_array_equal(by_rules["tall"], direct["tall"])
    np.testing.assert_array_equal(by_rules["layers"], draw(1)["layers"])


LAYER = {"layer": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"layer": {"w": None, "b": None}}, r"leaf 'layer/w' of shape \(2, 3\) has no"),
        (
            {"layer": {"w": "hidden", "b": None}},
            "matrix_axes of leaf 'layer/w' must be a MatrixAxes",
        ),
        (
            {"layer": {"w": MatrixAxes("dense"), "b": None}},
            "matrix_axes of leaf 'layer/w' must be a MatrixAxes of the kind",
        ),
        (
            {"layer": {"w": MatrixAxes("hidden", (0,)), "b": None}},
            "does not cover every axis of leaf 'layer/w'",
        ),
        ({"layer": MatrixAxes("hidden")}, "does not have the structure"),
        ({"layer": {"w": MatrixAxes("head"), "b": None}}, "at least one hidden leaf"),
    ],
)
def test_axes_that_do_not_fit_are_refused(axes, message):
    with pytest.raises(ValueError, match=message):
        optim_jax.scale_by_spectral(axes).init(LAYER)


def test_axes_of_leaves_that_are_not_hidden_are_not_read():
    params = LAYER | {"embedding": jnp.ones((4, 2))}
    axes = {
        "layer": {"w": MatrixAxes("hidden"), "b": MatrixAxes("bias")},
        "embedding": MatrixAxes("embedding", (7,), (7,), (7,)),
    }
    optim_jax.scale_by_spectral(axes).init(params)


def test_complex_matrices_are_named_and_other_complex_leaves_pass():
    params = {"w": jnp.ones((2, 3), jnp.complex64)}
    with pytest.raises(ValueError, match="leaf 'w' is complex64"):
        optim_jax.scale_by_spectral({"w": MatrixAxes("hidden")}).init(params)
    axes = {"layer": {"w": MatrixAxes("hidden"), "b": None}, "w": MatrixAxes("head")}
    optim_jax.scale_by_spectral(axes).init(LAYER | params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matrix_axes": None}, "scale_by_spectral needs matrix_axes"),
        ({"b1": 1.0}, r"b1 must be in \[0, 1\)"),
        ({"method": "qr"}, "method must be one of newton_schulz, polar, svd"),
        ({"shape_scale": "height"}, "shape_scale must be one of none, width"),
        ({"eps": -1e-8}, "eps must be finite and >= 0"),
        ({"eps": lambda t: 1e-8}, "eps must be a number"),
        ({"consistent_rms": 0.0}, "consistent_rms must be finite and > 0"),
        ({"ns_steps": 0}, "ns_steps must be an integer >= 1"),
        ({"ns_dtype": "int8"}, "ns_dtype must be a real floating-point dtype"),
        ({"mesh": "data"}, "mesh must be a jax.sharding.Mesh"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    arguments = {"matrix_axes": AXES, **options}
    with pytest.raises(ValueError, match=message):
        optim_jax.scale_by_spectral(**arguments)
