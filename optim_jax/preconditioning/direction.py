"""One step of Shampoo on buckets: statistics, refresh, first moment, direction."""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.preconditioning.block_method import BlockMethod, Step, average
from optim_jax.preconditioning.descent_methods import SignMethod, SpectralMethod
from optim_jax.preconditioning.diagonal import (
    DiagonalMethod,
    diagonal_accumulate,
    diagonal_direction,
)
from optim_jax.preconditioning.factors import RefreshInputs
from optim_jax.preconditioning.kronecker_methods import KRONECKER_METHODS
from optim_jax.preconditioning.layout import Bucket, Layout
from optim_jax.preconditioning.mesh import new_stack, place_scalar
from optim_jax.preconditioning.moments import (
    Weights,
    first_moment_correction,
    is_traced,
    second_moment_weights,
)
from optim_jax.preconditioning.options import Hyperparameters, Options
from optim_jax.preconditioning.outcome import saturating_add
from optim_jax.preconditioning.preconditioners import Diagonal, Sign, Spectral
from optim_jax.preconditioning.refresh import refresh_all
from optim_jax.preconditioning.slots import over_slots
from optim_jax.preconditioning.staggered import refresh_share
from optim_jax.preconditioning.state import Buckets, BucketState, Health, ShampooState

# Keeps the ratio of norms finite where a block's direction vanishes.
_GRAFT_EPS = 1e-16

Stacks = dict[str, jax.Array]


def block_method(options: Options) -> BlockMethod:
    """The method that the options ask for."""
    kind = options.preconditioner
    if isinstance(kind, Diagonal):
        return DiagonalMethod(options)
    if isinstance(kind, Spectral):
        return SpectralMethod(options)
    if isinstance(kind, Sign):
        return SignMethod(options)
    return KRONECKER_METHODS[type(kind).__name__](options)


def has_first_moment(hyperparameters: Hyperparameters) -> bool:
    """Whether gradients are filtered: always where b1 may change."""
    return is_traced(hyperparameters.b1) or hyperparameters.b1 != 0.0


def init_state(layout: Layout, hyperparameters: Hyperparameters) -> ShampooState:
    """State before the first step."""
    options, method = layout.options, block_method(layout.options)

    def zero(dtype: Any = jnp.int32) -> jax.Array:
        return place_scalar(jnp.zeros([], dtype), options)

    def moments(dtype: Any) -> dict[str, jax.Array]:
        return {
            bucket.key: new_stack(
                options,
                (bucket.padded_slots, *bucket.block_shape),
                dtype or bucket.dtype,
            )
            for bucket in layout.buckets
        }

    mu = moments(options.mu_dtype) if has_first_moment(hyperparameters) else ()
    grafting = options.grafting
    graft = moments(None) if grafting is not None and grafting.kind != "sgd" else ()
    buckets = {bucket.key: method.init(bucket) for bucket in layout.buckets}
    failures = {
        bucket.key: new_stack(
            options, (bucket.padded_slots, len(bucket.modes)), jnp.int32
        )
        for bucket in layout.buckets
        if bucket.modes
    }
    if not layout.leaves:
        # `optax.tree.map_params` asks with a tree that has no leaves: one entry then
        # stands for whatever buckets a real tree has.
        mu, graft, buckets, failures = (zero() for _ in range(4))
    health = Health(
        refreshes=zero(),
        skipped=zero(),
        total_failures=zero(),
        failures=failures,
        max_residual=zero(jnp.float32),
        iterations=zero(),
        off_diagonal=zero(jnp.float32),
    )
    return ShampooState(zero(), mu, buckets, graft, health)


def make_step(
    options: Options,
    hyperparameters: Hyperparameters,
    count: jax.Array,
    refreshes: jax.Array,
) -> Step:
    """The shared numbers of step `count`, which is 1 for the first."""
    t = count.astype(jnp.result_type(float))
    kind = options.preconditioner
    weights = second_moment_weights(
        hyperparameters.b2,
        t,
        correct=options.bias_correction,
        drop_weighting_factor=getattr(kind, "drop_weighting_factor", False),
    )
    if options.refresh == "external":
        ready = was_ready = refreshes > 0
    else:
        start = first_refresh(hyperparameters)
        ready, was_ready = count >= start, count > start
    return Step(t, hyperparameters.eps, weights, ready, was_ready)


