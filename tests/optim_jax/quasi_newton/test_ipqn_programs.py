"""What `ipqn_statistics` computes with: its cost, its devices, its answer to noise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optim_jax.quasi_newton.ipqn import ipqn_statistics
from optim_jax.quasi_newton.memory import init_memory, store_pair
from tests.optim_jax.quasi_newton.golden_sample import (
    read_golden_sample,
    regularised_logistic,
)

BATCH, FEATURES, HIDDEN = 96, 7, 5


def network(params, x, y):
    """Losses of a network of one hidden layer."""
    outputs = jnp.tanh(x @ params["in"] + params["bias"]) @ params["out"]
    return jnp.logaddexp(0.0, -y * outputs)


@pytest.fixture(scope="module")
def problem():
    """Parameters, data, gradient, means of four groups and a memory of three pairs."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    params = {"in": draw(FEATURES, HIDDEN), "bias": draw(HIDDEN), "out": draw(HIDDEN)}
    x, y = draw(BATCH, FEATURES), jnp.sign(draw(BATCH))

    def gradient(x, y):
        return jax.grad(lambda p: jnp.mean(network(p, x, y)))(params)

    groups = jax.jit(jax.vmap(gradient))(x.reshape(4, -1, FEATURES), y.reshape(4, -1))
    memory, store = init_memory(params, 4), jax.jit(store_pair)
    for _ in range(3):
        step = jax.tree.map(lambda leaf: 0.1 * draw(*leaf.shape), params)
        memory = store(memory, step, jax.tree.map(lambda leaf: 2 * leaf, step))
    return params, x, y, gradient(x, y), groups, memory


def equations(jaxpr, times=1):
    """All equations, also those inside others, with how often each is run."""
    for equation in jaxpr.eqns:
        yield equation, times
        passes = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner, times * passes)


def passes_over(problem, **options):
    """Products of matrices over the data, and the size of the largest result."""
    params, x, y, gradient, groups, memory = problem
    options = {"group_grads": groups, **options}
    jaxpr = jax.make_jaxpr(
        lambda params, x: ipqn_statistics(
            lambda p: network(p, x, y), params, gradient, memory, **options
        )
    )(params, x)
    passes, largest = 0, 0
    for equation, times in equations(jaxpr.jaxpr):
        shapes = [getattr(v.aval, "shape", ()) for v in equation.invars]
        if equation.primitive.name == "dot_general" and (BATCH, FEATURES) in shapes:
            passes += times
        sizes = [math.prod(getattr(v.aval, "shape", ())) for v in equation.outvars]
        largest = max(largest, *sizes)
    return passes, largest


@pytest.mark.parametrize("test", ["ipqn_unbiased", "ipqn", "norm", "none"])
def test_one_jacobian_vector_product_per_test(problem, test):
    # The first layer and its tangent: two products with the data, and nothing that has
    # an entry for each sample and parameter.
    passes, largest = passes_over(problem, test=test)
    assert passes == 2
    params = sum(leaf.size for leaf in jax.tree.leaves(problem[0]))
    assert largest < BATCH * min(params, 2 * FEATURES)


def test_the_inner_product_test_takes_one_more(problem):
    assert passes_over(problem, test="inner_product")[0] == 4


def test_groups_cost_one_pullback_each(problem):
    # One more forward pass, and one product with the data for each pullback.
    for groups in (2, 6):
        passes, largest = passes_over(problem, group_grads=None, groups=groups)
        assert passes == 2 + 1 + groups
        assert largest < BATCH * 2 * FEATURES


def test_a_gradient_for_each_sample_is_seen_by_this_count(problem):
    passes, _ = passes_over(problem, variance="exact")
    assert passes > 6


def test_float32_statistics_of_a_network(problem):
    params, x, y, gradient, groups, memory = problem

    def compute(cast):
        arrays = jax.tree.map(cast, (params, x, y, gradient, groups, memory))
        p, x64, y64, g, means, pairs = arrays
        return jax.jit(
            lambda p, g, means, pairs: ipqn_statistics(
                lambda p: network(p, x64, y64), p, g, pairs, group_grads=means
            )
        )(p, g, means, pairs)

    found = compute(lambda leaf: leaf)
    with jax.enable_x64(True):
        exact = compute(
            lambda leaf: (
                leaf if leaf.dtype == jnp.int32 else jnp.asarray(leaf, jnp.float64)
            )
        )
    for name, ours, theirs in zip(found._fields, found, exact, strict=True):
        assert ours.dtype == (jnp.int32 if name == "b_new" else jnp.float32)
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, err_msg=name)


