import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.ipqn import ipqn_statistics
from optim_jax.quasi_newton.memory import init_memory

X = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)


def losses(w):
    return (X @ w) ** 2


def call(function=losses, params=None, grad=None, memory=None, **options):
    params = jnp.ones(3) if params is None else params
    grad = params if grad is None else grad
    memory = init_memory(jnp.ones(3), 2) if memory is None else memory
    return ipqn_statistics(function, params, grad, memory, **{"groups": 2, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"theta": 0.0}, "theta must be finite and > 0, got 0.0"),
        ({"theta": -0.9}, "theta must be finite and > 0, got -0.9"),
        ({"theta": math.nan}, "theta must be finite and > 0, got nan"),
        ({"growth_cap": 1.0}, "growth_cap must be > 1, got 1.0"),
        ({"test": "cosine"}, "test must be one of inner_product, ipqn, .*'cosine'"),
        (
            {"variance": "vmap"},
            "variance must be one of exact, groups, hutchinson, got 'vmap'",
        ),
        ({"groups": 1}, r"groups must be an integer in 2 \.\.\. 6, .*got 1"),
        ({"groups": 7}, r"groups must be an integer in 2 \.\.\. 6, .*got 7"),
        ({"groups": 2.0}, "groups must be an integer .*got 2.0"),
        ({"population": 5}, "population must be at least 6, the number of samples"),
        ({"population": math.nan}, "population must be at least 6"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        call(**options)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(5), r"weights must have shape \(6,\), one per loss, got shape \(5,\)"),
        (1.0, r"weights must have shape \(6,\), one per loss, got shape \(\)"),
        ([1, 1, 1, 1, 1, -1], "weights must be finite and >= 0, .*got"),
        ([1, 1, 1, 1, 1, math.inf], "weights must be finite and >= 0"),
        ([0, 0, 1, 0, 0, 0], "with at least two > 0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    weights = weights if np.isscalar(weights) else np.asarray(weights, np.float32)
    with pytest.raises(ValueError, match=message):
        call(weights=weights)


def test_a_population_is_compared_with_the_samples_that_count():
    weights = np.array([1, 1, 1, 0, 0, 0], np.float32)
    jax.eval_shape(lambda: call(weights=weights, population=3))
    with pytest.raises(ValueError, match="population must be at least 3"):
        call(weights=weights, population=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_grads": jnp.ones((1, 3))}, "axis 0 of group_grads must .*2 .*got 1"),
        ({"group_grads": jnp.ones((7, 3))}, "axis 0 of group_grads must .*got 7"),
        (
            {"group_grads": jnp.ones((2, 4))},
            r"group_grads: leaf '' must have shape \(2, 3\), got \(2, 4\)",
        ),
        ({"group_grads": {"w": jnp.ones((2, 3))}}, "group_grads must have the struct"),
        ({"group_grads": jnp.ones(())}, "group_grads: leaf '' must have shape"),
        (
            {"group_grads": jnp.ones((2, 3)), "group_sizes": jnp.ones(3)},
            r"group_sizes must have shape \(2,\), one per group, got shape \(3,\)",
        ),
        (
            {"group_grads": jnp.ones((2, 3)), "group_sizes": jnp.array([3, 0])},
            "group_sizes must be finite and >= 0, with at least two > 0",
        ),
        ({"group_sizes": jnp.ones(2)}, "group_sizes describes group_grads"),
    ],
)
def test_groups_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        call(**options)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda w: jnp.mean(losses(w)), "return one loss per sample, not their mean"),
        (lambda w: losses(w)[:, None], r"return one loss per sample.*got \(6, 1\)"),
        (lambda w: (losses(w), w), "return one loss per sample.*got tuple"),
    ],
)
def test_functions_that_are_not_per_sample_are_refused(function, message):
    with pytest.raises(ValueError, match=message):
        call(function)


def test_leaves_that_are_not_real_are_named():
    params = {"layer": {"table": jnp.ones(3, jnp.int32)}}
    with pytest.raises(ValueError, match="leaf 'layer/table' is int32"):
        call(lambda p: losses(p["layer"]["table"]), params)
    params = {"layer": {"phase": jnp.ones(3, jnp.complex64)}}
    with pytest.raises(TypeError, match="leaf 'layer/phase' is complex64"):
        call(lambda p: losses(p["layer"]["phase"].real), params)


def test_trees_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="grad must have the structure of the params"):
        call(grad=(jnp.ones(3),))
    with pytest.raises(ValueError, match=r"grad: leaf '' must have shape \(3,\)"):
        call(grad=jnp.ones(4))
    with pytest.raises(ValueError, match=r"memory.s: leaf '' must have shape \(2, 3\)"):
        call(memory=init_memory(jnp.ones(4), 2))


def test_bad_arguments_are_refused_under_jit_and_traced_ones_are_taken():
    compute = jax.jit(lambda theta, cap: call(theta=theta, growth_cap=cap).r)
    assert math.isfinite(compute(0.9, 2.0))
    with pytest.raises(ValueError, match="groups must be an integer"):
        jax.jit(lambda theta: call(theta=theta, groups=99).ratio)(0.9)
