import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optim_jax.quasi_newton.progressive_batching import sources
from optim_jax.quasi_newton.progressive_batching.sample_sums import SampleSums
from tests.optim_jax.quasi_newton.progressive_batching.logistic import (
    compiled,
    draw_rows,
    losses,
)

SAMPLES = 50
RANGES = [(0, 50), (0, 0), (50, 50), (7, 7), (0, 1), (3, 11), (1, 33), (17, 50)]


def with_aux(w, batch):
    x, y = batch
    margins = y * (x @ w)
    return losses(w, batch), {"right": margins > 0, "pair": jnp.stack([x[:, 0], y], 1)}


class Plain:
    """Every sample on its own, in float64."""

    def __init__(self, seed=0, samples=SAMPLES):
        rng = np.random.default_rng(seed)
        self.source = draw_rows(seed, samples, dtype=np.float64)
        self.order = rng.permutation(samples).astype(np.int32)
        self.w = rng.normal(size=5)
        rows = tuple(leaf[self.order] for leaf in self.source)

        def one(w, x, y):
            return losses(w, (x[None], y[None]))[0]

        self.losses, self.grads = jax.vmap(jax.value_and_grad(one), (None, 0, 0))(
            self.w, *rows
        )
        self.losses, self.grads = np.asarray(self.losses), np.asarray(self.grads)
        self.right = np.asarray(rows[1] * (rows[0] @ self.w) > 0)
        self.pair = np.stack([rows[0][:, 0], rows[1]], 1)


def make_sums(chunk, **options):
    options = {"dtype": np.float64, "population": SAMPLES, **options}
    return SampleSums(with_aux, chunk=chunk, **options)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 5, 8, 16, 64, 200])
def test_sums_over_a_range_are_the_plain_ones(x64, chunk):
    plain, sums = Plain(), make_sums(chunk)
    gradient, loss = compiled(sums.gradient), compiled(sums.loss)
    for start, stop in RANGES:
        span = slice(start, stop)
        arguments = (plain.w, plain.source, plain.order, start, stop)
        for found in (gradient(*arguments), loss(*arguments)):
            close(found.loss, plain.losses[span].sum())
            close(found.aux["right"], plain.right[span].sum())
            close(found.aux["pair"], plain.pair[span].sum(axis=0))
        close(gradient(*arguments).grad, plain.grads[span].sum(axis=0))


def test_the_size_of_the_chunks_does_not_matter(x64):
    plain = Plain()
    small, large = (compiled(make_sums(chunk).gradient) for chunk in (64, 128))
    one = small(plain.w, plain.source, plain.order, 0, SAMPLES)
    other = large(plain.w, plain.source, plain.order, 0, SAMPLES)
    jax.tree.map(close, one, other)


@pytest.mark.parametrize("start, stop", [(5, 30), (0, 21), (9, 9)])
def test_rows_outside_the_range_may_be_anything(x64, start, stop):
    plain, sums = Plain(), make_sums(16)
    x, y = plain.source
    outside = np.ones(SAMPLES, bool)
    outside[plain.order[start:stop]] = False
    spoiled = (np.where(outside[:, None], np.nan, x), np.where(outside, np.inf, y))
    found = compiled(sums.gradient)(plain.w, spoiled, plain.order, start, stop)
    close(found.loss, plain.losses[start:stop].sum())
    close(found.grad, plain.grads[start:stop].sum(axis=0))
    center, u = jnp.float64(0.25), jnp.arange(5.0)
    found = compiled(sums.squared_deviations)(
        plain.w, spoiled, plain.order, start, stop, u, center
    )
    close(found, np.sum((plain.grads[start:stop] @ np.arange(5.0) - 0.25) ** 2))


