import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.compact_form import (
    Combination,
    combine,
    compose,
    image_products,
    inverse_hessian_combination,
    is_reliable,
    quadratic_form,
)
from optim_jax.quasi_newton.memory import clear_memory, init_memory, inner_products
from tests.optim_jax.quasi_newton.pairs import (
    dense_inverse,
    draw_pairs,
    draw_vector,
    flat,
    jitted_store,
    make_memory,
    make_tree,
)

COUNTS = [0, 1, 3, 5, 8, 10]


def close(actual, expected, rtol=1e-13):
    """Equal up to rounding in the largest entry."""
    expected = np.asarray(expected)
    atol = rtol * np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def setting(count):
    s, y = draw_pairs(count)
    memory, v = make_memory(s, y), draw_vector(count)
    return memory, dense_inverse(s, y), v, inner_products(memory, make_tree(v))


@pytest.mark.parametrize("count", COUNTS)
def test_one_application(x64, count):
    memory, inverse, v, products = setting(count)
    combination = inverse_hessian_combination(memory, products)
    close(flat(combine(memory, combination, make_tree(v))), inverse @ v)
    close(quadratic_form(combination, products), v @ inverse @ v)


@pytest.mark.parametrize("count", COUNTS)
def test_what_follows_costs_no_pass_over_the_parameters(x64, count):
    memory, inverse, v, products = setting(count)
    once = inverse_hessian_combination(memory, products)
    image = image_products(memory, once, products)
    direct = inner_products(memory, make_tree(inverse @ v))
    jax.tree.map(close, image, direct)
    twice = compose(inverse_hessian_combination(memory, image), once)
    close(flat(combine(memory, twice, make_tree(v))), inverse @ inverse @ v)
    close(quadratic_form(twice, products), image.square)


def test_any_combination_has_products(x64):
    memory, _, v, products = setting(7)
    rng = np.random.default_rng(0)
    combination = Combination(
        jnp.asarray(-0.3),
        jnp.asarray(rng.normal(size=5)),
        jnp.asarray(rng.normal(size=5)),
    )
    vector = combine(memory, combination, make_tree(v))
    jax.tree.map(
        close,
        image_products(memory, combination, products),
        inner_products(memory, vector),
    )
    close(quadratic_form(combination, products), v @ flat(vector))


def test_batches_of_vectors(x64):
    memory, inverse, _, _ = setting(8)
    vectors = np.stack([draw_vector(seed) for seed in range(3)])
    products = jax.vmap(inner_products, (None, 0))(
        memory, jax.vmap(make_tree)(jnp.asarray(vectors))
    )

    @jax.jit
    @jax.vmap
    def squares(products):
        combination = inverse_hessian_combination(memory, products)
        return combination, image_products(memory, combination, products).square

    combinations, actual = squares(products)
    close(actual, ((vectors @ inverse) ** 2).sum(axis=1))
    forms = np.einsum("bi,ij,bj->b", vectors, inverse, vectors)
    close(quadratic_form(combinations, products), forms)


def test_the_stored_run(x64, golden_dir):
    stored = np.load(golden_dir / "pblbfgs" / "ipqn_small.npz", allow_pickle=False)
    memory = init_memory(jnp.zeros(6), 4)
    for pair in zip(stored["S"], stored["Y"], strict=True):
        memory = jitted_store(memory, *map(jnp.asarray, pair))
    close(memory.gamma, stored["gamma"])
    g = jnp.asarray(stored["g"])
    products = inner_products(memory, g)
    once = inverse_hessian_combination(memory, products)
    close(combine(memory, once, g), stored["Hg"])
    close(combine(memory, once, g), stored["Hv_compact"])
    image = image_products(memory, once, products)
    close(image.square, stored["r"])
    close(image.square, 0.2480548822, rtol=1e-9)
    twice = compose(inverse_hessian_combination(memory, image), once)
    close(combine(memory, twice, g), stored["u"])


def test_products_from_before_a_reset_do_not_leak(x64):
    memory, _, v, products = setting(5)
    empty = clear_memory(memory)
    combination = inverse_hessian_combination(empty, products)
    close(flat(combine(empty, combination, make_tree(v))), v, rtol=0.0)


def test_results_have_the_dtypes_of_the_vector():
    s, y = draw_pairs(3)
    memory = make_memory(s, y, dtype="float32")
    v = make_tree(draw_vector(0), "bfloat16")
    combination = inverse_hessian_combination(memory, inner_products(memory, v))
    assert combination.s.dtype == jnp.float32
    leaves = jax.tree.leaves(combine(memory, combination, v))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}


def test_coefficients_are_unreliable_where_the_triangle_is_singular():
    s, y = draw_pairs(5)
    v = make_tree(draw_vector(0), "float32")

    def judge(s, y, spoil=lambda c: c):
        memory = make_memory(s, y, dtype="float32")
        combination = inverse_hessian_combination(memory, inner_products(memory, v))
        return bool(is_reliable(memory, spoil(combination)))

    assert judge(s[:0], y[:0]) and judge(s[:3], y[:3]) and judge(s, y)
    # The length of a pair does not matter, the angles do.
    growing = np.logspace(-6, 6, 5)[:, None]
    assert judge(s * growing, y * growing) and judge(s / growing, y / growing)
    flat_pair = y.copy()
    flat_pair[2] -= (1 - 1e-8) * (s[2] @ y[2]) / (s[2] @ s[2]) * s[2]
    assert not judge(s, flat_pair)
    for bad in (np.nan, np.inf):
        assert not judge(s, y, lambda c, bad=bad: c._replace(s=c.s.at[1].set(bad)))
        assert not judge(s, y, lambda c, bad=bad: c._replace(y=c.y.at[4].set(bad)))
