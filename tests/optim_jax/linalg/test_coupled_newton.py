import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax import linalg
from tests.optim_jax.linalg.matrices import exact_root, log_spaced, relative_error

CONDITIONS = (1e1, 1e2, 1e4, 1e6, 1e8)
COUNTS = {
    2: [8, 10, 16, 21, 27],
    4: [7, 9, 14, 19, 24],
    8: [6, 8, 13, 17, 22],
}


@pytest.fixture
def spectra():
    return np.stack([log_spaced(64, condition) for condition in CONDITIONS])


def _newton(a, p, eps, tolerance, max_iterations):
    """The iteration of one matrix in NumPy: root, iterations, error."""
    a = a + eps * np.eye(len(a))
    z = (p + 1) / (2 * np.linalg.norm(a))
    root, coupled, count = z ** (1 / p) * np.eye(len(a)), z * a, 0
    while np.max(np.abs(coupled - np.eye(len(a)))) > tolerance:
        if count == max_iterations:
            break
        factor = (1 + 1 / p) * np.eye(len(a)) - coupled / p
        root, coupled = root @ factor, np.linalg.matrix_power(factor, p) @ coupled
        count += 1
    return root, count, np.max(np.abs(coupled - np.eye(len(a))))


@pytest.mark.parametrize("p", COUNTS)
def test_iterations_of_log_spaced_spectra(p, spectra, x64):
    _, info = linalg.coupled_newton_inverse_root(spectra, p)
    assert info.iterations.tolist() == COUNTS[p]
    assert np.all(info.error <= 1e-6) and np.all(info.success)


def test_power_scaling_saves_iterations_and_finds_the_same_root(spectra, x64):
    spectra = spectra[:3]
    plain, info = linalg.coupled_newton_inverse_root(spectra, 4, tolerance=1e-10)
    root, power = linalg.coupled_newton_inverse_root(
        spectra, 4, tolerance=1e-10, scaling="power"
    )
    assert np.all(power.iterations < info.iterations)
    assert np.all(relative_error(root, plain) < 1e-10)


@pytest.mark.parametrize("bulk", [0.0, 0.4, 0.99])
def test_power_scaling_converges_from_a_start_that_sees_little_of_the_top(bulk, x64):
    # The top eigenvector has a share of 1/64 in every column.
    flat = np.ones((64, 64)) / 64
    a = (1.0 - bulk) * flat + (bulk + 1e-3) * np.eye(64)
    root, info = linalg.coupled_newton_inverse_root(a, 4, scaling="power")
    assert float(info.error) <= 1e-6
    assert relative_error(root, exact_root(a, 0.25)) < 1e-6


@pytest.mark.parametrize("max_iterations", [3, 100])
@pytest.mark.parametrize("p", [1, 3, 6])
def test_equals_the_iteration_of_each_matrix_alone(p, max_iterations, x64):
    a = np.stack([log_spaced(5, condition) for condition in (2.0, 1e6, 50.0)])
    eps = np.array([0.0, 1e-9, 0.1])
    roots, info = linalg.coupled_newton_inverse_root(
        a, p, eps=eps, max_iterations=max_iterations, tolerance=1e-8
    )
    for index in range(3):
        root, count, error = _newton(a[index], p, eps[index], 1e-8, max_iterations)
        assert int(info.iterations[index]) == count
        assert float(info.error[index]) == pytest.approx(error, rel=1e-5, abs=1e-12)
        assert relative_error(roots[index], root) < 1e-9


def test_not_reaching_the_tolerance_is_no_failure():
    a = jnp.asarray(log_spaced(4, 1e4), jnp.float32)
    _, info = linalg.coupled_newton_inverse_root(a, 4, max_iterations=2)
    assert info.success and int(info.iterations) == 2 and float(info.error) > 0.1


def test_no_iteration_where_the_start_is_the_root():
    # z A = (p + 1) / 2 * A / norm(A) is the identity for A = I of size 1 and p = 1.
    _, info = linalg.coupled_newton_inverse_root(jnp.eye(1), 1)
    assert int(info.iterations) == 0 and float(info.error) == 0.0


@pytest.mark.parametrize("scaling", ["frobenius", "power"])
def test_zero_matrix_ends(scaling):
    a = jnp.stack([jnp.zeros((3, 3)), jnp.eye(3)])
    roots, info = linalg.coupled_newton_inverse_root(a, 2, scaling=scaling)
    assert int(info.iterations[0]) == 100 and float(info.error[0]) == 1.0
    np.testing.assert_allclose(roots[1], np.eye(3), rtol=1e-6)


@pytest.mark.parametrize("scaling", ["frobenius", "power"])
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_matrices_whose_squares_leave_the_range(scaling, size):
    a = log_spaced(4, 100.0)
    root, info = linalg.coupled_newton_inverse_root(
        jnp.asarray(size * a, jnp.float32), 4, scaling=scaling
    )
    assert info.success
    scaled = np.asarray(root, np.float64) * size**0.25
    assert relative_error(scaled, exact_root(a, 0.25)) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 2.5}, "p must be an integer >= 1, got 2.5"),
        ({"p": 0}, "p must be an integer >= 1, got 0"),
        ({"p": True}, "p must be an integer >= 1, got True"),
        ({"max_iterations": 0}, "max_iterations must be an integer >= 1, got 0"),
        ({"max_iterations": 9.0}, "max_iterations must be an integer >= 1, got 9.0"),
        ({"tolerance": -1e-6}, r"tolerance must be in \[0, 1\], got -1e-06"),
        ({"tolerance": np.nan}, r"tolerance must be in \[0, 1\], got nan"),
        ({"scaling": "trace"}, "scaling must be one of frobenius, power, got 'trace'"),
        ({"eps": -1.0}, "eps must be finite and >= 0, got -1.0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    options = {"p": 2, **options}
    with pytest.raises(ValueError, match=message):
        linalg.coupled_newton_inverse_root(jnp.eye(2), **options)
