import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.progressive_batching import sampling
from optim_jax.quasi_newton.progressive_batching.sampling import (
    first_window,
    grow,
    next_window,
    window_from_permutation,
)
from tests.optim_jax.quasi_newton.progressive_batching.logistic import compiled

POPULATION = 30
quick_next, quick_grow = compiled(next_window), compiled(grow)
begin_pass = compiled(sampling._begin_pass)


def key_data(seed):
    return np.asarray(jax.random.key_data(jax.random.key(seed)))


def first(seed=0, population=POPULATION, size=6, most=POPULATION):
    return first_window(key_data(seed), population, size, most)


def entries(window):
    order = np.asarray(window.order)
    return order[int(window.start) : int(window.start) + int(window.size)]


def walk(window, seed, steps):
    """A random sequence of growths and moves; yields each window and what it keeps."""
    rng = np.random.default_rng(seed)
    length = window.order.shape[0]
    for _ in range(steps):
        old, size = entries(window), int(window.size)
        if rng.random() < 0.3:
            wanted = int(rng.integers(size, min(2 * size, length) + 1))
            window = quick_grow(window, jnp.int32(wanted))
            yield window, old
        else:
            kept = int(rng.integers(0, size // 2 + 1))
            first_kept = int(rng.integers(0, size - kept + 1))
            wanted = int(rng.integers(max(kept, 2), max(kept, 2, length // 2) + 1))
            counts = (jnp.int32(n) for n in (first_kept, kept, wanted))
            window = quick_next(window, *counts)
            yield window, old[first_kept : first_kept + kept]
        assert int(window.size) == wanted


@pytest.mark.parametrize("seed", range(4))
def test_a_sample_has_distinct_entries_and_begins_with_what_it_keeps(seed):
    for window, kept in walk(first(seed), seed, 60):
        now = entries(window)
        assert len(set(now.tolist())) == int(window.size)
        assert now.min() >= 0 and now.max() < POPULATION
        np.testing.assert_array_equal(now[: len(kept)], kept)


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_never_repeats_a_sample(seed):
    window = first(seed, population=None, size=6, most=40)
    seen = set(entries(window).tolist())
    for later, kept in walk(window, seed, 60):
        now = entries(later)
        np.testing.assert_array_equal(now[: len(kept)], kept)
        fresh = set(now[len(kept) :].tolist())
        assert len(fresh) == len(now) - len(kept)
        assert not fresh & seen
        seen |= fresh
    # None is left out either.
    assert seen == set(range(int(later.drawn)))


def test_a_pass_shows_every_sample_once_and_the_next_one_again():
    window = first(size=5)
    for _ in range(3):
        batches = []
        for _ in range(POPULATION // 5):
            batches.append(entries(window))
            none = jnp.int32(0)
            window = quick_next(window, none, none, jnp.int32(5))
        assert sorted(np.concatenate(batches).tolist()) == list(range(POPULATION))


@pytest.mark.parametrize("population", [2, 7, 30, 64])
def test_a_new_pass_is_the_permutation_read_at_a_coprime_stride(population):
    window = first(1, population, size=2)
    places = np.argsort(np.asarray(window.base))
    strides = set()
    for _ in range(20):
        window = begin_pass(window, jnp.int32(0), jnp.int32(0))
        order = np.asarray(window.order)
        assert sorted(order.tolist()) == list(range(population))
        steps = set((np.diff(places[order]) % population).tolist())
        assert len(steps) == 1
        strides |= steps
    assert all(math.gcd(stride, population) == 1 for stride in strides)
    assert len(strides) > 1 or population == 2


def test_the_prefix_of_a_new_pass_is_not_drawn_again():
    window = first(2, size=10)._replace(start=jnp.int32(18))
    kept = np.asarray(window.order)[20:24]
    window = begin_pass(window, jnp.int32(20), jnp.int32(4))
    order = np.asarray(window.order)
    np.testing.assert_array_equal(order[:4], kept)
    assert sorted(order.tolist()) == list(range(POPULATION))


@pytest.mark.parametrize(
    ("population", "stride", "shift"),
    [(97, 35, 11), (3_000_017, 2_999_999, 3_000_016), (2**20, 2**20 - 1, 77)],
)
def test_affine_positions_do_not_overflow(population, stride, shift):
    found = compiled(functools.partial(sampling._affine_positions, population))(
        jnp.int32(stride), jnp.int32(shift)
    )
    positions = np.arange(population, dtype=np.int64)
    expected = (stride * positions + shift) % population
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("population", "most"),
    # Over a prime the pairs meet exactly as often as under random permutations; with
    # many divisors, some meet less than twice as often.
    [(61, 1.0), (60, 2.0)],
)
def test_two_samples_meet_about_as_rarely_as_under_random_orders(population, most):
    passes, size = 4000, 12
    window = first(3, population, size)
    keys = jax.random.key_data(jax.random.split(jax.random.key(4), passes))

    @compiled
    def orders(keys):
        def one(key):
            begun = sampling._begin_pass(
                window._replace(key=key), jnp.int32(0), jnp.int32(0)
            )
            return begun.order[:size]

        return jax.vmap(one)(keys)

    found = np.asarray(orders(keys))
    members = np.zeros((passes, population))
    members[np.arange(passes)[:, None], found] = 1.0
    meetings = (members.T @ members)[np.triu_indices(population, 1)]
    expected = passes * size * (size - 1) / (population * (population - 1))
    noise = 5 * math.sqrt(expected * most)
    assert meetings.mean() == pytest.approx(expected, rel=1e-12)
    assert meetings.max() <= most * expected + noise
    if most == 1.0:
        assert meetings.min() >= expected - noise
    # Every sample is drawn as often as any other.
    drawn, share = members.sum(axis=0), passes * size / population
    assert np.abs(drawn - share).max() <= 5 * math.sqrt(share)


def test_the_key_decides_the_order():
    one, same, other = first(5), first(5), first(6)
    np.testing.assert_array_equal(one.order, same.order)
    assert (np.asarray(one.order) != np.asarray(other.order)).any()
    assert sorted(np.asarray(one.base).tolist()) == list(range(POPULATION))
    none = jnp.int32(0)
    later = [
        quick_next(window._replace(start=jnp.int32(25)), none, none, jnp.int32(6))
        for window in (one, same, other)
    ]
    np.testing.assert_array_equal(later[0].order, later[1].order)
    assert (np.asarray(later[0].order) != np.asarray(later[2].order)).any()


def test_moving_on_neither_sorts_nor_draws_a_permutation():
    count = jnp.int32(3)
    text = str(jax.make_jaxpr(next_window)(first(), count, count, count))
    assert "gather" in text or "scatter" in text
    assert " sort" not in text and "shuffle" not in text


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_a_given_permutation_follows_the_kept_entries(kept):
    window = first(7)._replace(start=jnp.int32(11))
    front = np.asarray(window.order)[11 : 11 + kept]
    permutation = np.random.default_rng(0).permutation(POPULATION)
    found = window_from_permutation(window, jnp.asarray(permutation), jnp.int32(kept))
    rest = [index for index in permutation if index not in front]
    np.testing.assert_array_equal(found.order, [*front, *rest])
    assert int(found.start) == 0


def test_the_window_of_one_batch_is_all_of_it():
    order = jnp.arange(9, dtype=jnp.int32)
    window = sampling.Window.of_batch(order)
    np.testing.assert_array_equal(entries(window), order)
    leaves = itertools.chain(window[:-1], window.stream)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
