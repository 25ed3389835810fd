import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.compact_form import (
    image_products,
    inverse_hessian_combination,
)
from optim_jax.quasi_newton.gradient_variance import read_weights
from optim_jax.quasi_newton.group_estimates import (
    group_bounds,
    group_means,
    group_variance,
    measure_groups,
)
from tests.optim_jax.quasi_newton.golden_sample import (
    read_golden_sample,
    regularised_logistic,
)
from tests.optim_jax.quasi_newton.pairs import (
    dense_inverse,
    draw_pairs,
    draw_vector,
    make_memory,
    make_tree,
)


@pytest.mark.parametrize("groups", [1, 2, 3, 8])
def test_the_split_is_that_of_numpy(groups):
    bounds = jax.jit(lambda size: group_bounds(size, groups))
    for size in (2, 3, 7, 8, 24, 50, 63, 64):
        starts, stops = bounds(size)
        expected = np.array_split(np.arange(size), groups)
        found = [
            np.arange(a, b)
            for a, b in zip(starts.tolist(), stops.tolist(), strict=True)
        ]
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert bounds._cache_size() == 1
    assert starts.dtype == stops.dtype == jnp.int32


def test_the_variance_is_the_spread_of_the_group_means(x64):
    gradients = read_golden_sample().numbers["G"]
    parts = np.array_split(gradients, 5)
    sizes = np.array([len(part) for part in parts])
    means = np.array([part.mean(0) for part in parts])
    mean = gradients.mean(0)
    deviations = ((means - mean) ** 2).sum(1)
    expected = (24 / 5) * (5 / 4) * (sizes / 24) @ deviations
    found = group_variance((means**2).sum(1), sizes, mean @ mean)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_the_variance_is_unbiased_for_groups_of_unequal_size(x64):
    # All 2^5 draws of five samples from two equally likely gradients.
    values = np.array([[1.0, 0.0], [-0.5, 2.0]])
    variance = ((values - values.mean(0)) ** 2).sum(1).mean()
    draws = values[np.array(list(itertools.product([0, 1], repeat=5)))]

    def estimate(draw):
        means = jnp.stack([draw[:3].mean(0), draw[3:].mean(0)])
        squares = jnp.sum(means**2, 1)
        return group_variance(squares, jnp.array([3, 2]), jnp.sum(draw.mean(0) ** 2))

    assert float(jnp.mean(jax.vmap(estimate)(draws))) == pytest.approx(
        variance, rel=1e-13
    )


def test_empty_groups_do_not_count():
    filled = group_variance(jnp.array([3.0, 2.0]), jnp.array([5, 7]), 1.0)
    squares = jnp.array([3.0, jnp.nan, 2.0, jnp.inf])
    assert group_variance(squares, jnp.array([5, 0, 7, 0]), 1.0) == filled
    assert np.isnan(group_variance(squares, jnp.array([5, 0, 0, 0]), 1.0))


def test_rounding_does_not_make_the_variance_negative():
    squares = jnp.full(4, 0.1)
    assert group_variance(squares, jnp.full(4, 3), jnp.float32(0.1000001)) == 0.0


@pytest.mark.parametrize("groups", [2, 5, 24])
def test_the_group_means_are_means_of_gradients(x64, groups):
    golden = read_golden_sample()
    sample = read_weights(24, None, jnp.float64)
    means, sizes = group_means(golden.losses, golden.w, sample, groups)
    parts = np.array_split(golden.numbers["G"], groups)
    np.testing.assert_array_equal(sizes, [len(part) for part in parts])
    expected = [part.mean(0) for part in parts]
    np.testing.assert_allclose(means, expected, rtol=1e-12, atol=1e-14)


def test_groups_are_formed_of_the_samples_that_count(x64):
    # Holes anywhere, and a traced number of samples.
    golden = read_golden_sample()
    kept = np.array([1, 2, 5, 8, 9, 13, 17])
    padded = np.zeros(24)
    padded[kept] = [1.0, 2.0, 1.0, 0.5, 1.0, 3.0, 1.0]

    @jax.jit
    def means_of(weights):
        sample = read_weights(24, weights, jnp.float64)
        return group_means(golden.losses, golden.w, sample, 3)

    means, sizes = means_of(padded)
    for mean, size, part in zip(means, sizes, np.array_split(kept, 3), strict=True):
        weights = padded[part]
        assert float(size) == weights.sum()
        expected = weights @ golden.numbers["G"][part] / weights.sum()
        np.testing.assert_allclose(mean, expected, rtol=1e-12, atol=1e-14)


def test_more_groups_than_samples_leave_empty_ones(x64):
    golden = read_golden_sample()
    sample = read_weights(24, np.arange(24) < 3, jnp.float64)
    means, sizes = group_means(golden.losses, golden.w, sample, 5)
    np.testing.assert_array_equal(sizes, [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(means[3:], 0.0)


def test_padding_may_hold_anything(x64):
    numbers = read_golden_sample().numbers
    x = np.concatenate([numbers["X"], np.full((2, 6), 1e3)])
    y = np.append(numbers["y"], [1.0, 1.0])
    weights = np.arange(26) < 24
    sample = read_weights(26, weights, jnp.float64)
    means, _ = group_means(
        lambda w: regularised_logistic(w, x, y, numbers["lam"]),
        jnp.asarray(numbers["w"]),
        sample,
        4,
    )
    expected = [part.mean(0) for part in np.array_split(numbers["G"], 4)]
    np.testing.assert_allclose(means, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("count", [0, 3, 7])
def test_measured_groups_are_those_of_the_dense_matrix(x64, count):
    s, y = draw_pairs(count)
    memory, h = make_memory(s, y), dense_inverse(s, y)
    means = np.stack([draw_vector(seed) for seed in range(4)])
    sizes = np.array([2.0, 3.0, 0.0, 5.0])
    used = [0, 1, 3]
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(make_tree(mean) for mean in means)
    )
    # Whatever an empty group holds, and to whatever scale the sizes are given.
    stacked = jax.tree.map(lambda leaf: leaf.at[2].set(jnp.nan), stacked)
    found = measure_groups(
        memory, stacked, 0.5 * sizes, read_weights(10, None, jnp.float64)
    )

    np.testing.assert_allclose(found.sizes, sizes, rtol=1e-14)
    squares = np.where(sizes > 0, (means**2).sum(1), 0)
    np.testing.assert_allclose(found.squares, squares, rtol=1e-13)
    mean = sizes @ means / 10
    assert float(found.mean_square) == pytest.approx(mean @ mean, rel=1e-13)

    vectors = np.concatenate([means, means[used].sum(0, keepdims=True)])
    directions = jax.vmap(inverse_hessian_combination, (None, 0))(
        memory, found.products
    )
    images = jax.vmap(image_products, (None, 0, 0))(memory, directions, found.products)
    expected = ((vectors @ h) ** 2).sum(1)
    kept = [0, 1, 3, 4]
    np.testing.assert_allclose(
        images.square[jnp.array(kept)], expected[kept], rtol=1e-11
    )


def test_sizes_of_groups_are_those_of_the_split_unless_given():
    stacked = jnp.ones((4, 12))
    memory = make_memory(*draw_pairs(2))
    trees = jax.vmap(make_tree)(stacked)
    found = measure_groups(memory, trees, None, read_weights(10, None, jnp.float32))
    np.testing.assert_array_equal(found.sizes, [3.0, 3.0, 2.0, 2.0])