@pytest.mark.parametrize("chunk", [3, 16, 200])
def test_deviations_and_distances_from_a_center(x64, chunk):
    plain, sums = Plain(1), make_sums(chunk)
    u, center = np.linspace(-1, 1, 5), np.float64(0.3)
    mean = plain.grads.mean(axis=0)
    deviations = compiled(sums.squared_deviations)
    distances = compiled(sums.squared_distances)
    for start, stop in RANGES:
        arguments = (plain.w, plain.source, plain.order, start, stop)
        grads = plain.grads[start:stop]
        close(deviations(*arguments, u, center), np.sum((grads @ u - center) ** 2))
        close(distances(*arguments, mean), np.sum((grads - mean) ** 2))


@pytest.mark.parametrize("chunk", [1, 7, 25, 50, 64])
def test_sums_over_all_samples(x64, chunk):
    plain, sums = Plain(2), make_sums(chunk)
    gradient = compiled(sums.full_gradient)(plain.w, plain.source)
    loss = compiled(sums.full_loss)(plain.w, plain.source)
    for found in (gradient, loss):
        close(found.loss, plain.losses.sum())
        close(found.aux["right"], plain.right.sum())
    close(gradient.grad, plain.grads.sum(axis=0))


def make_mesh():
    return jax.make_mesh(
        (4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4]
    )


def test_a_mesh_shares_every_chunk(x64):
    plain, mesh = Plain(3), make_mesh()
    sums = make_sums(16, mesh=mesh)
    assert sums.chunks == (16, 4) and make_sums(5, mesh=mesh).chunks == (8, 4)
    source = sources.place(plain.source, mesh, "data")
    everywhere = NamedSharding(mesh, PartitionSpec())
    w, order = jax.device_put((plain.w, plain.order), everywhere)
    gradient = compiled(sums.gradient)
    deviations = compiled(sums.squared_deviations)
    u, center = np.linspace(-1, 1, 5), np.float64(0.3)
    for start, stop in [(0, 50), (7, 7), (3, 30), (49, 50)]:
        found = gradient(w, source, order, start, stop)
        close(found.loss, plain.losses[start:stop].sum())
        close(found.aux["pair"], plain.pair[start:stop].sum(axis=0))
        close(found.grad, plain.grads[start:stop].sum(axis=0))
        found = deviations(w, source, order, start, stop, u, center)
        close(found, np.sum((plain.grads[start:stop] @ u - center) ** 2))
    found = compiled(sums.full_gradient)(w, source)
    close(found.loss, plain.losses.sum())
    close(found.aux["right"], plain.right.sum())
    close(found.grad, plain.grads.sum(axis=0))


def test_sums_over_a_stream(x64):
    def sampler(key, n):
        x = jax.random.normal(key, (n, 5), jnp.float64)
        return x, jnp.sign(x[:, 0] + 0.5)

    stream = sources.Stream(jax.random.key_data(jax.random.key(3)))
    sums = make_sums(8, population=None, sampler=sampler)
    order, w = np.arange(100, 130, dtype=np.int32), np.linspace(-1, 1, 5)
    found = compiled(sums.gradient)(w, stream, order, 4, 23)
    draw = compiled(functools.partial(sources.draw, stream, sampler))
    batch = draw(order[4:23])
    close(found.loss, np.sum(losses(w, batch)))
    close(found.grad, jax.grad(lambda w: jnp.sum(losses(w, batch)))(w))


def test_half_precision_is_summed_in_single_precision():
    x, y = (leaf.astype(jnp.bfloat16) for leaf in draw_rows(samples=SAMPLES))
    sums = SampleSums(
        lambda w, batch: (losses(w, batch), ()), jnp.float32, 1, population=SAMPLES
    )
    w = jnp.zeros(5, jnp.bfloat16)
    order = np.arange(SAMPLES, dtype=np.int32)
    found = compiled(sums.gradient)(w, (x, y), order, 0, SAMPLES)
    assert found.loss.dtype == found.grad.dtype == jnp.float32
    # A sum of 50 terms in bfloat16 would be off by a few percent.
    expected = -(np.asarray(x, np.float32) * np.asarray(y, np.float32)[:, None]).sum(0)
    np.testing.assert_allclose(found.grad, expected / 2, rtol=1e-5, atol=1e-5)
