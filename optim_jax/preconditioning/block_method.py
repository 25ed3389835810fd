"""What a preconditioner does with one bucket of blocks, and the methods by name."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from optim_jax.preconditioning.layout import Bucket
from optim_jax.preconditioning.moments import Weights
from optim_jax.preconditioning.options import Options
from optim_jax.preconditioning.state import BucketState


class Step(NamedTuple):
    """The numbers of one step that every bucket shares.

    Attributes:
      t: number of the step as a float, 1 for the first.
      eps: perturbation of the factors, and of the root of SOAP's second moment.
      weights: average of the factors.
      ready: scalar bool, whether refreshed roots and bases are in use.
      was_ready: the same for the step before, whose roots the statistics see.
    """

    t: jax.Array
    eps: Any
    weights: Weights
    ready: jax.Array
    was_ready: jax.Array


def average(
    old: jax.Array, sample: jax.Array, weights: Weights, active: jax.Array | None
) -> jax.Array:
    """Updates a stacked average; slots that are not active keep their value.

    The sample of such a slot must be finite.
    """
    decay, weight = weights.decay, weights.weight
    if active is not None:
        active = active.reshape(-1, *[1] * (old.ndim - 1))
        decay = jnp.where(active, decay, 1.0)
        weight = jnp.where(active, weight, 0.0)
    return (decay * old + weight * sample).astype(old.dtype)


@dataclasses.dataclass(frozen=True)
class BlockMethod:
    """A preconditioner on one bucket. The base class is the identity.

    A step calls `accumulate`, then perhaps the refresh, then `accumulate_rotated`, then
    `direction`. All three treat every slot alike, so that they can also be given some
    of the slots. The fields of `BucketState` that the first writes are `accumulates`,
    those of a refresh `results`, those of `accumulate_rotated` `rotates`.
    """

    options: Options
    accumulates: ClassVar[tuple[str, ...]] = ()
    results: ClassVar[tuple[str, ...]] = ()
    rotates: ClassVar[tuple[str, ...]] = ()

    def init(self, bucket: Bucket) -> BucketState:
        """State before the first step."""
        del bucket
        return BucketState()

    def accumulate(
        self,
        bucket: Bucket,
        state: BucketState,
        blocks: jax.Array,
        step: Step,
        active: jax.Array | None,
    ) -> BucketState:
        """Adds the raw gradient to the statistics that a refresh reads."""
        del bucket, blocks, step, active
        return state

    def accumulate_rotated(
        self,
        bucket: Bucket,
        state: BucketState,
        blocks: jax.Array,
        step: Step,
        active: jax.Array | None,
    ) -> BucketState:
        """Adds the raw gradient to the statistics in the basis of this step."""
        del bucket, blocks, step, active
        return state

    def direction(
        self, bucket: Bucket, state: BucketState, filtered: jax.Array, step: Step
    ) -> jax.Array:
        """Preconditions the filtered gradient."""
        del bucket, state, step
        return filtered
