"""The gradient noise scale of a step: its draws, its estimate, what the log says of it.

In steps that measure, each rank (a part of the mesh with rows of its own) keeps its
gradients apart before they are averaged: as running moments (`draws=microbatches`,
every micro-batch is a draw) or as sums over the step (`draws=ranks`). The step's
gradient is summed as in any other step. What is kept is as large as a few gradients,
and is gone when the measurement is done.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from experiments.config import TrainConfig
from experiments.sharding import BATCH_AXES, batch_ways
from experiments.training.state import GradientSum, TrainState
from experiments.training.step import weighted_objective
from models import Model
from optim_jax.noise_scale import (
    Moments,
    NoiseScale,
    check_independent_draws,
    is_saturated,
    moments_from_stacked,
    moments_init,
    moments_merge,
    moments_psum,
    moments_push,
)
from optim_jax.noise_scale.draw_sources import Estimator

Draws = Any  # of all ranks, stacked: arrays with a leading axis of ranks


class Measured(NamedTuple):
    """One measurement, scalars all."""

    noise: NoiseScale
    draws: jax.Array  # () number of independent gradients behind it
    saturated: jax.Array  # bool (), the value says no more than the batch
    moments: Moments  # without its arrays


class Measurement(NamedTuple):
    """The functions of a measuring step; all are to be compiled.

    Attributes:
      empty: `() -> draws`.
      accumulate: `(state, sums, draws, batch, micro_index) -> (sums, draws)`.
      finish: `draws -> Measured`.
    """

    empty: Callable[[], Draws]
    accumulate: Callable[..., tuple[GradientSum, Draws]]
    finish: Callable[[Draws], Measured]


class _Sums(NamedTuple):
    """Gradients of a rank that are summed over the step, one slot a draw."""

    gradients: Any  # leaves [splits, ...], sums of weight * gradient
    weight: jax.Array  # [splits], tokens


def require_draws(config: TrainConfig, mesh: Mesh) -> None:
    """Refuses a measurement that has a single draw, or rows that cannot be cut.

    Raises:
      ValueError: names the fields to change.
    """
    if config.batch.adaptive == "none":
        return
    ranks, splits = batch_ways(mesh), config.noise_scale.splits
    rows, rest = divmod(config.batch.micro_size, ranks)
    if rest or rows % splits:
        raise ValueError(
            f"a micro-batch of {config.batch.micro_size} rows on {ranks} rank(s) "
            f"cannot be cut into noise_scale.splits={splits} equal draws per rank"
        )
    draws = ranks * splits
    if config.noise_scale.draws == "microbatches":
        draws *= config.batch.size // config.batch.micro_size
    if draws < 2:
        raise ValueError(
            "batch.adaptive needs at least two draws per step, got one: set "
            "noise_scale.splits, a smaller batch.micro_batch (with "
            "noise_scale.draws=microbatches), or use more devices"
        )


def idle_measurement() -> NoiseScale:
    """What a step that does not measure hands to the controller."""
    zero = np.zeros((), np.float32)
    return NoiseScale(zero, zero, zero, np.zeros((), np.bool_), None, None)


def build_measurement(
    model: Model, config: TrainConfig, mesh: Mesh, params: Any
) -> Measurement:
    """Builds the functions that measure `batch.adaptive`'s noise scale.

    Args:
      model: whose loss is differentiated.
      config: of the run.
      mesh: its devices; ranks are its data-parallel parts.
      params: shapes and dtypes.

    Raises:
      ValueError: the parameters have no leaf that the geometry could measure.
    """
    rank = _Rank(model, config, params)
    jax.eval_shape(rank.empty)  # refuses what cannot be measured
    ranks = batch_ways(mesh)
    stacked, whole = PartitionSpec(BATCH_AXES), PartitionSpec()

    def on_ranks(function, in_specs, out_specs):
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(BATCH_AXES),
            check_vma=False,  # gradients stay those of the rank
        )

    def empty() -> Draws:
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (ranks, *leaf.shape)), rank.empty()
        )

    def local_accumulate(params, key, sums, draws, batch):
        key = jax.random.fold_in(key, jax.lax.axis_index(BATCH_AXES))
        share, mine = rank.accumulate(params, key, _first(draws), batch)
        share = jax.lax.psum(share, BATCH_AXES)
        return jax.tree.map(jnp.add, sums, share), _stack(mine)

    def accumulate(
        state: TrainState,
        sums: GradientSum,
        draws: Draws,
        batch: Mapping[str, jax.Array],
        micro_index: jax.Array,
    ) -> tuple[GradientSum, Draws]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), micro_index)
        run = on_ranks(
            local_accumulate, (whole, whole, whole, stacked, stacked), (whole, stacked)
        )
        return run(state.params, key, sums, draws, dict(batch))

    def finish(draws: Draws) -> Measured:
        run = on_ranks(lambda draws: rank.finish(_first(draws)), (stacked,), whole)
        return run(draws)

    return Measurement(empty, accumulate, finish)


def _first(tree: Any) -> Any:
    """A rank's own part of what lies stacked over the ranks."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _stack(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[None], tree)


