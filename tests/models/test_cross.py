import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.cross import (
    cross_low_rank,
    cross_matrix,
    cross_mixture,
    cross_params,
    cross_vector,
)

NUMBERS = {"rtol": 1e-4, "atol": 1e-5}


def draw(*shape, seed=0):
    generator = np.random.default_rng([seed, *shape])
    return jnp.asarray(generator.standard_normal(shape), jnp.float32)


def run(layer, x0, layers):
    x = x0
    for leaves in layers:
        x = layer(x0, x, *leaves)
    return x


# name: the layer, and its leaves (in, out) from the stored arrays
GOLDEN = {
    "dcn_v1": (cross_vector, {"kernels": lambda w: w[:, 0], "bias": np.ravel}),
    "dcn_v2_full": (cross_matrix, {"kernels": np.transpose, "bias": np.ravel}),
    "dcn_v2_lowrank": (
        cross_low_rank,
        {"V_kernels": np.transpose, "W_kernels": np.transpose, "bias": np.ravel},
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_replays_the_original_layers(golden_dir, case):
    folder = golden_dir / "dlrm"
    stated = json.loads((folder / f"{case}.json").read_text())
    arrays = np.load(folder / f"{case}.npz", allow_pickle=False)
    layer, leaves = GOLDEN[case]

    def read(prefix):
        return [
            [turn(arrays[f"{prefix}/{name}.{index}"]) for name, turn in leaves.items()]
            for index in range(stated["num_layers"])
        ]

    @jax.jit
    def loss(x, layers):
        y = run(layer, x, layers)
        return jnp.sum(y * arrays["in/cotangent"]), y

    (_, y), (of_x, of_layers) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
        jnp.asarray(arrays["in/x"]), read("w")
    )
    np.testing.assert_allclose(y, arrays["out/y"], **NUMBERS)
    np.testing.assert_allclose(of_x, arrays["grad/x"], **NUMBERS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **NUMBERS),
        of_layers,
        read("grad"),
    )


def zeros(kind, n=5, r=2, k=3):
    return {
        "vector": (cross_vector, [(n,), (n,)]),
        "matrix": (cross_matrix, [(n, n), (n,)]),
        "low_rank": (cross_low_rank, [(n, r), (r, n), (n,)]),
        "mixture": (cross_mixture, [(k, n, r), (k, r, r), (k, r, n), (n,), (n, k)]),
    }[kind]


@pytest.mark.parametrize("kind", ["vector", "matrix", "low_rank", "mixture"])
def test_zero_weights_give_the_identity(kind):
    layer, shapes = zeros(kind)
    leaves = [np.zeros(shape, np.float32) for shape in shapes]
    x = draw(4, 5)
    np.testing.assert_array_equal(layer(draw(4, 5, seed=1), x, *leaves), x)


@pytest.mark.parametrize("kind", ["vector", "matrix", "low_rank", "mixture"])
def test_parameter_counts_are_the_sizes_of_the_leaves(kind):
    _, shapes = zeros(kind)
    sizes = sum(int(np.prod(shape)) for shape in shapes)
    assert cross_params(kind, 5, rank=2, experts=3) == sizes


def test_published_parameter_counts():
    assert 3 * cross_params("low_rank", 27 * 128, rank=512) == 10_627_200
    assert cross_params("vector", 100) == 200
    assert cross_params("matrix", 100) == 10_100


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_vector_layers_are_a_polynomial_of_degree_depth_plus_one(depth, x64):
    generator = np.random.default_rng(depth)
    layers = [generator.standard_normal((2, 5)) for _ in range(depth)]
    x0 = generator.standard_normal(5)
    degree = depth + 1
    # A polynomial in t of degree d is fixed by d + 1 points; d of them are too few.
    points = np.linspace(-1.0, 1.0, degree + 3)
    values = np.stack([run(cross_vector, jnp.asarray(t * x0), layers) for t in points])
    for used, fits in ((degree + 1, True), (degree, False)):
        fit = np.polynomial.polynomial.polyfit(points[:used], values[:used], used - 1)
        rest = np.polynomial.polynomial.polyval(points, fit).T - values
        assert (np.abs(rest).max() < 1e-8) == fits


