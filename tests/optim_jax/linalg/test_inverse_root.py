import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax import linalg
from tests.optim_jax.linalg.matrices import (
    CONDITIONS,
    FUNCTIONS,
    exact_root,
    log_spaced,
    relative_error,
    rounding_bound,
    stored_arrays,
)

NO_RIDGE = {"rel_eps": 0.0, "abs_eps": 0.0}
METHODS = {
    "eigh": {"method": "eigh"},
    "coupled_newton": {"method": "coupled_newton"},
    "coupled_newton_power": {"method": "coupled_newton", "scaling": "power"},
    "coupled_higher_order": {"method": "coupled_higher_order", **NO_RIDGE},
}
EPS = float(np.finfo(np.float32).eps)


def _group(entry):
    return entry["matrix"], entry["method"], tuple(entry["root"]), entry.get("order")


STORED = {
    group: list(entries)
    for group, entries in itertools.groupby(
        sorted(FUNCTIONS["inverse_roots"], key=lambda e: tuple(map(str, _group(e)))),
        key=_group,
    )
}


def test_all_stored_roots_are_replayed():
    assert sum(map(len, STORED.values())) == 57


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("group", STORED, ids=str)
def test_stored_roots(group, dtype, x64):
    """Values of the original implementation; entries that differ in eps in one batch.

    The rounding of float32 alone, times the condition, sets its looser bound.
    """
    matrix, method, (p, q), order = group
    entries, arrays = STORED[group], stored_arrays()
    a = np.stack([arrays[matrix]] * len(entries)).astype(dtype)
    if method == "coupled_higher_order":
        [entry] = entries
        options = {
            "rel_eps": entry["rel_epsilon"],
            "abs_eps": entry["abs_epsilon"],
            "order": order,
            "tolerance": entry["tolerance"],
        }
    else:
        options = {"eps": jnp.array([entry["epsilon"] for entry in entries], dtype)}
    if method == "coupled_newton":
        options["max_iterations"] = entries[0]["max_iterations"]
        options["tolerance"] = entries[0]["tolerance"]
    found, info = linalg.matrix_inverse_root(a, p, q, method=method, **options)
    assert found.dtype == dtype
    assert np.all(info.success)
    smallest = np.linalg.norm(arrays[matrix], 2) / CONDITIONS[matrix]
    for entry, root in zip(entries, found, strict=True):
        condition = CONDITIONS[matrix] / (1 + entry.get("epsilon", 0.0) / smallest)
        error = relative_error(root, arrays[entry["key"]])
        assert error <= rounding_bound(dtype, condition), entry["key"]


SPECTRA = (1.0, 1e2, 1e4, 1e6)


@pytest.mark.parametrize("d", [4, 16, 64])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "eigh"])
def test_float32_error_of_the_iterations(name, d):
    exact = np.stack([log_spaced(d, condition) for condition in SPECTRA])
    found, info = linalg.matrix_inverse_root(
        exact.astype(np.float32), 4, **METHODS[name]
    )
    assert np.all(info.success)
    error = relative_error(found, exact_root(exact, 0.25))
    assert np.all(error <= 2e-6 + 0.1 * EPS * np.array(SPECTRA)), error


@pytest.mark.parametrize("d", [4, 16, 64])
def test_float32_error_of_eigh(d):
    # Single-precision LAPACK is backward stable: it moves eigenvalues by about
    # eps * norm(A), hence the smallest by eps * cond of itself and its fourth root by a
    # quarter of that. Measured on CPU: up to 0.28 * eps * cond at d = 64.
    exact = np.stack([log_spaced(d, condition) for condition in SPECTRA])
    found, info = linalg.eigh_inverse_root(exact.astype(np.float32), 4)
    assert np.all(info.error <= 20 * EPS)
    error = relative_error(found, exact_root(exact, 0.25))
    assert np.all(error <= 1e-6 + EPS * np.array(SPECTRA)), error


