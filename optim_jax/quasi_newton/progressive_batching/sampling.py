"""Which samples an iteration looks at: a window into an order of the data.

The order is a permutation of the N indices (of a stream: a list of counters). A sample
is a contiguous window of it: what is kept from the last sample first, then samples
that this pass over the data has not used. Growing a sample lengthens its window. When
too few unused entries are left, a new pass begins with an order of its own.

Sorting on a CPU costs more than the gradient of a linear model, so only one random
permutation is drawn, at the start. A later pass reads it at the positions
`a i + c mod N` with random c and random a coprime to N: still a uniformly random
permutation, and two given samples meet in one batch of n about as rarely, with
probability (n/N)², as under independent permutations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optim_jax.quasi_newton.progressive_batching.sources import Stream


class Window(NamedTuple):
    """The current sample and where the next samples come from.

    Attributes:
      key: (2,) uint32, raw PRNG key of the orders still to come.
      base: (N,) int32, the permutation drawn at the start; (0,) for a stream.
      order: (N,) int32, the order of this pass; (max_batch,) for a stream.
      start: int32, position of the sample's first entry in `order`.
      size: int32, samples in the window, b.
      drawn: uint32, samples drawn from a stream so far.
      stream: key from which a stream draws its samples.
    """

    key: jax.Array
    base: jax.Array
    order: jax.Array
    start: jax.Array
    size: jax.Array
    drawn: jax.Array
    stream: Stream

    @classmethod
    def of_batch(cls, order: jax.Array) -> "Window":
        """A sample that is all there is, and is followed by none."""
        key = jnp.zeros(2, jnp.uint32)
        size = jnp.int32(order.shape[0])
        none = jnp.zeros(0, jnp.int32)
        return cls(key, none, order, jnp.int32(0), size, jnp.uint32(0), Stream(key))

    @property
    def is_stream(self) -> bool:
        """Whether the samples come from a stream without end."""
        return self.base.shape[0] == 0


def first_window(key_data: np.ndarray, population: int | None, size: int, most: int):
    """Draws the permutation and the first sample.

    Args:
      key_data: (2,) uint32, raw PRNG key.
      population: N, or None for a stream.
      size: samples in the first window.
      most: largest window that will be asked for.

    Returns:
      `Window`.
    """
    seeds, key = jax.random.split(jax.random.wrap_key_data(jnp.asarray(key_data)))
    if population is None:
        base = np.zeros(0, np.int32)
        order = np.arange(most, dtype=np.int32)
    else:
        generator = np.random.default_rng(np.asarray(jax.random.key_data(seeds)))
        base = generator.permutation(population).astype(np.int32)
        order = base
    return Window(
        key=jax.random.key_data(key),
        base=jnp.asarray(base),
        order=jnp.array(order),
        start=jnp.int32(0),
        size=jnp.int32(size),
        drawn=jnp.uint32(size),
        stream=Stream(jnp.asarray(key_data)),
    )


def grow(window: Window, size: jax.Array) -> Window:
    """Lengthens the window to `size` samples; the old ones keep their places."""
    if window.is_stream:
        # Entries beyond the window already count on from it.
        drawn = window.drawn + (size - window.size).astype(jnp.uint32)
        return window._replace(size=size, drawn=drawn)

    def in_new_pass(window: Window) -> Window:
        return _begin_pass(window, window.start, window.size)

    fits = window.start + size <= window.order.shape[0]
    window = lax.cond(fits, lambda window: window, in_new_pass, window)
    return window._replace(size=size)


def next_window(
    window: Window, kept_start: jax.Array, kept: jax.Array, size: jax.Array
) -> Window:
    """Moves on to a new sample that begins with some samples of the last one.

    Args:
      window: last sample.
      kept_start: int32, position within the sample of the first one kept.
      kept: int32, how many consecutive samples are kept; they come first in the new
        sample, in the same order.
      size: int32, samples in the new window; at least `kept`.

    Returns:
      The new `Window`.
    """
    source = window.start + kept_start
    if window.is_stream:
        return _next_of_stream(window, source, kept, size)

    start = window.start + window.size - kept

    def moved(window: Window) -> Window:
        positions = jnp.arange(window.order.shape[0])
        is_kept = (positions >= start) & (positions < start + kept)
        order = jnp.roll(window.order, start - source)
        return window._replace(order=jnp.where(is_kept, order, window.order))

    def in_this_pass(window: Window) -> Window:
        # Unless the sample has grown, the kept entries already lie before the unused.
        in_place = (source == start) | (kept == 0)
        window = lax.cond(in_place, lambda window: window, moved, window)
        return window._replace(start=start)

    def in_new_pass(window: Window) -> Window:
        return _begin_pass(window, source, kept)

    fits = window.start + window.size - kept + size <= window.order.shape[0]
    window = lax.cond(fits, in_this_pass, in_new_pass, window)
    return window._replace(size=size)


def window_from_permutation(
    window: Window, permutation: jax.Array, kept: jax.Array
) -> Window:
    """Replaces what follows the first `kept` samples by a given permutation's order."""
    order = _with_prefix(window.order, window.start, kept, permutation)
    return window._replace(order=order, start=jnp.int32(0))