def first_refresh(hyperparameters: Hyperparameters) -> Any:
    """Step of the first refresh."""
    start, frequency = hyperparameters.start, hyperparameters.frequency
    if is_traced(start) or is_traced(frequency):
        return jnp.where(start < 0, frequency, start)
    return frequency if start == -1 else start


def is_refresh_step(hyperparameters: Hyperparameters, count: jax.Array) -> jax.Array:
    """Whether all roots are refreshed at step `count`, which is 1 for the first."""
    start = first_refresh(hyperparameters)
    periodic = (count % hyperparameters.frequency == 0) & (count > start)
    return periodic | (count == start)


def take_step(
    layout: Layout,
    hyperparameters: Hyperparameters,
    state: ShampooState,
    blocks: Stacks,
    active: dict[str, jax.Array] | None,
) -> tuple[Stacks, ShampooState]:
    """Advances the state by one step.

    Args:
      layout: from `make_layout`.
      hyperparameters: numbers of this step.
      state: before the step.
      blocks: raw gradients by bucket, zero where they are not active.
      active: per bucket bool (S,): which slots take part; None for all.

    Returns:
      Directions by bucket, zero where not active, and the state after the step;
      `health.skipped` is left to the caller.
    """
    options, method = layout.options, block_method(layout.options)
    count = saturating_add(state.count, 1)
    step = make_step(options, hyperparameters, count, state.health.refreshes)
    chosen = active or dict.fromkeys(blocks)
    buckets, graft, mu, directions = {}, {}, {}, {}
    for bucket in layout.buckets:
        key = bucket.key
        buckets[key], graft[key] = accumulate(
            method,
            hyperparameters,
            bucket,
            state.buckets[key],
            state.graft[key] if state.graft else (),
            blocks[key],
            step,
            chosen[key],
        )
    buckets, health = _refresh(
        layout, method, hyperparameters, count, step, buckets, state.health
    )
    for bucket in layout.buckets:
        key = bucket.key
        directions[key], mu[key], buckets[key] = _direct(
            method,
            hyperparameters,
            bucket,
            buckets[key],
            graft[key],
            state.mu[key] if has_first_moment(hyperparameters) else (),
            blocks[key],
            step,
            chosen[key],
        )
    return directions, ShampooState(
        count,
        mu if has_first_moment(hyperparameters) else (),
        buckets,
        graft if state.graft else (),
        health,
    )


def accumulate(
    method: BlockMethod,
    hyperparameters: Hyperparameters,
    bucket: Bucket,
    state: BucketState,
    graft: Any,
    blocks: jax.Array,
    step: Step,
    active: jax.Array | None,
) -> tuple[BucketState, Any]:
    """Statistics of the raw gradient: everything before the refresh."""
    grafting = method.options.grafting

    def advance(written: Any, read: Any) -> Any:
        fields, graft = written
        state, blocks, active = read
        state = state._replace(**fields)
        state = method.accumulate(bucket, state, blocks, step, active)
        if grafting is not None:
            graft = diagonal_accumulate(
                grafting, hyperparameters.graft_b2, graft, blocks, step.t, active
            )
        return {name: getattr(state, name) for name in fields}, graft

    fields = {name: getattr(state, name) for name in method.accumulates}
    fields, graft = over_slots(
        advance, (fields, graft), (state, blocks, active), bucket, method.options
    )
    return state._replace(**fields), graft


