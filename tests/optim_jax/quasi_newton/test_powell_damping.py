import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim_jax
from optim_jax.quasi_newton.memory import store_pair, tree_dot
from tests.optim_jax.quasi_newton.pairs import draw_vector, make_tree


@pytest.mark.parametrize("case", range(3))
def test_the_stored_cases(x64, golden_dir, case):
    stored = json.loads((golden_dir / "pblbfgs" / "powell.json").read_text())[case]
    s, y, bs = (jnp.asarray(stored[name]) for name in ("s", "y", "Bs"))
    damped, theta = optim_jax.damp_pair(s, y, bs, stored["eps"])
    assert float(theta) == pytest.approx(stored["theta"], rel=1e-14)
    np.testing.assert_allclose(damped, stored["y_damped"], rtol=1e-13, atol=1e-15)
    assert float(s @ damped) == pytest.approx(stored["s_y_damped"], rel=1e-13)
    memory = store_pair(optim_jax.init_memory(s, 1), s, damped)
    assert float(memory.gamma) == pytest.approx(stored["gamma"], rel=1e-13)
    assert float(memory.gamma) > 0
    mistaken = float(s @ y / (damped @ damped))
    assert mistaken == pytest.approx(stored["gamma_if_undamped_ys_is_used"], rel=1e-13)


@pytest.mark.parametrize("eps", [0.01, 0.2, 0.9])
def test_the_curvature_is_lifted_to_a_part_of_that_of_b(x64, eps):
    s, y, bs = (make_tree(draw_vector(seed)) for seed in range(3))
    if tree_dot(s, bs) < 0:
        bs = jax.tree.map(jnp.negative, bs)
    sbs = float(tree_dot(s, bs))
    for factor in (-3.0, 0.0, 0.5 * eps):
        # Along s, so that s'y is that part of s'Bs.
        scale = (factor * sbs - tree_dot(s, y)) / tree_dot(s, s)
        low = jax.tree.map(lambda a, b, scale=scale: a + scale * b, y, s)
        damped, theta = jax.jit(optim_jax.damp_pair)(s, low, bs, eps)
        assert float(tree_dot(s, damped)) == pytest.approx(eps * sbs, rel=1e-12)
        assert float(theta) == pytest.approx((1 - eps) / (1 - factor), rel=1e-12)


def test_a_good_pair_is_left_alone_to_the_last_bit():
    s, y = jnp.asarray([0.1, 0.3]), jnp.asarray([0.7, 0.1])
    for bs in (jnp.asarray([0.2, 0.1]), jnp.asarray([-5.0, 0.0]), s * jnp.nan):
        damped, theta = optim_jax.damp_pair(s, y, bs, 0.2)
        np.testing.assert_array_equal(damped, y)
        assert float(theta) == 1.0
    # A B that is not positive definite mends nothing.
    damped, theta = optim_jax.damp_pair(s, -y, -0.1 * y, 0.2)
    np.testing.assert_array_equal(damped, -y)
    assert float(theta) == 1.0


def test_y_keeps_its_dtypes(x64):
    s = jnp.ones(2, jnp.float32)
    damped, theta = optim_jax.damp_pair(s, -s, s, jnp.asarray(0.2))
    assert damped.dtype == theta.dtype == jnp.float32


@pytest.mark.parametrize("eps", [0.0, -0.1, 1.0, float("nan")])
def test_bad_eps_is_refused(eps):
    with pytest.raises(ValueError, match=r"eps must be in \(0, 1\) for damping, got"):
        optim_jax.damp_pair(jnp.ones(2), jnp.ones(2), jnp.ones(2), eps)
