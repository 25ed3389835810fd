"""Sums over a range of positions of the sample: losses, gradients, scalars.

A range is walked in chunks of a fixed size, so that one program serves every batch
size and the memory of the activations does not depend on it. Full chunks come first;
what remains is walked in chunks of an eighth, whose last one is masked. On a mesh each
device evaluates its share of every chunk and one reduction ends the walk.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from optim_jax.quasi_newton.directional_derivatives import directional_derivatives
from optim_jax.quasi_newton.progressive_batching import sources

Losses = Callable[[Any, Any], tuple[jax.Array, Any]]

REMAINDER_FRACTION = 8


class GradientSums(NamedTuple):
    """Sums over samples, not means.

    Attributes:
      loss: sum of the losses.
      aux: tree, sums of the per-sample auxiliary outputs over the samples.
      grad: tree, sum of the gradients in the accumulation dtype.
    """

    loss: jax.Array
    aux: Any
    grad: Any


class LossSums(NamedTuple):
    """Sums of the losses and of the auxiliary outputs over samples."""

    loss: jax.Array
    aux: Any


@dataclasses.dataclass(frozen=True)
class SampleSums:
    """Evaluates a per-sample loss over ranges of positions.

    Attributes:
      losses: (params, batch) -> ((B,) losses, tree of (B, ...) auxiliary outputs).
      dtype: accumulation dtype.
      chunk: samples evaluated at once.
      population: N, None for a stream.
      sampler: draws the samples of a stream; None for arrays.
      mesh: devices that share every chunk; None for one device.
      axis: the axis of `mesh` over which the rows lie.
    """

    losses: Losses
    dtype: Any
    chunk: int
    population: int | None = None
    sampler: sources.Sampler | None = None
    mesh: Mesh | None = None
    axis: str = "data"

    @property
    def shards(self) -> int:
        """Devices that share a chunk."""
        return 1 if self.mesh is None else self.mesh.shape[self.axis]

    @property
    def chunks(self) -> tuple[int, ...]:
        """Chunk sizes from large to small, multiples of the number of devices."""
        sizes = []
        for size in (self.chunk, self.chunk // REMAINDER_FRACTION):
            size = max(size, 1)
            size += -size % self.shards
            if size not in sizes:
                sizes.append(size)
        return tuple(sizes)

    def gradient(
        self, params: Any, source: Any, order: jax.Array, start: Any, stop: Any
    ) -> GradientSums:
        """Sums of losses, auxiliary outputs and gradients over [start, stop)."""

        def body(params: Any, batch: Any, mask: jax.Array | None) -> GradientSums:
            return self._chunk_gradient(params, batch, mask)

        return self._over_range(body, source, order, start, stop, params)

    def loss(
        self, params: Any, source: Any, order: jax.Array, start: Any, stop: Any
    ) -> LossSums:
        """Sums of losses and auxiliary outputs over [start, stop)."""

        def body(params: Any, batch: Any, mask: jax.Array | None) -> LossSums:
            return self._chunk_loss(params, batch, mask)

        return self._over_range(body, source, order, start, stop, params)

    def no_aux(self, params: Any, source: Any, order: jax.Array) -> Any:
        """Zeros of the types of mean auxiliary outputs."""
        sums = jax.eval_shape(lambda: self.loss(params, source, order, 0, 1))
        return jax.tree.map(
            lambda leaf: jnp.zeros(
                leaf.shape, jnp.promote_types(leaf.dtype, self.dtype)
            ),
            sums.aux,
        )

    def squared_deviations(
        self,
        params: Any,
        source: Any,
        order: jax.Array,
        start: Any,
        stop: Any,
        direction: Any,
        center: jax.Array,
    ) -> jax.Array:
        """Sum of (g_i . direction - center)² over [start, stop): one JVP each."""

        def body(operands: Any, batch: Any, mask: jax.Array | None) -> jax.Array:
            params, direction, center = operands
            slopes = directional_derivatives(
                lambda params: self.losses(params, batch)[0], params, direction
            ).astype(self.dtype)
            return _masked_sum((slopes - center) ** 2, mask)

        operands = (params, direction, center)
        return self._over_range(body, source, order, start, stop, operands)

    def squared_distances(
        self,
        params: Any,
        source: Any,
        order: jax.Array,
        start: Any,
        stop: Any,
        center: Any,
    ) -> jax.Array:
        """Sum of ‖g_i - center‖² over [start, stop), from one gradient a sample."""

        def body(operands: Any, batch: Any, mask: jax.Array | None) -> jax.Array:
            params, center = operands

            def distance(sample: Any) -> jax.Array:
                single = jax.tree.map(lambda leaf: leaf[None], sample)
                grad = jax.grad(lambda p: self.losses(p, single)[0][0])(params)
                squares = jax.tree.map(
                    lambda g, c: jnp.sum((g.astype(self.dtype) - c) ** 2), grad, center
                )
                return jnp.sum(jnp.stack(jax.tree.leaves(squares)))

            return _masked_sum(jax.vmap(distance)(batch), mask)

        return self._over_range(body, source, order, start, stop, (params, center))

    def full_gradient(self, params: Any, source: Any) -> GradientSums:
        """Sums over all N samples, read in the order in which they lie."""
        return self._over_all(self._chunk_gradient, source, params)

    def full_loss(self, params: Any, source: Any) -> LossSums:
        """Sums of losses and auxiliary outputs over all N samples."""
        return self._over_all(self._chunk_loss, source, params)

    def _chunk_loss(self, params: Any, batch: Any, mask: jax.Array | None) -> LossSums:
        losses, aux = self.losses(params, batch)
        total = _masked_sum(losses.astype(self.dtype), mask)
        return LossSums(total, jax.tree.map(lambda a: _masked_sum(a, mask), aux))

    def _chunk_gradient(
        self, params: Any, batch: Any, mask: jax.Array | None
    ) -> GradientSums:
        def total(params: Any) -> tuple[jax.Array, Any]:
            sums = self._chunk_loss(params, batch, mask)
            return sums.loss, sums.aux

        (loss, aux), grad = jax.value_and_grad(total, has_aux=True)(params)
        grad = jax.tree.map(lambda g: g.astype(self.dtype), grad)
        return GradientSums(loss, aux, grad)

    def _over_range(
        self,
        body: Callable[[Any, Any, jax.Array | None], Any],
        source: Any,
        order: jax.Array,
        start: Any,
        stop: Any,
        operands: Any,
    ) -> Any:
        start, stop = jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32)

        def walk(
            source: Any, order: jax.Array, start: Any, stop: Any, operands: Any
        ) -> Any:
            def add_chunk(
                first: Any, size: int, masked: bool, index: Any, total: Any
            ) -> Any:
                positions = first + index * size + jnp.arange(size, dtype=jnp.int32)
                mask = None
                if masked:
                    mask = positions < stop
                    # A masked row repeats a row of the range: one that does not belong
                    # to it may be NaN, and 0 * NaN would spoil the gradient.
                    positions = jnp.where(mask, positions, start)
                indices = order.at[positions].get(mode="promise_in_bounds")
                batch = self._fetch(source, indices)
                part = body(
                    operands, batch, None if mask is None else self._share(mask)
                )
                return jax.tree.map(jnp.add, total, part)

            shapes = jax.eval_shape(
                lambda: body(operands, self._fetch(source, order[:1]), None)
            )
            total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            first = start
            for size in self.chunks:
                masked = size == self.chunks[-1]
                count = -((first - stop) // size) if masked else (stop - first) // size
                step = functools.partial(add_chunk, first, size, masked)
                total = lax.fori_loop(0, count, step, total)
                first = first + count * size
            return self._reduced(total)

        return self._on_mesh(walk)(source, order, start, stop, operands)

    def _over_all(
        self,
        body: Callable[[Any, Any, jax.Array | None], Any],
        source: Any,
        params: Any,
    ) -> Any:
        def walk(source: Any, params: Any) -> Any:
            rows = jax.tree.leaves(source)[0].shape[0]
            size = min(self.chunk, rows)
            mask = None
            population = self.population or 0
            if population % self.shards:
                first = lax.axis_index(self.axis) * rows
                mask = first + jnp.arange(rows) < population

            def block(start: Any, length: int) -> Any:
                batch, part = jax.tree.map(
                    lambda leaf: lax.dynamic_slice_in_dim(leaf, start, length),
                    (source, mask),
                )
                return body(params, batch, part)

            if size == rows:
                return self._reduced(body(params, source, mask))
            total = block(0, size)
            total = lax.fori_loop(
                1,
                rows // size,
                lambda i, total: jax.tree.map(jnp.add, total, block(i * size, size)),
                total,
            )
            if rows % size:
                rest = block(rows - rows % size, rows % size)
                total = jax.tree.map(jnp.add, total, rest)
            return self._reduced(total)

        return self._on_mesh(walk)(source, params)

    def _fetch(self, source: Any, indices: jax.Array) -> Any:
        if self.sampler is not None:
            return sources.draw(source, self.sampler, self._share(indices))
        if self.mesh is None or indices.shape[0] % self.shards:
            return sources.take(source, indices)
        return sources.take_share(source, indices, self.axis, self.shards)

    def _share(self, rows: jax.Array) -> jax.Array:
        if self.mesh is None or rows.shape[0] % self.shards:
            return rows
        length = rows.shape[0] // self.shards
        first = lax.axis_index(self.axis) * length
        return lax.dynamic_slice_in_dim(rows, first, length)

    def _reduced(self, total: Any) -> Any:
        return total if self.mesh is None else lax.psum(total, self.axis)

    def _on_mesh(self, walk: Callable[..., Any]) -> Callable[..., Any]:
        if self.mesh is None:
            return walk
        rows = PartitionSpec() if self.sampler is not None else PartitionSpec(self.axis)

        def sharded(source: Any, *replicated: Any) -> Any:
            return jax.shard_map(
                walk,
                mesh=self.mesh,
                in_specs=(rows, *[PartitionSpec()] * len(replicated)),
                out_specs=PartitionSpec(),
                axis_names={self.axis},
                check_vma=False,
            )(source, *replicated)

        return sharded


def _masked_sum(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Sum over the leading axis of the rows that count."""
    if mask is not None:
        mask = mask.reshape(-1, *[1] * (values.ndim - 1))
        values = jnp.where(mask, values, jnp.zeros((), values.dtype))
    return values.sum(axis=0)