@pytest.mark.parametrize("d", [4, 16, 64])
def test_error_of_eigh_in_double_from_float32_matrices(d, x64):
    # What is left once the solver works in double is the rounding of its input.
    exact = np.stack([log_spaced(d, condition) for condition in SPECTRA])
    rounded = exact.astype(np.float32).astype(np.float64)
    found, _ = linalg.eigh_inverse_root(rounded, 4)
    error = relative_error(found.astype(np.float32), exact_root(exact, 0.25))
    assert np.all(error <= 1e-6 + 0.02 * EPS * np.array(SPECTRA)), error


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("p", [1, 2, 3, 8])
def test_power_of_the_root_is_the_inverse_and_it_commutes(name, p, x64):
    a = log_spaced(6, 100.0)
    options = {} if name == "eigh" else {"tolerance": 1e-12}
    root, info = linalg.matrix_inverse_root(a, p, **METHODS[name], **options)
    assert info.success
    np.testing.assert_allclose(
        np.linalg.matrix_power(np.asarray(root), p) @ a, np.eye(6), atol=1e-10
    )
    np.testing.assert_allclose(a @ root, root @ a, atol=1e-12)
    np.testing.assert_allclose(root, np.swapaxes(root, 0, 1), atol=1e-11)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "eigh"])