def _direct(
    method: BlockMethod,
    hyperparameters: Hyperparameters,
    bucket: Bucket,
    state: BucketState,
    graft: Any,
    mu: Any,
    blocks: jax.Array,
    step: Step,
    active: jax.Array | None,
) -> tuple[jax.Array, Any, BucketState]:
    """First moment and direction: everything after the refresh.

    The direction takes the place of the gradient, which nothing needs any more.
    """
    options = method.options
    filtered, correction = (), 1.0
    if has_first_moment(hyperparameters):
        mu, filtered, correction = _filter(
            options, hyperparameters, mu, blocks, step.t, active
        )

    def rotate(fields: Any, read: Any) -> Any:
        state, blocks, active = read
        state = state._replace(**fields)
        state = method.accumulate_rotated(bucket, state, blocks, step, active)
        return {name: getattr(state, name) for name in fields}

    def direct(blocks: jax.Array, read: Any) -> jax.Array:
        state, graft, filtered, active = read
        # Corrected here, where it costs no pass over memory.
        filtered = blocks if isinstance(filtered, tuple) else filtered / correction
        filtered = filtered.astype(blocks.dtype)
        direction = method.direction(bucket, state, filtered, step)
        if options.grafting is not None:
            magnitude = diagonal_direction(
                options.grafting, hyperparameters.graft_b2, graft, filtered, step.t
            )
            grafted = graft_norm(direction, magnitude)
            direction = jnp.where(step.ready, grafted, magnitude)
        if active is not None:
            mask = active.reshape(-1, *[1] * (direction.ndim - 1))
            direction = jnp.where(mask, direction, 0.0)
        return direction.astype(blocks.dtype)

    if method.rotates:
        fields = {name: getattr(state, name) for name in method.rotates}
        fields = over_slots(rotate, fields, (state, blocks, active), bucket, options)
        state = state._replace(**fields)
    read = (state, graft, filtered, active)
    return over_slots(direct, blocks, read, bucket, options), mu, state


def graft_norm(
    direction: jax.Array, magnitude: jax.Array, eps: float = _GRAFT_EPS
) -> jax.Array:
    """Gives each block of a stack the Frobenius norm of another stack's block."""
    axes = tuple(range(1, direction.ndim))

    def norms(blocks: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.square(blocks), axis=axes, keepdims=True))

    return direction * (norms(magnitude) / (norms(direction) + eps))


def _filter(
    options: Options,
    hyperparameters: Hyperparameters,
    mu: jax.Array,
    blocks: jax.Array,
    t: jax.Array,
    active: jax.Array | None,
) -> tuple[jax.Array, jax.Array, Any]:
    """New first moment, what the direction is made of, and its bias correction."""
    b1, b3 = hyperparameters.b1, hyperparameters.b3
    old = mu.astype(blocks.dtype)
    new = average(old, blocks, Weights(b1, 1.0 - b1, 1.0), active)
    filtered, stored = new, new.astype(mu.dtype)
    if b3 is None:
        b3 = b1
    else:
        if is_traced(b1):
            b3 = jnp.where(b1 == 0.0, 0.0, b3)
        filtered = b3 * old + (1.0 - b3) * blocks
    correction = 1.0
    if options.bias_correction:
        correction = first_moment_correction(b1, b3, t)
    return stored, filtered, correction


def _refresh(
    layout: Layout,
    method: BlockMethod,
    hyperparameters: Hyperparameters,
    count: jax.Array,
    step: Step,
    buckets: Buckets,
    health: Health,
) -> tuple[Buckets, Health]:
    """Refreshes what the mode asks for at this step."""
    options = layout.options
    if options.refresh == "external" or not layout.stacks:
        return buckets, health
    inputs = RefreshInputs(step.weights.correction, step.eps)
    fields = (*method.results, "second_moment")

    # Only what a refresh writes goes through the conditional, which may copy it.
    def written(buckets: Buckets) -> dict[str, Any]:
        return {key: [getattr(b, f) for f in fields] for key, b in buckets.items()}

    def refreshed() -> tuple[dict[str, Any], Health]:
        after, after_health = refresh_all(layout, method, buckets, health, inputs)
        return written(after), after_health

    if options.refresh == "staggered":
        period = options.staggered_period
        assert period is not None
        write = count > first_refresh(hyperparameters) - period
        if period != 1:
            return refresh_share(
                layout, method, buckets, health, inputs, count % period, write
            )
        results, health = jax.tree.map(
            lambda new, old: jnp.where(write, new, old),
            refreshed(),
            (written(buckets), health),
        )
    else:
        results, health = jax.lax.cond(
            is_refresh_step(hyperparameters, count),
            refreshed,
            lambda: (written(buckets), health),
        )
    buckets = {
        key: bucket._replace(**dict(zip(fields, results[key], strict=True)))
        for key, bucket in buckets.items()
    }
    return buckets, health
