import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax import linalg
from tests.optim_jax.linalg.matrices import log_spaced


def test_decomposes(x64):
    a = np.stack([log_spaced(5, 100.0, seed) for seed in range(3)])
    (eigenvalues, q), info = linalg.eigendecomposition(a)
    np.testing.assert_allclose(
        (q * eigenvalues[:, None]) @ np.swapaxes(q, 1, 2), a, atol=1e-14
    )
    assert np.all(np.diff(eigenvalues) > 0)
    np.testing.assert_allclose(np.swapaxes(q, 1, 2) @ q, [np.eye(5)] * 3, atol=1e-14)
    np.testing.assert_array_equal(info.iterations, 1)
    assert np.all(info.success) and np.all(info.error < 1e-14)


def test_error_is_that_of_the_eigenpairs():
    a = jnp.asarray(log_spaced(6, 10.0), jnp.float32)
    (eigenvalues, q), info = linalg.eigendecomposition(a)
    a, q = np.asarray(a, np.float64), np.asarray(q, np.float64)
    wanted = np.linalg.norm(a @ q - q * np.asarray(eigenvalues)) / np.linalg.norm(a)
    assert 0 < float(info.error) < 1e-6
    # The residual is itself at rounding, so only its size can agree.
    assert abs(float(info.error) - wanted) < 5e-7


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_error_of_matrices_whose_squares_leave_the_range(scale):
    a = jnp.asarray(scale * log_spaced(4, 10.0), jnp.float32)
    _, info = linalg.eigendecomposition(a)
    assert 0 <= float(info.error) < 1e-6


def test_only_the_symmetric_part_counts():
    a = jnp.array([[1.0, 3.0], [1.0, 1.0]])
    (eigenvalues, _), _ = linalg.eigendecomposition(a)
    np.testing.assert_allclose(eigenvalues, [-1.0, 3.0], rtol=1e-6)


def test_zero_matrix_has_no_error():
    _, info = linalg.eigendecomposition(jnp.zeros((3, 3)))
    assert float(info.error) == 0.0 and info.success


def test_eps_is_added_once(x64):
    a = np.stack([log_spaced(4, 10.0)] * 2)
    (plain, _), _ = linalg.eigendecomposition(a[0])
    (found, _), _ = linalg.eigendecomposition(a, eps=jnp.array([0.25, 2.0]))
    np.testing.assert_allclose(found, [plain + 0.25, plain + 2.0], rtol=1e-12)
    (found, _), _ = linalg.eigendecomposition(a[0], eps=0.25)
    np.testing.assert_allclose(found, plain + 0.25, rtol=1e-12)


@pytest.mark.parametrize(
    "trap", [[[np.nan, 1.0], [1.0, 2.0]], [[np.inf, 1.0], [1.0, 2.0]]]
)
def test_no_garbage_of_the_solver_gets_out(trap):
    # LAPACK answers the first with finite eigenvalues and the second with finite
    # vectors.
    good = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    (eigenvalues, q), info = linalg.eigendecomposition(
        jnp.stack([jnp.array(trap), good])
    )
    np.testing.assert_array_equal(info.success, [False, True])
    np.testing.assert_array_equal(eigenvalues[0], [1.0, 1.0])
    np.testing.assert_array_equal(q[0], np.eye(2))
    np.testing.assert_allclose(eigenvalues[1], [1.0, 3.0], rtol=1e-6)


def test_eps_that_is_not_finite_does_not_reach_the_solver():
    a = jnp.stack([jnp.eye(2)] * 3)
    (eigenvalues, q), info = linalg.eigendecomposition(
        a, eps=jnp.array([jnp.nan, jnp.inf, 1.0])
    )
    np.testing.assert_array_equal(info.success, [False, False, True])
    assert np.all(np.isfinite(eigenvalues)) and np.all(np.isfinite(q))
    np.testing.assert_array_equal(eigenvalues[2], 2.0)


@pytest.mark.parametrize("eps", [0.5, np.array([0.5, 0.5], np.float32)])
def test_eigenvalues_are_shifted_up_to_eps_where_the_smallest_is_below(eps):
    eigenvalues = jnp.array([[0.5, 2.0], [-1.0, 2.0]])
    found = linalg.inverse_root_eigenvalues(eigenvalues, 1.0, eps=eps)
    np.testing.assert_allclose(found, [[2.0, 0.5], [2.0, 1 / 3.5]], rtol=1e-6)


@pytest.mark.parametrize(
    ("smallest", "wanted"), [(-1e-9, 1e3), (0.0, 1e3), (0.25, 1.999996)]
)
def test_eps_afterwards(smallest, wanted):
    found = linalg.inverse_root_eigenvalues(
        jnp.array([smallest, 1.0]), 0.5, eps=1e-6, perturb_before=False
    )
    assert float(found[0]) == pytest.approx(wanted, rel=1e-6)


