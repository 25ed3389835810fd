import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.group_estimates import group_bounds
from optim_jax.quasi_newton.memory import init_memory, inner_products, store_pair
from optim_jax.quasi_newton.progressive_batching.evaluation import (
    empty_prefix,
    evaluate_growth,
    evaluate_prefix,
    evaluate_rest,
    prefix_groups,
)
from optim_jax.quasi_newton.progressive_batching.sample_sums import SampleSums
from tests.optim_jax.quasi_newton.progressive_batching.logistic import (
    compiled,
    draw_rows,
    losses,
)

POPULATION = 60
GROUPS = 5


def explicit_gradients(w, source):
    """(N, d) gradients of `losses`, written out."""
    x, y = source
    return -(y / (1 + np.exp(y * (x @ w))))[:, None] * x + 0.01 * w


class Sample:
    """A window of some data, and the gradient of each of its samples."""

    def __init__(self, start):
        rng = np.random.default_rng(start)
        data = draw_rows(1, POPULATION, dtype=np.float64)
        order, w = rng.permutation(POPULATION), rng.normal(size=5)
        self.losses = np.asarray(losses(w, data))[order[start:]]
        self.grads = explicit_gradients(w, data)[order[start:]]
        self.source = tuple(jnp.asarray(leaf) for leaf in data)
        self.order, self.w = jnp.asarray(order, jnp.int32), jnp.asarray(w)
        self.start = start
        self.sums = SampleSums(
            lambda w, batch: (losses(w, batch), ()),
            jnp.float64,
            chunk=16,
            population=POPULATION,
        )
        self.memory = init_memory(jnp.zeros(5), 3)
        for _ in range(2):
            self.memory = store_pair(
                self.memory, jnp.asarray(rng.normal(size=5)), rng.normal(size=5)
            )

    def evaluate(self, size, count, overlap_start, touched):
        place = (self.sums, self.w, self.source, self.order, self.start, size, count)
        prefix = evaluate_prefix(*place, groups=GROUPS, touched=touched)
        rest = evaluate_rest(*place, prefix, self.memory, overlap_start, groups=GROUPS)
        return prefix, rest


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("start", [0, 9])
def test_prefix_and_rest_make_the_sample_its_groups_and_its_overlap(x64, start):
    sample = Sample(start)
    touched = prefix_groups(0.5, GROUPS)
    evaluate = compiled(lambda *sizes: sample.evaluate(*sizes, touched))
    for size, share, overlap in itertools.product(
        [5, 13, 24, 50], [0.0, 0.2, 0.25, 0.5], [0, 1, 7, 12]
    ):
        # Odd sizes, prefixes that end inside and at the border of a group, and
        # overlaps of none, one and several groups.
        count = math.ceil(share * size)
        overlap_start = max(count, size - overlap)
        prefix, found = evaluate(*(jnp.int32(n) for n in (size, count, overlap_start)))
        grads = sample.grads[:size]
        close(prefix.loss, sample.losses[:count].sum())
        close(prefix.grad, grads[:count].sum(axis=0))
        close(found.value, sample.losses[:size].mean())
        close(found.grad, grads.mean(axis=0))
        close(found.overlap, grads[overlap_start:].sum(axis=0))
        means = [part.mean(axis=0) for part in np.array_split(grads, GROUPS)]
        for index, mean in enumerate(means):
            expected = inner_products(sample.memory, jnp.asarray(mean))
            for name in ("s", "y", "square"):
                products = getattr(found.groups.means, name)
                close(products[index], getattr(expected, name))
        close(found.groups.total_square, np.sum(np.sum(means, axis=0) ** 2))


def test_without_groups_and_overlap_nothing_but_the_gradient_is_kept(x64):
    sample = Sample(0)
    prefix = empty_prefix(sample.sums, sample.w, 1)

    @compiled
    def evaluate(size):
        zero = jnp.int32(0)
        place = (sample.sums, sample.w, sample.source, sample.order, zero, size, zero)
        return evaluate_rest(*place, prefix, sample.memory, None, groups=1)

    found = evaluate(jnp.int32(23))
    close(found.grad, sample.grads[:23].mean(axis=0))
    assert found.overlap == () and found.groups == ()


@pytest.mark.parametrize("shares", [True, False])
def test_growth_evaluates_the_new_samples_in_groups_of_their_own(x64, shares):
    sample = Sample(4)

    @compiled
    def evaluate(old, size, stop):
        place = (sample.sums, sample.w, sample.source, sample.order, sample.start)
        stop = stop if shares else None
        return evaluate_growth(*place, old, size, stop, groups=GROUPS)

    for old, size, extra in [(10, 20, 0), (10, 37, 5), (13, 16, 1), (20, 21, 1)]:
        sums, overlap, squares = evaluate(
            *(jnp.int32(n) for n in (old, size, old + extra))
        )
        grads = sample.grads[old:size]
        close(sums.loss, sample.losses[old:size].sum())
        close(sums.grad, grads.sum(axis=0))
        if shares:
            close(overlap, grads[:extra].sum(axis=0))
        parts = np.array_split(grads, GROUPS)
        means = [part.mean(axis=0) if len(part) else np.zeros(5) for part in parts]
        close(squares, np.sum(np.square(means), axis=1))


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.25, 0.3, 0.5])
@pytest.mark.parametrize("groups", [2, 5, 8])
def test_no_prefix_touches_more_groups_than_are_kept_apart(ratio, groups):
    touched = prefix_groups(ratio, groups)
    for size in range(groups, 200):
        last = math.ceil(ratio * size) - 1
        starts = np.cumsum([0, *map(len, np.array_split(range(size), groups))])
        assert np.searchsorted(starts, last, side="right") <= touched


def test_the_groups_are_those_of_array_split():
    for size in (5, 13, 50):
        starts, stops = group_bounds(size, GROUPS)
        parts = np.array_split(np.arange(size), GROUPS)
        assert [part[0] for part in parts] == starts.tolist()
        assert [part[-1] + 1 for part in parts] == stops.tolist()
