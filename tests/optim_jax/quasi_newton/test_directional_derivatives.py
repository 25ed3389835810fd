import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from optim_jax.quasi_newton.directional_derivatives import (
    check_per_sample,
    directional_derivatives,
    map_gradients,
    sample_losses,
)
from tests.optim_jax.quasi_newton.golden_sample import read_golden_sample

X = np.random.default_rng(0).standard_normal((5, 3))
W = np.array([0.3, -0.2, 0.5])
U = np.array([1.0, 2.0, -0.5])


@jax.custom_vjp
def sine(x):
    return jnp.sin(x)


sine.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), lambda c, ct: (c * ct,))


@jax.custom_vjp
def clipped_sine(x):
    """A sine whose pullback clips, and so is not linear."""
    return jnp.sin(x)


clipped_sine.defvjp(
    lambda x: (jnp.sin(x), jnp.cos(x)), lambda c, ct: (c * jnp.clip(ct, -0.5, 0.5),)
)


@jax.custom_vjp
def squared_sine(x):
    """A sine whose pullback is a square: its transpose does not exist."""
    return jnp.sin(x)


squared_sine.defvjp(
    lambda x: (jnp.sin(x), jnp.cos(x)), lambda c, ct: (c * ct * jnp.abs(ct),)
)


def underivable(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(np.sin, shape, x, vmap_method="sequential")


def equations(jaxpr):
    """All equations, also those inside others."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_all_products_with_the_golden_direction(x64):
    golden = read_golden_sample()
    numbers = golden.numbers
    found = directional_derivatives(golden.losses, golden.w, jnp.asarray(numbers["u"]))
    np.testing.assert_allclose(found, numbers["a"], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found, numbers["G"] @ numbers["u"], rtol=1e-12)
    assert float(jnp.mean(found)) == pytest.approx(float(numbers["r"]), rel=1e-12)


def test_trees_under_jit(x64):
    def losses(params):
        return jnp.tanh(X @ params["w"]) * params["scale"][0]

    params = {"w": jnp.asarray(W), "scale": (jnp.asarray(2.0), None)}
    u = {"w": jnp.asarray(U), "scale": (jnp.asarray(0.5), None)}
    found = jax.jit(lambda p, u: directional_derivatives(losses, p, u))(params, u)
    slope = 1 - np.tanh(X @ W) ** 2
    expected = 2 * slope * (X @ U) + 0.5 * np.tanh(X @ W)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_the_direction_is_cast_to_the_dtype_of_the_params():
    params = jnp.asarray(W, jnp.bfloat16)
    found = directional_derivatives(
        lambda w: jnp.asarray(X, jnp.float32) @ w.astype(jnp.float32),
        params,
        jnp.asarray(U, jnp.float32),
    )
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, X @ U, rtol=1e-5)


def stepwise(x):
    """The sine inside a loop, where its equation is one level down."""
    return jax.lax.map(sine, x)


@pytest.mark.parametrize("function", [sine, stepwise, jax.checkpoint(sine)])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_pullback_is_transposed_where_only_that_exists(x64, function, compiled):
    def products(w, u):
        return directional_derivatives(lambda w: function(X @ w), w, u)

    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda w: function(X @ w), (W,), (U,))
    call = jax.jit(products) if compiled else products
    found = call(jnp.asarray(W), jnp.asarray(U))
    np.testing.assert_allclose(found, np.cos(X @ W) * (X @ U), rtol=1e-13)


def test_a_transposed_pullback_forms_no_gradient_of_a_sample():
    jaxpr = jax.make_jaxpr(
        lambda w: directional_derivatives(lambda w: sine(X @ w), w, jnp.asarray(U))
    )(W)
    names = [equation.primitive.name for equation in equations(jaxpr.jaxpr)]
    assert names.count("dot_general") == 2
    assert "scan" not in names and "while" not in names


@pytest.mark.parametrize(
    ("function", "slope"), [(clipped_sine, 0.5), (squared_sine, 1.0)]
)
def test_gradients_are_formed_where_the_pullback_is_not_linear(x64, function, slope):
    found = jax.jit(
        lambda w: directional_derivatives(lambda w: function(X @ w), w, jnp.asarray(U))
    )(W)
    # The cotangent of one loss is one, which the first pullback clips.
    np.testing.assert_allclose(found, slope * np.cos(X @ W) * (X @ U), rtol=1e-13)


def test_losses_without_a_derivative_are_refused():
    with pytest.raises(TypeError, match="no derivative in forward mode .*reverse mode"):
        directional_derivatives(lambda w: underivable(X @ w), jnp.asarray(W), U)


def test_an_error_of_the_losses_themselves_is_passed_on():
    def losses(w):
        raise ValueError("no such column")

    with pytest.raises(ValueError, match="^no such column"):
        directional_derivatives(losses, jnp.asarray(W), jnp.asarray(U))


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (lambda w: jnp.mean(X @ w), "return one loss per sample, .* got a scalar"),
        (lambda w: (X @ w)[:, None], r"shape \(b,\), got \(5, 1\)"),
        (lambda w: (X @ w, 1.0), "a single array of shape .* got tuple"),
        (lambda w: jnp.sign(X @ w).astype(int), "real floating-point; got int"),
        (lambda w: (X @ w).astype(complex), "real floating-point; got complex"),
    ],
)
def test_what_is_not_one_loss_per_sample_is_refused(losses, message):
    with pytest.raises(ValueError, match="return one loss per sample"):
        sample_losses(losses, jnp.asarray(W))
    with pytest.raises(ValueError, match=message):
        directional_derivatives(losses, jnp.asarray(W), jnp.asarray(U))


def test_shapes_of_losses():
    check_per_sample((5,), 5)
    check_per_sample((7,), None)
    with pytest.raises(ValueError, match=r"must have shape \(4,\), got \(5,\)"):
        check_per_sample((5,), 4)
    with pytest.raises(ValueError, match=r"must have shape \(4,\), got a scalar"):
        check_per_sample((), 4)


def test_gradients_of_all_samples(x64):
    golden = read_golden_sample()
    found = map_gradients(golden.losses, golden.w, lambda gradient: gradient)
    np.testing.assert_allclose(found, golden.numbers["G"], rtol=1e-12, atol=1e-14)
