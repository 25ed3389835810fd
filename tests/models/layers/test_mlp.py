import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.layers.mlp import apply_mlp, init_mlp, mlp_flops, mlp_params

WIDTHS = (5, 7, 3)


def draw_params(seed=0):
    generator = np.random.default_rng(seed)
    return {
        f"layer_{index}": {
            "kernel": generator.standard_normal((a, b)),
            "bias": generator.standard_normal(b),
        }
        for index, (a, b) in enumerate(zip(WIDTHS, WIDTHS[1:], strict=False))
    }


PARAMS = draw_params()
X = np.random.default_rng(1).standard_normal((4, 5))


def written_out(relu_last):
    first, last = PARAMS["layer_0"], PARAMS["layer_1"]
    x = np.maximum(X @ first["kernel"] + first["bias"], 0)
    x = x @ last["kernel"] + last["bias"]
    return np.maximum(x, 0) if relu_last else x


@pytest.mark.parametrize("relu_last", [False, True])
def test_affine_layers_with_relus_between(relu_last):
    found = apply_mlp(
        jax.tree.map(jnp.float32, PARAMS), jnp.float32(X), relu_last=relu_last
    )
    assert found.dtype == jnp.float32
    expected = written_out(relu_last)
    assert (expected < 0).any() != relu_last
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_double_precision_weights_are_not_rounded(x64):
    found = apply_mlp(PARAMS, X, relu_last=False)
    np.testing.assert_allclose(found, written_out(False), rtol=1e-12)


def test_gradient_of_the_bias_is_summed_in_float32():
    # A sum of 4,096 equal cotangents stalls at 256 in bfloat16.
    x = jnp.ones((4096, 5), jnp.float32)
    params = jax.tree.map(jnp.zeros_like, jax.tree.map(jnp.float32, PARAMS))
    params["layer_1"]["kernel"] = jnp.ones((7, 3))
    params["layer_0"]["bias"] = jnp.ones(7)

    def total(params):
        return apply_mlp(params, x, relu_last=False, dtype=jnp.bfloat16).sum()

    gradient = jax.jit(jax.grad(total))(params)
    np.testing.assert_array_equal(gradient["layer_0"]["bias"], 3 * 4096.0)
    np.testing.assert_array_equal(gradient["layer_1"]["bias"], 4096.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def test_only_the_last_product_is_exact_in_half_precision():
    params, x = jax.tree.map(jnp.float32, PARAMS), jnp.float32(X)
    found = apply_mlp(params, x, relu_last=False, dtype=jnp.bfloat16)
    exact = apply_mlp(params, x, relu_last=False)
    assert 0 < np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
    only = {"layer_0": params["layer_0"]}
    np.testing.assert_array_equal(
        apply_mlp(only, x, relu_last=False, dtype=jnp.bfloat16),
        apply_mlp(only, x, relu_last=False),
    )


def test_laws_of_the_initial_weights():
    params = init_mlp(jax.random.key(0), (300, 200, 1000))
    assert jax.tree.map(jnp.shape, params) == {
        "layer_0": {"kernel": (300, 200), "bias": (200,)},
        "layer_1": {"kernel": (200, 1000), "bias": (1000,)},
    }
    for layer, fan_in, fan_out in (("layer_0", 300, 200), ("layer_1", 200, 1000)):
        for leaf, variance in (
            ("kernel", 2 / (fan_in + fan_out)),
            ("bias", 1 / fan_out),
        ):
            values = np.asarray(params[layer][leaf], np.float64)
            error = np.sqrt(2 / values.size)  # of a variance, relative
            assert abs(values.var() / variance - 1) < 4 * error
            assert abs(values.mean()) < 4 * np.sqrt(variance / values.size)
    assert not np.array_equal(
        params["layer_0"]["kernel"],
        init_mlp(jax.random.key(1), (300, 200))["layer_0"]["kernel"],
    )


def test_sizes():
    params = init_mlp(jax.random.key(0), WIDTHS)
    assert mlp_params(WIDTHS) == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert mlp_flops(WIDTHS) == 2 * (5 * 7 + 7 * 3)
    # A single width is no layer.
    assert mlp_params((5,)) == mlp_flops((5,)) == mlp_params(()) == 0
