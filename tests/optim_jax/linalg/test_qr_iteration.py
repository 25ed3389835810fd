import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax import linalg
from tests.optim_jax.linalg.matrices import (
    CONDITIONS,
    FUNCTIONS,
    log_spaced,
    stored_arrays,
)


def _basis(d, seed=1):
    rng = np.random.default_rng(seed)
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "entry", FUNCTIONS["eigendecompositions"], ids=lambda entry: entry["key"]
)
def test_stored_iterations(entry, dtype, x64):
    """Values of the original implementation.

    Without tolerance it stops by chance, once its off-diagonal norm cancels to zero;
    we run on, and its basis of 50 iterations is converged to 1e-7 only.
    """
    arrays = stored_arrays()
    (eigenvalues, q), info = linalg.qr_eigendecomposition(
        arrays[entry["matrix"]].astype(dtype),
        arrays[entry["estimate"]].astype(dtype),
        eps=entry["epsilon"],
        max_iterations=entry["max_iterations"],
        tolerance=entry["tolerance"],
    )
    assert info.success and q.dtype == dtype
    rounding = float(np.finfo(dtype).eps)
    atol = rounding * (20.0 + 0.1 * CONDITIONS[entry["matrix"]])
    converged = entry["max_iterations"] == 50 and entry["tolerance"] == 0.0
    wanted = arrays[entry["key"] + "_L"]
    np.testing.assert_allclose(
        eigenvalues, wanted, rtol=0.0, atol=atol * np.max(wanted)
    )
    np.testing.assert_allclose(
        np.abs(q),
        arrays[entry["key"] + "_Qabs"],
        rtol=0.0,
        atol=atol + (1e-7 if converged else 0.0),
    )
    # The norm is a difference of squares, so small ratios are lost below sqrt(eps).
    assert float(info.error) == pytest.approx(
        entry["relative_off_diagonal_after"], abs=2 * rounding**0.5
    )


def test_converges_to_eigh(x64):
    a = log_spaced(6, 1e4)
    (eigenvalues, q), info = linalg.qr_eigendecomposition(
        a, _basis(6), max_iterations=50
    )
    wanted, vectors = np.linalg.eigh(a)
    np.testing.assert_allclose(eigenvalues, wanted, rtol=1e-10)
    np.testing.assert_allclose(np.abs(vectors.T @ q), np.eye(6), atol=1e-9)
    assert float(info.error) < 1e-7


@pytest.mark.parametrize("max_iterations", [1, 2, 20])
def test_basis_stays_orthogonal_and_estimates_sum_to_the_trace(max_iterations):
    a = np.stack([log_spaced(16, 100.0, seed) for seed in range(3)]).astype(np.float32)
    bases = np.stack([_basis(16, seed) for seed in range(3)]).astype(np.float32)
    (eigenvalues, q), info = linalg.qr_eigendecomposition(
        a, bases, max_iterations=max_iterations
    )
    gram = np.swapaxes(q, 1, 2) @ q
    np.testing.assert_allclose(gram, [np.eye(16)] * 3, atol=3e-6)
    np.testing.assert_allclose(
        np.sum(eigenvalues, axis=-1), np.trace(a, axis1=1, axis2=2), rtol=2e-6
    )
    assert np.all(np.diff(eigenvalues) >= 0)
    np.testing.assert_array_equal(info.iterations, max_iterations)


def test_one_iteration_is_one_of_orthogonal_iteration(x64):
    a, basis = log_spaced(5, 10.0), _basis(5)
    _, q, order, _ = linalg.qr_eigendecomposition_with_order(a, basis)
    wanted = np.linalg.qr(a @ basis)[0][:, np.asarray(order)]
    np.testing.assert_allclose(np.abs(wanted.T @ q), np.eye(5), atol=1e-10)


def test_estimates_are_those_of_the_basis(x64):
    a, eps = log_spaced(5, 10.0), 0.5
    (eigenvalues, q), _ = linalg.qr_eigendecomposition(
        a, _basis(5), eps=eps, max_iterations=3
    )
    wanted = np.diag(np.asarray(q).T @ a @ q) + eps
    np.testing.assert_allclose(eigenvalues, wanted, rtol=1e-12)