def test_methods_agree_with_a_ridge(name, x64):
    a, eps = log_spaced(6, 1e5), 1e-3
    wanted, _ = linalg.eigh_inverse_root(a, 4, eps=eps)
    options = dict(METHODS[name], tolerance=1e-12)
    if name == "coupled_higher_order":
        options["abs_eps"] = eps
    else:
        options["eps"] = eps
    found, _ = linalg.matrix_inverse_root(a, 4, **options)
    np.testing.assert_allclose(found, wanted, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("name", ["eigh", "coupled_higher_order"])
@pytest.mark.parametrize(
    ("p", "q", "exponent"),
    [
        (5, 2, 0.4),
        (2.5, 1, 0.4),
        (Fraction(5, 2), 1, 0.4),
        (1, 0.4, 0.4),
        (1, 0.375, 0.375),
        (8, 3, 0.375),
        (1, 1 / 3, 1 / 3),
        (4, 2, 0.5),
        (np.int64(2), np.float32(0.5), 0.25),
        (2, 3, 1.5),
    ],
)
def test_rational_roots(name, p, q, exponent, x64):
    a = log_spaced(5, 50.0)
    found, info = linalg.matrix_inverse_root(a, p, q, **METHODS[name])
    assert info.success
    np.testing.assert_allclose(found, exact_root(a, exponent), atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_newton_takes_a_fraction_that_is_one_over_an_integer(name, x64):
    a = log_spaced(4, 10.0)
    found, _ = linalg.matrix_inverse_root(a, 6, 2, **METHODS[name])
    np.testing.assert_allclose(found, exact_root(a, 1 / 3), atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_identity_and_diagonal(name):
    scales = np.array([1.0, 16.0, 81.0], np.float32)
    a = np.stack([np.eye(3, dtype=np.float32), np.diag(scales)])
    found, _ = linalg.matrix_inverse_root(a, 4, **METHODS[name])
    wanted = np.stack([np.eye(3), np.diag([1.0, 1 / 2, 1 / 3])])
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=0.0)


def test_eigh_of_the_identity_is_exact():
    found, info = linalg.eigh_inverse_root(jnp.eye(3), 4)
    np.testing.assert_array_equal(found, np.eye(3))
    assert (int(info.iterations), float(info.error)) == (1, 0.0)


def test_eps_before_is_that_of_the_ridge(x64):
    a = log_spaced(5, 100.0)
    found, _ = linalg.eigh_inverse_root(a, 2, eps=0.3)
    np.testing.assert_allclose(found, exact_root(a + 0.3 * np.eye(5), 0.5), rtol=1e-12)


def test_eps_before_shifts_an_indefinite_matrix_to_eps(x64):
    # diag(-1, 3) + 0.5 I has -0.5 < 0.5: all move up by 1, the smallest is eps.
    found, _ = linalg.eigh_inverse_root(jnp.diag(jnp.array([-1.0, 3.0])), 2, eps=0.5)
    np.testing.assert_allclose(found, np.diag([0.5**-0.5, 4.5**-0.5]), rtol=1e-14)


def test_eps_after_adds_to_eigenvalues_that_are_not_negative(x64):
    a = jnp.stack([jnp.diag(jnp.array(v)) for v in ([-1.0, 3.0], [1.0, 3.0])])
    found, _ = linalg.eigh_inverse_root(a, 2, eps=0.5, perturb_before=False)
    wanted = [np.diag([0.5**-0.5, 4.5**-0.5]), np.diag([1.5**-0.5, 3.5**-0.5])]
    np.testing.assert_allclose(found, wanted, rtol=1e-14)


def test_pseudo_inverse_of_a_rank_deficient_matrix():
    a = jnp.diag(jnp.array([0.0, 4.0]))
    found, info = linalg.eigh_inverse_root(a, 2, pseudo_inverse=True)
    np.testing.assert_array_equal(found, np.diag([0.0, 0.5]))
    assert info.success


def test_singular_matrix_without_eps_fails_but_does_not_raise():
    a = jnp.diag(jnp.array([0.0, 4.0]))
    _, info = linalg.eigh_inverse_root(a, 2)
    assert not info.success


def test_infinite_eps_is_a_failure_although_its_root_is_zero():
    a = jnp.stack([jnp.eye(2)] * 2)
    _, info = linalg.eigh_inverse_root(
        a, 2, eps=jnp.array([jnp.inf, 1.0]), perturb_before=False
    )
    np.testing.assert_array_equal(info.success, [False, True])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "svd"}, "method must be one of coupled_higher_order, coupled_newt"),
        ({"method": ["eigh"]}, r"eigh, got \['eigh'\]"),
        ({"p": 0}, "p must be a finite number > 0, got 0"),
        ({"p": -2}, "p must be a finite number > 0, got -2"),
        ({"p": 1e-5}, "p must be at least 0.001, got 1e-05"),
        ({"p": np.nan}, "p must be a finite number > 0, got nan"),
        ({"p": np.inf}, "p must be a finite number > 0, got inf"),
        ({"p": True}, "p must be a finite number > 0, got True"),
        ({"p": "4"}, "p must be a finite number > 0, got '4'"),
        ({"q": 0}, "q must be a finite number > 0, got 0"),
        ({"method": "coupled_newton", "q": 3}, "coupled_newton computes roots 1/p, go"),
        ({"eps": -1.0}, "eps must be finite and >= 0, got -1.0"),
        ({"eps": np.nan}, "eps must be finite and >= 0, got nan"),
        ({"eps": np.array([0.1, np.nan])}, "eps must be finite and >= 0, got array"),
        ({"eps": None}, "eps must be finite and >= 0, got None"),
        ({"pseudo_inverse": True, "eps": 0.1}, "eps must be 0 with a pseudo-inverse"),
        ({"rank_rtol": -0.1}, "rank_rtol must be finite and >= 0, got -0.1"),
        ({"rank_atol": np.nan}, "rank_atol must be finite and >= 0, got nan"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    options = {"p": 2, **options}
    with pytest.raises(ValueError, match=message):
        linalg.matrix_inverse_root(jnp.eye(2), options.pop("p"), **options)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("a", "message"),
    [
        (np.ones(3, np.float32), r"a must have the shape \(..., d, d\), got \(3,\)"),
        (np.ones((2, 3), np.float32), r"a must have the shape .* got \(2, 3\)"),
        (np.eye(2, dtype=int), "a must be of a real floating-point dtype, got int32"),
        (jnp.eye(2, dtype=jnp.bfloat16), "dtype float32 or float64, got bfloat16"),
        (np.eye(2, dtype=np.complex64), "real floating-point dtype, got complex64"),
    ],
)
def test_bad_matrices_are_refused(name, a, message):
    with pytest.raises(ValueError, match=message):
        linalg.matrix_inverse_root(a, 2, **METHODS[name])


def test_arguments_are_checked_while_tracing():
    with pytest.raises(ValueError, match="method must be one of"):
        jax.jit(lambda a: linalg.matrix_inverse_root(a, 2, method="lu"))(jnp.eye(2))
