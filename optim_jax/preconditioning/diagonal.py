"""Diagonal second-moment methods on stacked blocks, for grafting and on their own."""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.preconditioning.block_method import BlockMethod, Step, average
from optim_jax.preconditioning.layout import Bucket
from optim_jax.preconditioning.mesh import new_stack
from optim_jax.preconditioning.moments import Weights, second_moment_weights
from optim_jax.preconditioning.preconditioners import Diagonal
from optim_jax.preconditioning.state import BucketState


def diagonal_weights(kind: Diagonal, b2: Any, t: jax.Array) -> Weights:
    """Average of the squares for one of the four kinds at step t."""
    if kind.kind == "adagrad":
        return Weights(b2, 1.0, 1.0)
    return second_moment_weights(
        b2,
        t,
        correct=kind.kind == "adam",
        drop_weighting_factor=kind.drop_weighting_factor,
    )


def diagonal_accumulate(
    kind: Diagonal,
    b2: Any,
    second_moment: Any,
    blocks: jax.Array,
    t: jax.Array,
    active: jax.Array | None,
) -> Any:
    """Adds the squares of raw gradients to an accumulator."""
    if kind.kind == "sgd":
        return second_moment
    weights = diagonal_weights(kind, b2, t)
    return average(second_moment, jnp.square(blocks), weights, active)


def diagonal_direction(
    kind: Diagonal, b2: Any, second_moment: Any, filtered: jax.Array, t: jax.Array
) -> jax.Array:
    """The filtered gradient over the root of the accumulator."""
    if kind.kind == "sgd":
        return filtered
    correction = diagonal_weights(kind, b2, t).correction
    return filtered / (jnp.sqrt(second_moment / correction) + kind.eps)


class DiagonalMethod(BlockMethod):
    """A diagonal method as the preconditioner."""

    accumulates = ("second_moment",)

    @property
    def _kind(self) -> Diagonal:
        kind = self.options.preconditioner
        assert isinstance(kind, Diagonal)
        return kind

    def init(self, bucket: Bucket) -> BucketState:
        """Zeros for the squares; nothing for plain descent."""
        if self._kind.kind == "sgd":
            return BucketState()
        shape = (bucket.padded_slots, *bucket.block_shape)
        return BucketState(second_moment=new_stack(self.options, shape, bucket.dtype))

    def accumulate(
        self,
        bucket: Bucket,
        state: BucketState,
        blocks: jax.Array,
        step: Step,
        active: jax.Array | None,
    ) -> BucketState:
        """Adds the squares of the gradient."""
        moment = diagonal_accumulate(
            self._kind, self._kind.b2, state.second_moment, blocks, step.t, active
        )
        return state._replace(second_moment=moment)

    def direction(
        self, bucket: Bucket, state: BucketState, filtered: jax.Array, step: Step
    ) -> jax.Array:
        """Divides by the root of the averaged squares."""
        return diagonal_direction(
            self._kind, self._kind.b2, state.second_moment, filtered, step.t
        )