def test_a_matrix_of_equal_columns_is_a_vector_layer():
    x0, x, w = draw(4, 5), draw(4, 5, seed=1), draw(5)
    kernel = jnp.outer(w, jnp.ones(5))  # the transpose of 1 w^T
    np.testing.assert_allclose(
        cross_matrix(x0, x, kernel, jnp.zeros(5)),
        cross_vector(x0, x, w, jnp.zeros(5)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_bias_is_outside_the_product_in_version_one_only():
    x0, x, b = draw(4, 5), draw(4, 5, seed=1), draw(5)
    np.testing.assert_allclose(cross_vector(x0, x, 0 * b, b), b + x)
    np.testing.assert_allclose(cross_matrix(x0, x, jnp.zeros((5, 5)), b), x0 * b + x)


def test_low_rank_is_a_matrix_of_that_rank():
    x0, x, b = draw(2, 3, 5), draw(2, 3, 5, seed=1), draw(5)
    down, up = draw(5, 2), draw(2, 5)
    np.testing.assert_allclose(
        cross_low_rank(x0, x, down, up, b),
        cross_matrix(x0, x, down @ up, b),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("gating", ["softmax", "sigmoid"])
@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.tanh])
def test_a_mixture_is_the_gated_sum_of_its_experts(gating, activation):
    x0, x, b = draw(4, 5), draw(4, 5, seed=1), draw(5)
    down, core, up, gate = draw(3, 5, 2), draw(3, 2, 2), draw(3, 2, 5), draw(5, 3)
    scores = np.asarray(x @ gate, np.float64)
    gates = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    if gating == "sigmoid":
        gates = 1 / (1 + np.exp(-scores))
    expected = np.array(x)
    for k in range(3):
        hidden = activation(activation(x @ down[k]) @ core[k])
        expected += gates[:, k, None] * np.asarray(x0 * (hidden @ up[k] + b))
    found = cross_mixture(
        x0, x, down, core, up, b, gate, activation=activation, gating=gating
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_one_linear_expert_is_a_low_rank_layer():
    x0, x, b = draw(4, 5), draw(4, 5, seed=1), draw(5)
    down, up, gate = draw(5, 2), draw(2, 5), draw(5, 1)
    found = cross_mixture(
        x0,
        x,
        down[None],
        jnp.eye(2)[None],
        up[None],
        b,
        gate,
        activation=lambda h: h,
    )
    np.testing.assert_allclose(
        found, cross_low_rank(x0, x, down, up, b), rtol=1e-5, atol=1e-5
    )


X = np.ones((4, 5), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cross_vector(X, X[:, :4], X[0], X[0]),
            r"x must have the shape \[..., N\] of x0=\(4, 5\), got \(4, 4\)",
        ),
        (
            lambda: cross_vector(X, X, np.ones((5, 1)), X[0]),
            r"w must have shape \[5\] for x of shape \(4, 5\), got \(5, 1\)",
        ),
        (
            lambda: cross_vector(X, X, X[0], np.ones(1)),
            r"b must have shape \[5\] for x of shape \(4, 5\), got \(1,\)",
        ),
        (
            lambda: cross_matrix(X, X, np.ones((5, 4)), X[0]),
            r"kernel must have shape \[5, 5\] .* got \(5, 4\)",
        ),
        (
            lambda: cross_low_rank(X, X, np.ones((5, 2)), np.ones((3, 5)), X[0]),
            r"up must have shape \[2, 5\] .* got \(3, 5\)",
        ),
        (
            lambda: cross_low_rank(X, X, np.ones((4, 2)), np.ones((2, 5)), X[0]),
            r"down must have shape \[5, r\] .* got \(4, 2\)",
        ),
        (
            lambda: cross_mixture(
                X,
                X,
                np.ones((3, 5, 2)),
                np.ones((3, 2, 2)),
                np.ones((3, 2, 5)),
                X[0],
                np.ones((5, 2)),
            ),
            r"gate must have shape \[5, 3\] .* got \(5, 2\)",
        ),
        (
            lambda: cross_mixture(X, X, X, X, X, X, X, gating="top1"),
            "gating must be one of softmax, sigmoid, got 'top1'",
        ),
        (lambda: cross_params("cube", 5), "kind must be one of vector, .* got 'cube'"),
        (
            lambda: cross_params("low_rank", 5),
            "rank of kind='low_rank' must be .* got 0",
        ),
        (lambda: cross_params("matrix", 0), "width of kind='matrix' must be .* got 0"),
        (
            lambda: cross_params("mixture", 5, rank=2),
            "experts of kind='mixture' must be an integer >= 1, got 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