def test_order_tells_which_column_continues_which(x64):
    a = np.diag([3.0, 1.0, 2.0])
    eigenvalues, q, order, info = linalg.qr_eigendecomposition_with_order(a, np.eye(3))
    np.testing.assert_array_equal(order, [1, 2, 0])
    np.testing.assert_allclose(eigenvalues, [1.0, 2.0, 3.0], rtol=1e-14)
    np.testing.assert_allclose(np.abs(q), np.eye(3)[:, [1, 2, 0]], atol=1e-14)
    assert float(info.error) == 0.0


def test_equal_estimates_keep_their_order():
    _, _, order, _ = linalg.qr_eigendecomposition_with_order(jnp.eye(6), jnp.eye(6))
    np.testing.assert_array_equal(order, np.arange(6))


def test_each_matrix_stops_where_it_would_alone(x64):
    a = np.stack([log_spaced(5, c) for c in (1e6, 1.5, 30.0)] + [np.eye(5)])
    bases = np.stack([_basis(5)] * 4)
    options = {"max_iterations": 40, "tolerance": 1e-3}
    (eigenvalues, q), info = linalg.qr_eigendecomposition(a, bases, **options)
    assert len(set(info.iterations.tolist())) == 4
    assert int(info.iterations[3]) == 0 and int(info.iterations[1]) == 40
    for index in range(4):
        (alone, basis), own = linalg.qr_eigendecomposition(
            a[index], bases[index], **options
        )
        assert int(own.iterations) == int(info.iterations[index])
        np.testing.assert_allclose(eigenvalues[index], alone, rtol=1e-12)
        np.testing.assert_allclose(q[index], basis, atol=1e-12)


def test_tolerance_is_met_where_iterations_are_left():
    a = jnp.asarray(log_spaced(8, 1e3), jnp.float32)
    basis = jnp.asarray(_basis(8), jnp.float32)
    _, info = linalg.qr_eigendecomposition(a, basis, max_iterations=99, tolerance=0.05)
    assert 0 < int(info.iterations) < 99 and float(info.error) <= 0.05


def test_good_basis_is_only_sorted():
    a = jnp.asarray(log_spaced(4, 100.0), jnp.float32)
    _, vectors = np.linalg.eigh(np.asarray(a))
    (_, q), info = linalg.qr_eigendecomposition(
        a, vectors[:, ::-1], max_iterations=9, tolerance=0.01
    )
    assert int(info.iterations) == 0
    np.testing.assert_array_equal(q, vectors)


def _loops(max_iterations, tolerance):
    """Loops of the compiled program, and how many have a count known beforehand."""
    function = jax.jit(
        lambda a, q: linalg.qr_eigendecomposition(
            a, q, max_iterations=max_iterations, tolerance=tolerance
        )
    )
    text = function.lower(jnp.eye(3), jnp.eye(3)).compile().as_text()
    assert "conditional" not in text
    return text.count(" while("), text.count("known_trip_count")


def test_without_tolerance_no_predicate_looks_at_the_data():
    assert _loops(1, 0.0) == (0, 0)
    assert _loops(7, 0.0) == (1, 1)
    assert _loops(7, 0.1) == (1, 0)


def test_bad_old_basis_is_a_failure_of_its_matrix_only():
    a = jnp.stack([jnp.asarray(log_spaced(3, 10.0), jnp.float32)] * 2)
    bases = jnp.stack([jnp.full((3, 3), jnp.nan), jnp.eye(3)])
    (eigenvalues, q), info = linalg.qr_eigendecomposition(a, bases)
    np.testing.assert_array_equal(info.success, [False, True])
    assert np.all(np.isfinite(eigenvalues)) and np.all(np.isfinite(q))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"q": jnp.eye(3)}, r"same shape, got \(2, 2\) and \(3, 3\)"),
        ({"q": jnp.ones((2, 3))}, r"q must have the shape \(..., d, d\), got \(2, 3\)"),
        ({"a": jnp.ones(2)}, r"a must have the shape \(..., d, d\), got \(2,\)"),
        ({"max_iterations": 0}, "max_iterations must be an integer >= 1, got 0"),
        ({"max_iterations": 1.5}, "max_iterations must be an integer >= 1, got 1.5"),
        ({"tolerance": -0.1}, r"tolerance must be in \[0, 1\], got -0.1"),
        ({"tolerance": np.nan}, r"tolerance must be in \[0, 1\], got nan"),
        ({"eps": np.nan}, "eps must be finite and >= 0, got nan"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    arguments = {"a": jnp.eye(2), "q": jnp.eye(2), **options}
    with pytest.raises(ValueError, match=message):
        linalg.qr_eigendecomposition(**arguments)
