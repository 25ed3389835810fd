import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.steepest_descent.matsign import matsign, read_dtype, read_steps

TRIPLE = (3.0, -3.2, 1.2)


@pytest.mark.parametrize("make", [tuple, list, np.array])
def test_one_triple_is_repeated(make):
    assert read_steps(make(TRIPLE), 3) == (TRIPLE,) * 3


@pytest.mark.parametrize("make", [tuple, list, np.array])
def test_with_a_triple_per_step_the_number_is_not_read(make):
    table = (TRIPLE, (2.0, -1.5, 0.5))
    assert read_steps(make(table), "ignored") == table
    assert read_steps(make(table[:1]), None) == table[:1]


@pytest.mark.parametrize(
    "coefficients",
    [(1.0, 2.0), ((1.0, 2.0),), (), "abc", None, (1.0, 2.0, np.inf), ((TRIPLE,),)],
)
def test_other_coefficients_are_refused(coefficients):
    with pytest.raises(ValueError, match="ns_coeffs must be a triple"):
        read_steps(coefficients, 5)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, None])
def test_other_numbers_of_steps_are_refused(count):
    with pytest.raises(ValueError, match="ns_steps must be an integer >= 1"):
        read_steps(TRIPLE, count)


def test_dtypes_of_products():
    assert read_dtype(None) is None
    assert read_dtype("bfloat16") == read_dtype(jnp.bfloat16) == jnp.bfloat16
    for bad in ("int8", "no dtype", jnp.complex64):
        with pytest.raises(ValueError, match="ns_dtype must be a real floating"):
            read_dtype(bad)


def test_eps_is_added_to_the_norm(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 3)))
    found = matsign("newton_schulz", ((2.0, 0.0, 0.0),), 0.5, None)(x)
    norms = np.linalg.norm(x, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found, 2.0 * x / (norms + 0.5), rtol=1e-14)


def test_zero_is_zero_without_eps():
    found = matsign("newton_schulz", (TRIPLE,), 0.0, None)(jnp.zeros((2, 2, 3)))
    np.testing.assert_array_equal(found, 0.0)
