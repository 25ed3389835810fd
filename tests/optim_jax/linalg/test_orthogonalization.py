import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax import linalg
from tests.optim_jax.linalg.matrices import FUNCTIONS, stored_arrays

CONVERGENT = (3.0, -16 / 5, 6 / 5)
STORED = {
    "svd": {"method": "svd"},
    "svd_nuclear": {"method": "svd", "scale_by_nuclear_norm": True},
    "newton_schulz_5_muon": {},
    "newton_schulz_10_modula": {"num_iterations": 10, "coefficients": (3, -3.2, 1.2)},
}


def _polar(a):
    left, _, right = np.linalg.svd(a, full_matrices=False)
    return left @ right


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "entry", FUNCTIONS["orthogonalizations"], ids=lambda entry: entry["key"]
)
def test_stored_polar_factors(entry, dtype, x64):
    arrays = stored_arrays()
    found, info = linalg.orthogonalize(
        arrays[entry["input"]].astype(dtype), **STORED[entry["method"]]
    )
    wanted = arrays[entry["key"]]
    atol = {"float64": 1e-14, "float32": 6e-6}[dtype] * np.max(np.abs(wanted))
    np.testing.assert_allclose(found, wanted, rtol=0.0, atol=atol)
    assert found.dtype == dtype and info.success


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 3), (3, 1), (1, 1)])
def test_convergent_coefficients_reach_the_polar_factor(shape, x64):
    # Near one, each step takes a singular value 0.6 times as close to it.
    a = np.random.default_rng(0).normal(size=(2, *shape))
    found, info = linalg.orthogonalize(a, num_iterations=70, coefficients=CONVERGENT)
    np.testing.assert_allclose(found, _polar(a), atol=1e-12)
    assert np.all(info.error < 1e-12)
    np.testing.assert_array_equal(info.iterations, 70)
    exact, _ = linalg.orthogonalize(a, method="svd")
    np.testing.assert_allclose(found, exact, atol=1e-12)


def test_default_takes_singular_values_near_one():
    a = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
    found, info = linalg.orthogonalize(a)
    values = np.linalg.svd(found, compute_uv=False)
    assert 0.6 < values.min() and values.max() < 1.25
    assert float(info.error) < 0.6 and int(info.iterations) == 5


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_zero_rows_and_columns_stay_zero_and_change_nothing(shape, x64):
    m, n = shape
    a = np.random.default_rng(0).normal(size=shape)
    padded = np.zeros((m + 3, n + 5))
    padded[1 : m + 1, 2 : n + 2] = a
    found, _ = linalg.orthogonalize(padded)
    found = np.array(found)
    wanted, _ = linalg.orthogonalize(a)
    np.testing.assert_allclose(found[1 : m + 1, 2 : n + 2], wanted, atol=1e-13)
    found[1 : m + 1, 2 : n + 2] = 0.0
    np.testing.assert_array_equal(found, 0.0)


def test_zero_matrix_stays_zero():
    found, info = linalg.orthogonalize(jnp.zeros((3, 4)))
    np.testing.assert_array_equal(found, 0.0)
    assert info.success


@pytest.mark.parametrize(
    "make", [tuple, list, np.array], ids=["tuple", "list", "numpy"]
)
def test_coefficients_of_each_step(make, x64):
    a = np.random.default_rng(0).normal(size=(4, 3))
    schedule = [(2.0, -1.5, 0.5), (1.5, -0.5, 0.0), CONVERGENT]
    x = a / np.linalg.norm(a)
    for first, second, third in schedule:
        gram = x.T @ x
        x = first * x + second * x @ gram + third * x @ gram @ gram
    found, info = linalg.orthogonalize(a, num_iterations=3, coefficients=make(schedule))
    np.testing.assert_allclose(found, x, atol=1e-14)
    assert int(info.iterations) == 3


def test_transposing_commutes(x64):
    a = np.random.default_rng(0).normal(size=(4, 7))
    found, _ = linalg.orthogonalize(a)
    transposed, _ = linalg.orthogonalize(a.T)
    np.testing.assert_allclose(found, transposed.T, atol=1e-14)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e25])
def test_scale_is_lost(scale):
    a = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    found, _ = linalg.orthogonalize(scale * a)
    wanted, _ = linalg.orthogonalize(a)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_norm_below_the_floor_is_not_blown_up():
    # X0 = 1e-10 / 1e-8, and each step multiplies small values by a.
    found, _ = linalg.orthogonalize(
        jnp.full((1, 1), 1e-10), num_iterations=1, coefficients=(2.0, 0.0, 0.0)
    )
    assert float(found[0, 0]) == pytest.approx(0.02, rel=1e-5)


def _with_singular_values(shape, values, dtype="float32", seed=0):
    a = np.random.default_rng(seed).normal(size=shape)
    left, _, right = np.linalg.svd(a, full_matrices=False)
    return ((left * values) @ right).astype(dtype)


SPECTRA = {
    "geometric": lambda d: np.geomspace(1e-3, 1.0, d),
    "one_small": lambda d: np.where(np.arange(d) == 0, 1e-3, 1.0),
    "one_large": lambda d: np.where(np.arange(d) == 0, 1.0, 1e-3),
    "equal": np.ones,
}


