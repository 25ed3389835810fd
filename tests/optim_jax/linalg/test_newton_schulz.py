import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.linalg import MUON_COEFFICIENTS
from optim_jax.linalg.newton_schulz import convergent_newton_schulz, newton_schulz

MUON = (MUON_COEFFICIENTS,) * 5
# One triple for each of five steps, steeper at zero than Muon's.
STEEP = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def _matrix(shape, singular_values=None, seed=0):
    """A matrix of Frobenius norm one: Gaussian, or with these singular values."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=shape)
    if singular_values is not None:
        left, _, right = np.linalg.svd(a, full_matrices=False)
        a = (left * singular_values) @ right
    return a / np.linalg.norm(a)


def _exact(a, steps):
    left, values, right = np.linalg.svd(np.asarray(a, np.float64), full_matrices=False)
    for first, second, third in steps:
        values = first * values + second * values**3 + third * values**5
    return (left * values[..., None, :]) @ right


def _spectral_error(found, a, steps):
    return np.linalg.norm(np.asarray(found, np.float64) - _exact(a, steps), 2)


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (4, 5), (4, 6), (4, 30), (1, 3)])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_quintics_act_on_the_singular_values(shape, count, x64):
    steps = ((*STEEP, *MUON))[:count]
    a = _matrix(shape)
    found = newton_schulz(jnp.asarray(a), steps)
    np.testing.assert_allclose(found, _exact(a, steps), atol=1e-12)


@pytest.mark.parametrize("condition", [10.0, 1e3, 1e7])
@pytest.mark.parametrize("steps", [MUON, STEEP], ids=["muon", "steep"])
def test_taking_steps_together_costs_a_few_roundings(condition, steps):
    a = _matrix((48, 128), np.geomspace(1.0, 1.0 / condition, 48)).astype(np.float32)
    x, together = jnp.asarray(a), newton_schulz(jnp.asarray(a), steps)
    for step in steps:
        x = newton_schulz(x, (step,))
    one_by_one = _spectral_error(x, a, steps)
    # On one Gram matrix for all five steps it would be 1e-4 and more.
    assert _spectral_error(together, a, steps) < 5.0 * one_by_one < 1e-4


@pytest.mark.parametrize("shape", [(48, 48), (48, 128)])
@pytest.mark.parametrize("condition", [10.0, 1e7])
def test_products_in_bfloat16(shape, condition):
    a = _matrix(shape, np.geomspace(1.0, 1.0 / condition, 48)).astype(np.float32)
    found = newton_schulz(jnp.asarray(a), MUON, dtype="bfloat16")
    assert found.dtype == jnp.float32
    # A rounding is 4e-3; the steps amplify it.
    assert 1e-4 < _spectral_error(found, a, MUON) < 0.12


def test_a_null_space_stays_small_in_bfloat16():
    values = np.where(np.arange(48) < 4, 1.0, 0.0)
    a = _matrix((48, 128), values).astype(np.float32)
    found = newton_schulz(jnp.asarray(a), STEEP, dtype="bfloat16")
    assert _spectral_error(found, a, STEEP) < 0.05


def _flops(shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    compiled = jax.jit(lambda x: newton_schulz(x, MUON)).lower(x).compile()
    return compiled.cost_analysis()["flops"]


def test_flops_of_square_and_wide_matrices():
    d = 64
    # Per step two products of 2 m m n and one of 2 m^3.
    assert _flops((d, d)) == pytest.approx(15 * 2 * d**3, rel=0.05)
    # In two groups four of the former, and fourteen of the latter instead of five.
    assert _flops((d, 4 * d)) == pytest.approx((4 * 4 + 14) * 2 * d**3, rel=0.05)


def test_a_large_gram_matrix_takes_a_quarter_less():
    d = 128
    assert _flops((d, d)) == pytest.approx((5 * 0.75 + 10) * 2 * d**3, rel=0.05)


@pytest.mark.parametrize("shape", [(128, 130), (2, 131, 200)])
def test_quintics_act_on_the_singular_values_of_large_matrices(shape, x64):
    a = _matrix(shape)
    found = newton_schulz(jnp.asarray(a), STEEP)
    np.testing.assert_allclose(found, _exact(a, STEEP), atol=1e-12)


def test_matrices_of_a_batch_do_not_influence_each_other():
    a = jnp.asarray(_matrix((3, 4, 8)), jnp.float32)
    for function in (
        lambda x: newton_schulz(x, MUON),
        lambda x: convergent_newton_schulz(x)[0],
    ):
        together, alone = function(a), function(a[1])
        np.testing.assert_allclose(together[1], alone, atol=1e-6)


def test_convergent_coefficients_are_made_for_the_smaller_side():
    _, count = convergent_newton_schulz(jnp.asarray(_matrix((4, 9)), jnp.float32))
    assert count == 7