def test_exponent_per_matrix():
    found = linalg.inverse_root_eigenvalues(
        jnp.array([[4.0, 16.0]] * 3), jnp.array([0.5, 0.25, 0.0])
    )
    np.testing.assert_allclose(
        found, [[0.5, 0.25], [4**-0.25, 0.5], [1.0, 1.0]], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("rank", "wanted"),
    [
        ({}, [0.0, 0.0, 1e3, 0.5]),
        ({"rank_atol": 1e-6}, [0.0, 0.0, 0.0, 0.5]),
        ({"rank_rtol": 1e-6}, [0.0, 0.0, 0.0, 0.5]),
        ({"rank_rtol": 1e-8}, [0.0, 0.0, 1e3, 0.5]),
        ({"rank_rtol": None}, [0.0, 0.0, 0.0, 0.5]),
    ],
)
def test_rank_of_the_pseudo_inverse(rank, wanted):
    found = linalg.inverse_root_eigenvalues(
        jnp.array([-1e-3, 0.0, 1e-6, 4.0]), 0.5, pseudo_inverse=True, **rank
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_default_rank_is_d_times_machine_epsilon():
    eps = float(jnp.finfo(jnp.float32).eps)
    found = linalg.inverse_root_eigenvalues(
        jnp.array([1.9 * eps, 1.0]), 1.0, pseudo_inverse=True, rank_rtol=None
    )
    assert float(found[0]) == 0.0
    found = linalg.inverse_root_eigenvalues(
        jnp.array([2.1 * eps, 1.0]), 1.0, pseudo_inverse=True, rank_rtol=None
    )
    assert float(found[0]) > 0.0


def test_pseudo_inverse_of_nothing_is_zero():
    found = linalg.inverse_root_eigenvalues(
        jnp.array([-2.0, -1.0]), 0.5, pseudo_inverse=True
    )
    np.testing.assert_array_equal(found, 0.0)


@pytest.mark.parametrize("d", [1, 2, 7])
def test_off_diagonal_ratio(d, x64):
    b = np.random.default_rng(0).normal(size=(3, d, d))
    outer = b - np.stack([np.diag(np.diag(m)) for m in b])
    wanted = np.linalg.norm(outer, axis=(1, 2)) / np.linalg.norm(b, axis=(1, 2))
    np.testing.assert_allclose(linalg.off_diagonal_ratio(b), wanted, atol=1e-8)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e30])
def test_off_diagonal_ratio_of_any_size(scale):
    b = scale * jnp.array([[3.0, 0.0], [4.0, 0.0]])
    wanted = 0.8 if scale else 0.0
    assert float(linalg.off_diagonal_ratio(b)) == pytest.approx(wanted, abs=1e-6)


def test_off_diagonal_ratio_of_a_diagonal_matrix_is_no_root_of_a_negative_number():
    # The sums over the matrix and over the diagonal may round differently.
    rng = np.random.default_rng(0)
    b = np.stack([np.diag(rng.normal(size=33)) for _ in range(64)]).astype(np.float32)
    found = np.asarray(linalg.off_diagonal_ratio(b))
    assert np.all((found >= 0.0) & (found <= 1e-3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: linalg.eigendecomposition(jnp.ones((2, 3))),
            r"a must have the shape \(..., d, d\), got \(2, 3\)",
        ),
        (
            lambda: linalg.eigendecomposition(jnp.eye(2), eps=-0.5),
            "eps must be finite and >= 0, got -0.5",
        ),
        (
            lambda: linalg.inverse_root_eigenvalues(jnp.ones(2), -1.0),
            "exponent must be finite and >= 0, got -1.0",
        ),
        (
            lambda: linalg.inverse_root_eigenvalues(jnp.ones(2), np.nan),
            "exponent must be finite and >= 0, got nan",
        ),
        (
            lambda: linalg.inverse_root_eigenvalues(jnp.ones(2), 1.0, eps=np.inf),
            "eps must be finite and >= 0, got inf",
        ),
        (
            lambda: linalg.inverse_root_eigenvalues(
                jnp.ones(2), 1.0, eps=0.5, pseudo_inverse=True
            ),
            "eps must be 0 with a pseudo-inverse, got 0.5",
        ),
        (
            lambda: linalg.inverse_root_eigenvalues(jnp.ones(2), 1.0, rank_rtol=-1),
            "rank_rtol must be finite and >= 0, got -1",
        ),
        (
            lambda: linalg.inverse_root_eigenvalues(jnp.ones(2), 1.0, rank_atol=-1),
            "rank_atol must be finite and >= 0, got -1",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