class _Rank:
    """What one rank does, inside the shard map."""

    def __init__(self, model: Model, config: TrainConfig, params: Any):
        options = config.noise_scale
        self._options = options
        self._params = params
        self._seq_len = config.data.seq_len
        self._gradient_of = jax.value_and_grad(weighted_objective(model), has_aux=True)
        self._estimator = Estimator(
            geometry=config.batch.adaptive,
            matrix_axes=model.matrix_axes,
            side=options.side,
            signal=options.signal,
            noise=options.noise,
            sqrt_bias=options.sqrt_bias,
            method=options.method,
        )
        self._layout = self._estimator.layout

    def empty(self) -> Any:
        if self._options.draws == "microbatches":
            return moments_init(self._params, **self._layout)
        slots = self._options.splits
        return _Sums(
            jax.tree.map(
                lambda leaf: jnp.zeros(
                    (slots, *leaf.shape), jnp.promote_types(leaf.dtype, jnp.float32)
                ),
                self._params,
            ),
            jnp.zeros((slots,), jnp.float32),
        )

    def accumulate(
        self, params: Any, key: jax.Array, draws: Any, batch: Mapping[str, jax.Array]
    ) -> tuple[GradientSum, Any]:
        """This rank's share of the gradient sum, and its draws with these rows."""
        splits = self._options.splits
        groups = jax.tree.map(
            lambda rows: rows.reshape(splits, rows.shape[0] // splits, *rows.shape[1:]),
            batch,
        )
        (objective, aux), gradients = jax.vmap(self._gradient_of, (None, 0, 0))(
            params, groups, jax.random.split(key, splits)
        )
        weight = aux["weight"]
        share = GradientSum(
            gradients=jax.tree.map(_sum_of_draws, gradients),
            objective=jnp.sum(objective),
            loss=jnp.sum(weight * aux["loss"]),
            weight=jnp.sum(weight),
        )
        if isinstance(draws, _Sums):
            return share, jax.tree.map(jnp.add, draws, _Sums(gradients, weight))
        return share, moments_merge(
            draws, self._moments(_means(gradients, weight), weight), **self._layout
        )

    def finish(self, draws: Any) -> Measured:
        """The measurement over all ranks' draws."""
        if isinstance(draws, _Sums):
            means = _means(draws.gradients, draws.weight)
            local = self._moments(means, draws.weight)
            moments = moments_psum(local, BATCH_AXES, **self._layout)
            noise = self._estimator.of_draws(
                moments, means, self._samples(draws.weight), BATCH_AXES
            )
        else:
            moments = moments_psum(draws, BATCH_AXES, **self._layout)
            noise = self._estimator.of_moments(moments)
        options, saturated = self._options, jnp.zeros((), bool)
        # Only the plain estimate is bound by its batch.
        if options.signal == "mean" and options.noise == "moments":
            saturated = is_saturated(
                noise, moments, sqrt_bias=options.sqrt_bias, **self._layout
            )
        bare = moments._replace(mean=None, m2=None)
        return Measured(noise, moments.count, saturated, bare)

    def _moments(self, means: Any, weight: jax.Array) -> Moments:
        samples = self._samples(weight)
        if self._options.splits > 1:
            return moments_from_stacked(means, sample_weights=samples, **self._layout)
        empty = moments_init(self._params, **self._layout)
        return moments_push(empty, _first(means), samples[0], **self._layout)

    def _samples(self, weight: jax.Array) -> jax.Array:
        """Rows that so many tokens would fill: rows may be filled in part."""
        return weight / self._seq_len


def _means(gradients: Any, weight: jax.Array) -> Any:
    """Mean gradients of draws from their sums; zero for a draw without tokens."""
    safe = jnp.maximum(weight, 1e-30)
    return jax.tree.map(
        lambda g: g / safe.reshape(-1, *[1] * (g.ndim - 1)).astype(g.dtype), gradients
    )


def _sum_of_draws(gradients: jax.Array) -> jax.Array:
    """Summed in float32 at least, as over the micro-batches of any step."""
    wide = jnp.promote_types(gradients.dtype, jnp.float32)
    return jnp.sum(gradients, axis=0, dtype=wide)


def measurement_metrics(measured: Measured) -> dict[str, float]:
    """What the log says of a measurement, by metric name."""
    read = jax.device_get(measured)
    return {
        "optim/noise_scale": float(read.noise.value),
        "optim/noise_sq": float(read.noise.noise_sq),
        "optim/signal_sq": float(read.noise.signal_sq),
        "optim/noise_scale_saturated": float(read.saturated),
        "optim/noise_scale_draws": float(read.draws),
    }


def require_independent_draws(measured: Measured) -> None:
    """Raises a `ValueError` where all draws were the same gradient."""
    check_independent_draws(measured.noise, measured.moments)