def test_half_precision_params_have_statistics_in_float32(problem):
    params, x, y, gradient, _, _ = problem
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    found = jax.jit(
        lambda p, g: ipqn_statistics(
            lambda p: network(p, x, y), p, g, init_memory(half), groups=4, test="ipqn"
        )
    )(half, gradient)
    assert all(
        leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(found)
    )
    square = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient))
    assert float(found.r) == pytest.approx(square, rel=1e-5)
    assert found.var > 0


def test_losses_with_a_reverse_mode_derivative_only(x64):
    @jax.custom_vjp
    def logistic(margins):
        return jnp.logaddexp(0.0, margins)

    logistic.defvjp(
        lambda margins: (logistic(margins), jax.nn.sigmoid(margins)),
        lambda slopes, cotangent: (slopes * cotangent,),
    )
    golden = read_golden_sample()
    numbers = golden.numbers

    def losses(w):
        margins = -numbers["y"] * (numbers["X"] @ w)
        return logistic(margins) + numbers["lam"] / 2 * w @ w

    @jax.jit
    def both(w, gradient):
        return [
            ipqn_statistics(function, w, gradient, golden.memory, test="ipqn")
            for function in (losses, golden.losses)
        ]

    found, expected = both(golden.w, golden.gradient)
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    assert float(found.ratio) == pytest.approx(0.17693546502079938, rel=1e-11)


@pytest.fixture(scope="module")
def on_one_device():
    with jax.enable_x64(True):
        return spread_over(1, AxisType.Auto)


def spread_over(devices, kind):
    """Statistics of the golden sample cut over devices, all of it and a part."""
    golden = read_golden_sample()
    numbers = golden.numbers
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(kind,), devices=jax.devices()[:devices]
    )
    samples = NamedSharding(mesh, PartitionSpec("data"))
    data = numbers["X"], numbers["y"], np.arange(24.0) < 19
    x, y, mask = placed = [jax.device_put(array, samples) for array in data]
    assert all(len(array.sharding.device_set) == devices for array in placed)
    gradients = {"all": numbers["g"], "part": numbers["G"][:19].mean(0)}
    arguments = jax.device_put(
        (golden.w, gradients, golden.memory), NamedSharding(mesh, PartitionSpec())
    )

    @jax.jit
    def compute(x, y, mask, w, gradients, memory):
        return {
            name: ipqn_statistics(
                lambda w: regularised_logistic(w, x, y, numbers["lam"]),
                w,
                gradients[name],
                memory,
                groups=4,
                weights=weights,
            )
            for name, weights in (("all", None), ("part", mask))
        }

    with jax.set_mesh(mesh):
        return jax.device_get(compute(x, y, mask, *arguments))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_samples_on_eight_devices(x64, on_one_device, kind):
    found = spread_over(8, kind)
    for name, expected in on_one_device.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, err_msg=name)
    assert found["all"].r != found["part"].r


def newton_minimiser(x, y, l2):
    w = np.zeros(x.shape[1])
    for _ in range(30):
        sigmoid = 1 / (1 + np.exp(y * (x @ w)))
        gradient = -x.T @ (y * sigmoid) / len(y) + l2 * w
        curvature = sigmoid * (1 - sigmoid) / len(y)
        w -= np.linalg.solve(x.T * curvature @ x + l2 * np.eye(len(w)), gradient)
    assert np.abs(gradient).max() < 1e-14
    return w


def test_where_the_gradient_vanishes_only_the_unbiased_test_fails(x64):
    datasets = pytest.importorskip("sklearn.datasets")
    x, target = datasets.load_breast_cancer(return_X_y=True)
    x = np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(len(x))])
    y, l2 = 2.0 * target - 1, 1 / len(x)
    w = newton_minimiser(x, y, l2)
    # The minimiser is that of the original implementation's numbers.
    assert np.linalg.norm(w) == pytest.approx(3.85768227, rel=1e-8)

    rng = np.random.default_rng(0)
    draws = np.array([rng.permutation(len(x))[:64] for _ in range(200)])
    memory = init_memory(jnp.asarray(w), 1)
    data_x, data_y = jnp.asarray(x), jnp.asarray(y)

    @jax.jit
    @jax.vmap
    def ratios(draw):
        def losses(w):
            return regularised_logistic(w, data_x[draw], data_y[draw], l2)

        gradient = jax.grad(lambda w: jnp.mean(losses(w)))(jnp.asarray(w))
        return [
            ipqn_statistics(
                losses, jnp.asarray(w), gradient, memory, test=test, theta=0.9
            ).ratio
            for test in ("ipqn", "ipqn_unbiased")
        ]

    plain, unbiased = ratios(draws)
    passed = [float(jnp.mean(ratio <= 1)) for ratio in (plain, unbiased)]
    assert passed[0] >= 0.8
    assert passed[1] <= 0.2
    # Half of the estimates of zero are about zero or below.
    assert 0.4 < float(jnp.mean(jnp.isinf(unbiased))) < 0.8