def _next_of_stream(
    window: Window, source: jax.Array, kept: jax.Array, size: jax.Array
) -> Window:
    positions = jnp.arange(window.order.shape[0])
    fresh = window.drawn + (positions - kept).astype(jnp.uint32)
    kept_entries = jnp.roll(window.order, -source)
    order = jnp.where(positions < kept, kept_entries, fresh.astype(jnp.int32))
    drawn = window.drawn + (size - kept).astype(jnp.uint32)
    return window._replace(order=order, start=jnp.int32(0), size=size, drawn=drawn)


def _begin_pass(window: Window, prefix_start: jax.Array, prefix: jax.Array) -> Window:
    """Starts a new pass; `prefix` entries of the old order stay in front."""
    key, stride_key, shift_key = jax.random.split(
        jax.random.wrap_key_data(window.key), 3
    )
    population = window.base.shape[0]
    stride = jax.random.randint(stride_key, (), 1, population)
    stride = lax.while_loop(
        lambda stride: jnp.gcd(stride, population) != 1,
        lambda stride: stride % population + 1,
        stride,
    )
    shift = jax.random.randint(shift_key, (), 0, population)
    reordered = window.base[_affine_positions(population, stride, shift)]
    order = _with_prefix(window.order, prefix_start, prefix, reordered)
    return window._replace(
        key=jax.random.key_data(key), order=order, start=jnp.int32(0)
    )


def _affine_positions(
    population: int, stride: jax.Array, shift: jax.Array
) -> jax.Array:
    """(N,) positions `stride i + shift mod N`, without overflow for N < 2³¹."""
    modulus = jnp.uint32(population)
    positions = jnp.arange(population, dtype=jnp.uint32)
    stride = stride.astype(jnp.uint32)

    def add(a: jax.Array, b: jax.Array) -> jax.Array:
        total = a + b
        return jnp.where(total >= modulus, total - modulus, total)

    bits = population.bit_length()

    def double_and_add(index: jax.Array, result: jax.Array) -> jax.Array:
        bit = (stride >> (bits - 1 - index).astype(jnp.uint32)) & 1
        addend = jnp.where(bit == 1, positions, jnp.uint32(0))
        return add(add(result, result), addend)

    result = lax.fori_loop(0, bits, double_and_add, jnp.zeros_like(positions))
    return add(result, shift.astype(jnp.uint32)).astype(jnp.int32)


def _with_prefix(
    order: jax.Array, start: jax.Array, count: jax.Array, candidates: jax.Array
) -> jax.Array:
    """A permutation: `count` entries of `order` from `start`, then the others.

    The others follow in the order in which `candidates`, a permutation, has them.
    """
    length = candidates.shape[0]
    positions = jnp.arange(length)
    in_prefix = (positions >= start) & (positions < start + count)
    # `order` may name an index twice once kept samples have been moved.
    member = jnp.zeros(length, bool).at[order].max(in_prefix)
    free = ~member[candidates]
    place = jnp.where(free, count + jnp.cumsum(free) - 1, length)
    result = jnp.zeros(length, jnp.int32)
    result = result.at[place].set(candidates.astype(jnp.int32), mode="drop")
    place = jnp.where(in_prefix, positions - start, length)
    return result.at[place].set(order, mode="drop")
