import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax import linalg
from tests.optim_jax.linalg.matrices import exact_root, log_spaced, relative_error

NO_RIDGE = {"rel_eps": 0.0, "abs_eps": 0.0}


def _iterate(a, p, q, order, tolerance, max_iterations):
    """The iteration of one matrix in NumPy: root, iterations, error of X^p."""
    identity = np.eye(len(a))
    z = 1 / np.trace(a)
    root, coupled = z ** (1 / p) * identity, z * a
    step = (1 + 1 / p) * identity - coupled / p
    root, coupled = root @ step, np.linalg.matrix_power(step, p) @ coupled
    coefficients = [1.0]
    for i in range(1, order):
        coefficients.append(coefficients[-1] * (1 + (i - 1) * p) / (i * p))
    error, count = np.max(np.abs(coupled - identity)), 1
    while error > tolerance and count < max_iterations:
        remainder = identity - coupled
        step = sum(
            b * np.linalg.matrix_power(remainder, i) for i, b in enumerate(coefficients)
        )
        root, coupled = root @ step, np.linalg.matrix_power(step, p) @ coupled
        previous, error = error, np.max(np.abs(coupled - identity))
        count += 1
        if error > 1.2 * previous or (error == previous and previous < 1e-3):
            break
    true_error = np.max(np.abs(a @ np.linalg.matrix_power(root, p) - identity))
    return np.linalg.matrix_power(root, q), count, true_error


@pytest.mark.parametrize("max_iterations", [1, 4, 100])
@pytest.mark.parametrize(("p", "q", "order"), [(4, 1, 2), (2, 1, 3), (5, 2, 4)])
def test_equals_the_iteration_of_each_matrix_alone(p, q, order, max_iterations, x64):
    a = np.stack([log_spaced(5, condition) for condition in (2.0, 1e5, 50.0)])
    roots, info = linalg.coupled_higher_order_inverse_root(
        a, p, q, **NO_RIDGE, order=order, max_iterations=max_iterations
    )
    for index in range(3):
        root, count, error = _iterate(a[index], p, q, order, 1e-8, max_iterations)
        assert int(info.iterations[index]) == count
        assert float(info.error[index]) == pytest.approx(error, rel=1e-6, abs=1e-9)
        assert relative_error(roots[index], root) < 1e-9


def test_higher_orders_need_fewer_iterations(x64):
    a = log_spaced(8, 1e4)
    counts = []
    for order in (2, 3, 5):
        root, info = linalg.coupled_higher_order_inverse_root(
            a, 4, **NO_RIDGE, order=order
        )
        counts.append(int(info.iterations))
        assert relative_error(root, exact_root(a, 0.25)) < 1e-9
    assert counts[0] > counts[1] > counts[2]


def test_stops_at_rounding_where_the_tolerance_is_out_of_reach(x64):
    _, info = linalg.coupled_higher_order_inverse_root(
        log_spaced(8, 10.0), 4, **NO_RIDGE, tolerance=1e-20
    )
    assert info.success and int(info.iterations) < 20 and float(info.error) < 1e-13


@pytest.mark.parametrize(
    ("rel_eps", "abs_eps", "ridge"),
    [(0.5, 1.0, 2.5), (0.1, 1.0, 1.0), (0.0, 0.25, 0.25)],
)
def test_ridge_is_the_larger_of_the_two(rel_eps, abs_eps, ridge, x64):
    a = np.array([[2.0, -1.0], [-1.0, 4.0]])  # largest absolute row sum 5
    found, _ = linalg.coupled_higher_order_inverse_root(
        a, 2, rel_eps=rel_eps, abs_eps=abs_eps
    )
    np.testing.assert_allclose(found, exact_root(a + ridge * np.eye(2), 0.5), rtol=1e-7)


def test_ridges_per_matrix(x64):
    a = np.stack([np.array([[2.0, -1.0], [-1.0, 4.0]])] * 2)
    found, _ = linalg.coupled_higher_order_inverse_root(
        a, 2, rel_eps=jnp.array([0.5, 0.0]), abs_eps=jnp.array([1.0, 0.25])
    )
    wanted = exact_root(a + np.array([2.5, 0.25])[:, None, None] * np.eye(2), 0.5)
    np.testing.assert_allclose(found, wanted, rtol=1e-7)


def test_inaccurate_root_is_a_failure():
    # Of condition 1e8, in float32, no root satisfies its equation.
    a = jnp.asarray(np.stack([log_spaced(64, 1e8), log_spaced(64, 10.0)]), jnp.float32)
    _, info = linalg.coupled_higher_order_inverse_root(a, 4, **NO_RIDGE)
    np.testing.assert_array_equal(info.success, [False, True])
    assert float(info.error[0]) > 0.1


def test_zero_matrix_is_a_failure_without_a_ridge():
    a = jnp.zeros((3, 3))
    _, info = linalg.coupled_higher_order_inverse_root(a, 4, **NO_RIDGE)
    assert not info.success
    root, info = linalg.coupled_higher_order_inverse_root(
        a, 4, rel_eps=1e-6, abs_eps=1e-4
    )
    assert info.success
    np.testing.assert_allclose(root, 10.0 * np.eye(3), rtol=1e-5)


def test_row_sum_beyond_the_range_is_a_failure():
    a = jnp.stack([jnp.full((2, 2), 3e38), jnp.eye(2)])
    _, info = linalg.coupled_higher_order_inverse_root(a, 4, rel_eps=1e-6, abs_eps=0.0)
    np.testing.assert_array_equal(info.success, [False, True])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0}, "p must be a finite number > 0, got 0"),
        ({"q": np.nan}, "q must be a finite number > 0, got nan"),
        ({"rel_eps": -1.0}, "rel_eps must be finite and >= 0, got -1.0"),
        ({"abs_eps": np.nan}, "abs_eps must be finite and >= 0, got nan"),
        ({"order": 1}, "order must be an integer >= 2, got 1"),
        ({"order": 2.0}, "order must be an integer >= 2, got 2.0"),
        ({"max_iterations": 0}, "max_iterations must be an integer >= 1, got 0"),
        ({"tolerance": 2.0}, r"tolerance must be in \[0, 1\], got 2.0"),
        ({"tolerance": np.nan}, r"tolerance must be in \[0, 1\], got nan"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    options = {"p": 2, **NO_RIDGE, **options}
    with pytest.raises(ValueError, match=message):
        linalg.coupled_higher_order_inverse_root(jnp.eye(2), **options)


def test_ridges_have_no_default():
    with pytest.raises(TypeError, match="rel_eps"):
        linalg.coupled_higher_order_inverse_root(jnp.eye(2), 2)  # type: ignore
