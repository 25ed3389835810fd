"""What all matrix functions have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optim_jax import linalg
from tests.optim_jax.linalg.matrices import log_spaced


def _from_identity(**options):
    def function(a, eps=0.0):
        q = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
        return linalg.qr_eigendecomposition(a, q, eps=eps, **options)

    return function


WITH_EPS = {
    "eigendecomposition": lambda a, eps=0.0: linalg.eigendecomposition(a, eps=eps),
    "eigh": lambda a, eps=0.0: linalg.eigh_inverse_root(a, 4, eps=eps),
    "coupled_newton": lambda a, eps=0.0: linalg.coupled_newton_inverse_root(
        a, 4, eps=eps
    ),
    "coupled_newton_power": lambda a, eps=0.0: linalg.coupled_newton_inverse_root(
        a, 4, eps=eps, scaling="power"
    ),
    "coupled_higher_order": lambda a, eps=0.0: linalg.coupled_higher_order_inverse_root(
        a, 4, rel_eps=0.0, abs_eps=eps
    ),
    "qr": _from_identity(),
    "qr_many": _from_identity(max_iterations=4),
    "qr_tolerance": _from_identity(max_iterations=30, tolerance=0.05),
}
FUNCTIONS = {
    **WITH_EPS,
    "newton_schulz": linalg.orthogonalize,
    "svd": lambda a: linalg.orthogonalize(a, method="svd"),
}
PER_FUNCTION = pytest.mark.parametrize("name", FUNCTIONS)


def _stack():
    """Four matrices of which the iterations take different times."""
    conditions = (2.0, 1e4, 30.0, 300.0)
    return np.stack(
        [log_spaced(4, c, seed) for seed, c in enumerate(conditions)]
    ).astype(np.float32)


def _leaves(output):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(output)]


@PER_FUNCTION
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (0, 1)], ids=["diagonal", "off"])
def test_bad_matrix_fails_alone(name, bad, place):
    # One program: only the values of the bad matrix may differ.
    function = jax.jit(FUNCTIONS[name])
    a = _stack()
    wanted = _leaves(function(a))
    a[1][place] = a[1][place[::-1]] = bad
    found = function(a)
    np.testing.assert_array_equal(found[1].success, [True, False, True, True])
    for leaf, other in zip(_leaves(found), wanted, strict=True):
        assert np.all(np.isfinite(leaf))
        np.testing.assert_array_equal(np.delete(leaf, 1, 0), np.delete(other, 1, 0))


@pytest.mark.parametrize("name", WITH_EPS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_eps_fails_alone(name, bad):
    function, a = jax.jit(WITH_EPS[name]), _stack()
    wanted = _leaves(function(a, jnp.full(4, 0.1)))
    found = function(a, jnp.full(4, 0.1).at[2].set(bad))
    np.testing.assert_array_equal(found[1].success, [True, True, False, True])
    for leaf, other in zip(_leaves(found), wanted, strict=True):
        np.testing.assert_array_equal(np.delete(leaf, 2, 0), np.delete(other, 2, 0))


@PER_FUNCTION
def test_stack_equals_each_matrix_alone(name):
    a = _stack().reshape(2, 2, 4, 4)
    function = FUNCTIONS[name]
    result, info = function(a)
    assert {leaf.shape for leaf in info} == {(2, 2)}
    assert [leaf.dtype for leaf in info] == [jnp.int32, jnp.float32, jnp.bool_]
    for index in np.ndindex(2, 2):
        alone, own = function(a[index])
        assert {leaf.shape for leaf in own} == {()}
        assert int(own.iterations) == int(info.iterations[index])
        for leaf, other in zip(_leaves(result), _leaves(alone), strict=True):
            np.testing.assert_allclose(leaf[index], other, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", WITH_EPS)
def test_eps_of_each_matrix(name):
    a, eps = _stack()[:2], [1e-3, 0.5]
    result, _ = WITH_EPS[name](a, jnp.array(eps))
    for index in range(2):
        alone, _ = WITH_EPS[name](a[index], eps[index])
        for leaf, other in zip(_leaves(result), _leaves(alone), strict=True):
            np.testing.assert_allclose(leaf[index], other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WITH_EPS)
@pytest.mark.parametrize("eps", [np.float64(0.1), np.full(4, 0.1)], ids=["one", "each"])
def test_eps_does_not_widen_the_matrices(name, eps, x64):
    result, info = WITH_EPS[name](_stack(), eps)
    assert {leaf.dtype for leaf in _leaves(result)} == {np.dtype("float32")}
    assert info.error.dtype == jnp.float32


@PER_FUNCTION
def test_works_in_double(name, x64):
    result, info = FUNCTIONS[name](_stack().astype(np.float64))
    assert {leaf.dtype for leaf in _leaves(result)} == {np.dtype("float64")}
    assert info.error.dtype == jnp.float64 and info.iterations.dtype == jnp.int32


@PER_FUNCTION
def test_matrices_of_one_entry(name):
    result, info = FUNCTIONS[name](jnp.full((2, 1, 1), 16.0))
    wanted = {
        "eigendecomposition": [16.0, 1.0],
        "newton_schulz": None,
        "svd": [1.0],
        **dict.fromkeys(["qr", "qr_many", "qr_tolerance"], [16.0, 1.0]),
    }.get(name, [0.5])
    assert np.all(info.success)
    if wanted is None:
        return
    for leaf, value in zip(_leaves(result), wanted, strict=True):
        np.testing.assert_allclose(np.abs(leaf), value, rtol=1e-6)


@PER_FUNCTION
def test_empty_stack(name):
    result, info = jax.jit(FUNCTIONS[name])(jnp.zeros((0, 3, 3)))
    assert {leaf.shape for leaf in info} == {(0,)}
    assert {leaf.shape[0] for leaf in _leaves(result)} == {0}


@PER_FUNCTION
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_each_device_solves_its_own(name, kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])
    spec = PartitionSpec("data")
    function = jax.jit(
        jax.shard_map(FUNCTIONS[name], mesh=mesh, in_specs=spec, out_specs=spec)
    )
    a = jax.device_put(_stack(), NamedSharding(mesh, spec))
    compiled = function.lower(a).compile()
    for collective in ("all-reduce", "all-gather", "collective-permute", "all-to-all"):
        assert collective not in compiled.as_text()
    found = compiled(a)
    for leaf, other in zip(
        _leaves(found), _leaves(FUNCTIONS[name](_stack())), strict=True
    ):
        np.testing.assert_allclose(leaf, other, rtol=2e-4, atol=2e-5)


def _products(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from _products(inner)


@PER_FUNCTION
def test_products_are_in_full_precision(name):
    highest = jax.lax.Precision.HIGHEST
    precisions = set(_products(jax.make_jaxpr(FUNCTIONS[name])(_stack()).jaxpr))
    assert precisions == {(highest, highest)}


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e30])
def test_frobenius_norm_of_any_size(scale):
    a = scale * jnp.array([[3.0, 0.0], [0.0, -4.0]])
    assert float(linalg.frobenius_norm(a)) == pytest.approx(5.0 * scale, rel=1e-6)


def test_info_names_its_fields():
    assert linalg.SolverInfo._fields == ("iterations", "error", "success")