_polar_by_products = jax.jit(lambda a: linalg.orthogonalize(a, method="polar"))


def _check_convergence(shape, spectrum, scales=(1.0,)):
    a = _with_singular_values(shape, SPECTRA[spectrum](min(shape)))
    expected = _polar(a.astype(np.float64))
    for scale in scales:
        found, info = _polar_by_products(np.float32(scale) * a)
        assert np.linalg.norm(np.asarray(found, np.float64) - expected, 2) < 1e-3
        assert info.success and int(info.iterations) == 7 and info.error < 1e-3


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(40, 40), (32, 96), (96, 32), (3, 5), (1, 7)])
def test_polar_converges_for_condition_numbers_up_to_a_thousand(shape, spectrum):
    _check_convergence(shape, spectrum, scales=(1.0, 1e-12, 1e12))


@pytest.mark.slow
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(1024, 1024), (1024, 384)])
def test_polar_converges_on_large_matrices(shape, spectrum):
    _check_convergence(shape, spectrum)


@pytest.mark.parametrize("rank", [1, 5])
def test_polar_of_a_singular_matrix_attains_the_nuclear_norm(rank):
    values = np.where(np.arange(64) < rank, 1.0 + np.arange(64), 0.0)
    a = _with_singular_values((64, 96), values)
    found, info = linalg.orthogonalize(a, method="polar")
    assert np.sum(a * found) == pytest.approx(values.sum(), rel=1e-3)
    # Rounding may lift the null space, but not above one.
    assert np.linalg.norm(found, 2) < 1.0 + 1e-3 and info.success


def test_polar_does_not_lift_tiny_singular_values_all_the_way(x64):
    a = _with_singular_values((3, 3), np.array([1.0, 0.1, 1e-9]), "float64")
    found, _ = linalg.orthogonalize(a, method="polar")
    values = np.linalg.svd(found, compute_uv=False)
    np.testing.assert_allclose(values[:2], 1.0, atol=1e-3)
    assert 1e-9 < values[2] < 1e-3


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (2, 3, 3)])
def test_polar_of_zero_is_zero(shape):
    found, info = linalg.orthogonalize(jnp.zeros(shape), method="polar")
    np.testing.assert_array_equal(found, 0.0)
    assert np.all(info.success)


def test_polar_reports_non_finite_matrices():
    a = jnp.stack([jnp.eye(3), jnp.full((3, 3), jnp.nan)])
    found, info = linalg.orthogonalize(a, method="polar")
    np.testing.assert_allclose(found[0], jnp.eye(3), atol=1e-4)
    np.testing.assert_array_equal(info.success, [True, False])


def test_scaling_by_the_nuclear_norm_is_the_steepest_descent_direction(x64):
    a = np.random.default_rng(0).normal(size=(2, 4, 3))
    found, info = linalg.orthogonalize(a, method="svd", scale_by_nuclear_norm=True)
    nuclear = np.linalg.svd(a, compute_uv=False).sum(-1)
    np.testing.assert_allclose(found, _polar(a) * nuclear[:, None, None], atol=1e-12)
    np.testing.assert_allclose(np.einsum("bij,bij->b", found, a), nuclear**2)
    assert np.all(info.error < 1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"a": jnp.ones(3)}, r"a must have the shape \(..., m, n\), got \(3,\)"),
        ({"a": jnp.ones((2, 2), int)}, "a must be of a real floating-point dtype, got"),
        (
            {"a": jnp.ones((2, 2), jnp.bfloat16), "method": "svd"},
            "a must be of the dtype float32 or float64, got bfloat16",
        ),
        (
            {"a": jnp.ones((2, 2), jnp.bfloat16), "method": "polar"},
            "a must be of the dtype float32 or float64, got bfloat16",
        ),
        ({"method": "qr"}, "method must be one of newton_schulz, polar, svd, got 'qr'"),
        ({"num_iterations": 0}, "num_iterations must be an integer >= 1, got 0"),
        (
            {"method": "polar", "scale_by_nuclear_norm": True},
            "scale_by_nuclear_norm needs method='svd'",
        ),
        ({"scale_by_nuclear_norm": True}, "scale_by_nuclear_norm needs method='svd'"),
        (
            {"coefficients": (1.0, 2.0)},
            r"coefficients must be one triple \(a, b, c\), or",
        ),
        (
            {"coefficients": ((1.0, 2.0, 3.0),) * 4},
            "num_iterations=5, of finite numbers, got",
        ),
        ({"coefficients": (np.nan, 1.0, 1.0)}, r"finite numbers, got \(nan, 1.0"),
        ({"coefficients": ((1.0, 2.0), (1.0, 2.0, 3.0))}, "one triple"),
        ({"coefficients": "abc"}, "one triple .* got 'abc'"),
        ({"coefficients": None}, "one triple .* got None"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    arguments = {"a": jnp.eye(2), **options}
    with pytest.raises(ValueError, match=message):
        linalg.orthogonalize(**arguments)
