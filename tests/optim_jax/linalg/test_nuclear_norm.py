"""Sums of singular values and of roots of eigenvalues, by both methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from optim_jax import linalg

METHODS = ["eigh", "matmul"]
# What each method promises: for well-conditioned matrices in single precision.
RTOL = {"eigh": 2e-5, "matmul": 1e-3}
FUNCTIONS = {
    "nuclear_norm": linalg.nuclear_norm,
    "polar_factor": linalg.polar_factor,
    "trace_square_root": linalg.trace_square_root,
}


def compiled(function, method):
    return jax.jit(functools.partial(function, method=method))


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def sum_of_singular_values(z):
    return np.linalg.svd(z, compute_uv=False).sum(-1)


def gram(z):
    """Gram matrix in single precision, with the rounding that comes with it."""
    z = jnp.asarray(z, jnp.float32)
    return jnp.matmul(z, jnp.swapaxes(z, -1, -2), precision=jax.lax.Precision.HIGHEST)


@pytest.mark.parametrize("method", METHODS)
def test_nuclear_norm_of_stacks(method):
    for shape in ((2, 4, 6), (2, 6, 4), (5, 5), (1, 7)):
        z = gaussian(*shape)
        found = compiled(linalg.nuclear_norm, method)(z.astype(np.float32))
        assert found.shape == shape[:-2]
        np.testing.assert_allclose(found, sum_of_singular_values(z), rtol=RTOL[method])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [1, 3, 16])
def test_nuclear_norm_of_deficient_rank(method, rank):
    z = gaussian(24, rank) @ gaussian(rank, 40, seed=1)
    found = compiled(linalg.nuclear_norm, method)(z.astype(np.float32))
    assert float(found) == pytest.approx(sum_of_singular_values(z), rel=RTOL[method])


@pytest.mark.parametrize("method", METHODS)
def test_nuclear_norm_and_polar_factor_fit_together(method):
    z = gaussian(3, 4, 6).astype(np.float32)
    polar = compiled(linalg.polar_factor, method)(z)
    norm = compiled(linalg.nuclear_norm, method)(z)
    np.testing.assert_allclose(jnp.sum(polar * z, (-2, -1)), norm, rtol=1e-5)
    left, _, right = np.linalg.svd(z, full_matrices=False)
    np.testing.assert_allclose(polar, left @ right, atol=2 * RTOL[method])


def test_polar_factor_leaves_out_singular_values_that_are_rounding():
    z = (gaussian(6, 2) @ gaussian(2, 8, seed=1)).astype(np.float32)
    polar = linalg.polar_factor(z)
    values = np.linalg.svd(polar, compute_uv=False)
    np.testing.assert_allclose(values, [1.0, 1.0, 0, 0, 0, 0], atol=1e-5)


# The trace of the root of a Gram matrix.


@pytest.mark.parametrize("method", METHODS)
def test_trace_of_the_root_is_the_nuclear_norm_of_the_factor(method):
    for shape in ((2, 4, 24), (2, 16, 20), (5, 5), (1, 7)):
        z = gaussian(*shape)
        found = compiled(linalg.trace_square_root, method)(gram(z))
        assert found.shape == shape[:-2]
        np.testing.assert_allclose(found, sum_of_singular_values(z), rtol=3e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [8, 128, 512])
def test_rounding_in_the_null_space_of_rank_one_does_not_count(method, size):
    vector = gaussian(size, 1)
    vector /= np.linalg.norm(vector)
    found = compiled(linalg.trace_square_root, method)(gram(vector))
    assert float(found) == pytest.approx(1.0, abs=1e-3)


def test_without_a_threshold_rounding_would_count():
    # Why there is one: 512 roots of a machine epsilon.
    vector = gaussian(512, 1).astype(np.float32)
    vector /= np.linalg.norm(vector)
    # The rounding of a Gram matrix whose entries were summed in another order.
    noise = np.finfo(np.float32).eps * gaussian(512, 512, seed=1).astype(np.float32)
    c = np.asarray(gram(vector)) + (noise + noise.T) / 64
    naive = np.sqrt(np.maximum(np.linalg.eigvalsh(c), 0.0)).sum()
    assert naive > 1.01
    for method in METHODS:
        found = compiled(linalg.trace_square_root, method)(jnp.asarray(c))
        assert float(found) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("size", "rank"), [(8, 2), (64, 16), (128, 100)])
def test_trace_of_the_root_of_deficient_rank(method, size, rank):
    z = gaussian(size, rank)
    found = compiled(linalg.trace_square_root, method)(gram(z))
    assert float(found) == pytest.approx(sum_of_singular_values(z), rel=1e-3)


@pytest.mark.parametrize(
    ("method", "condition", "rel"),
    [
        ("eigh", 1e2, 1e-5),
        ("eigh", 1e4, 1e-5),
        ("eigh", 1e8, 1e-2),  # what lies below the threshold
        ("matmul", 1e2, 1e-4),
        ("matmul", 1e4, 1e-4),
        ("matmul", 1e8, 2e-3),
    ],
)
def test_trace_of_the_root_of_a_condition_number(with_spectrum, method, condition, rel):
    c = with_spectrum(64, condition)
    wanted = np.sqrt(np.logspace(0.0, -np.log10(condition), 64)).sum()
    found = compiled(linalg.trace_square_root, method)(c.astype(np.float32))
    assert float(found) == pytest.approx(wanted, rel=rel)


@pytest.mark.parametrize("method", METHODS)
def test_many_gram_matrices_of_low_rank_never_fail(method):
    # A few columns of few digits: eigenvalues that are exactly zero, or rounding.
    rng = np.random.default_rng(3)
    z = rng.integers(-2, 3, size=(60, 6, 3)).astype(np.float32)
    z *= 10.0 ** rng.integers(-8, 8, size=(60, 1, 1)).astype(np.float32)
    found = compiled(linalg.trace_square_root, method)(gram(z))
    np.testing.assert_allclose(
        found, sum_of_singular_values(z.astype(np.float64)), rtol=1e-3
    )


@pytest.mark.parametrize("method", METHODS)
def test_root_in_double_precision(method, x64):
    z = gaussian(24, 40)
    found = compiled(linalg.trace_square_root, method)(z @ z.T)
    rel = {"eigh": 1e-12, "matmul": 1e-5}[method]
    assert float(found) == pytest.approx(sum_of_singular_values(z), rel=rel)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize("method", METHODS)
def test_root_of_tiny_and_huge_matrices(method, scale):
    found = compiled(linalg.trace_square_root, method)(scale * jnp.eye(4))
    assert float(found) == pytest.approx(4.0 * np.sqrt(scale), rel=1e-4)


def test_negative_eigenvalues_are_clipped_or_refused():
    # A difference of Gram matrices that cancelled is not positive semi-definite.
    c = jnp.diag(jnp.array([1.0, -0.01, 0.25]))
    assert float(linalg.trace_square_root(c)) == pytest.approx(1.5)
    assert np.isnan(linalg.trace_square_root(c, "matmul"))


# All three functions.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_zero_gives_zero(name, method):
    found = compiled(FUNCTIONS[name], method)(jnp.zeros((2, 3, 3)))
    np.testing.assert_array_equal(found, 0.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_the_matrix_with_nan_gives_nan(name, method):
    for rubbish in (np.nan, np.inf):
        stack = jnp.stack([jnp.eye(3), jnp.eye(3).at[0, 1].set(rubbish)])
        found = compiled(FUNCTIONS[name], method)(stack)
        assert np.all(np.isfinite(found[0])) and np.all(np.isnan(found[1]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_matrices_without_entries(name, method):
    found = FUNCTIONS[name](jnp.zeros((2, 0, 0)), method)
    np.testing.assert_array_equal(found, jnp.zeros(found.shape))
    assert FUNCTIONS[name](jnp.zeros((0, 3, 3)), method).shape[0] == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_device_may_have_matrices_of_its_own(name, method):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    z = gaussian(8, 3, 3).astype(np.float32)
    stack = z @ z.transpose(0, 2, 1)
    function = functools.partial(FUNCTIONS[name], method=method)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_allclose(
        jax.jit(mapped)(stack), jax.jit(function)(stack), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.eye(2), "svd"), "method must be one of eigh, matmul, got 'svd'"),
        ((jnp.ones(3),), r"z must have the shape \(..., m, n\), got \(3,\)"),
        ((jnp.eye(2, dtype=jnp.bfloat16),), "dtype float32 or float64, got bfloat16"),
    ],
)
def test_bad_arguments_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[name](*arguments)


def test_root_needs_square_matrices():
    with pytest.raises(ValueError, match=r"c must have the shape \(..., d, d\)"):
        linalg.trace_square_root(jnp.ones((2, 3)))
