import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.memory import clear_memory
from optim_jax.quasi_newton.two_loop import two_loop
from tests.optim_jax.quasi_newton.pairs import (
    columns,
    dense_inverse,
    draw_pairs,
    draw_vector,
    make_memory,
    make_tree,
)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 7, 11])
def test_the_recursion_is_the_dense_one(x64, count):
    s, y = draw_pairs(count)
    memory = make_memory(s, y)
    expected = dense_inverse(s, y)
    actual = columns(two_loop, memory)
    atol = 1e-12 * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=atol)


def test_the_recursion_of_a_cleared_memory_is_the_identity(x64):
    memory = clear_memory(make_memory(*draw_pairs(6)))
    v = make_tree(draw_vector(0))
    jax.tree.map(np.testing.assert_array_equal, two_loop(memory, v), v)


def test_the_recursion_keeps_dtypes_and_sums_in_float32():
    s, y = draw_pairs(4)
    memory = make_memory(s, y, dtype="float32")
    exact = two_loop(memory, make_tree(draw_vector(0), "float32"))
    rounded = two_loop(memory, make_tree(draw_vector(0), "bfloat16"))
    for left, right in zip(*map(jax.tree.leaves, (rounded, exact)), strict=True):
        assert left.dtype == jnp.bfloat16
        assert np.abs(np.float32(left) - right).max() < 0.05 * np.abs(right).max()
