"""Steepest descent as a preconditioner: polar factors and signs of stacked blocks."""

import jax
import jax.numpy as jnp

from optim_jax.linalg import orthogonalize
from optim_jax.preconditioning.block_method import BlockMethod, Step
from optim_jax.preconditioning.layout import Bucket
from optim_jax.preconditioning.matrix_functions import NewtonSchulz
from optim_jax.preconditioning.preconditioners import Sign, Spectral
from optim_jax.preconditioning.state import BucketState


class SpectralMethod(BlockMethod):
    """Replaces each matrix by its polar factor, times a function of its sides."""

    def direction(
        self, bucket: Bucket, state: BucketState, filtered: jax.Array, step: Step
    ) -> jax.Array:
        """The polar factor of each block."""
        kind = self.options.preconditioner
        assert isinstance(kind, Spectral)
        if isinstance(kind.method, NewtonSchulz):
            direction, _ = orthogonalize(
                filtered,
                method="newton_schulz",
                num_iterations=kind.method.num_iterations,
                coefficients=kind.method.coefficients,
            )
        else:
            assert kind.method is not None
            direction, _ = orthogonalize(
                filtered,
                method="svd",
                scale_by_nuclear_norm=kind.method.scale_by_nuclear_norm,
            )
        if kind.scale_by_dims is None:
            return direction
        d_out, d_in = bucket.block_shape
        return direction * jnp.asarray(kind.scale_by_dims(d_in, d_out), direction.dtype)


class SignMethod(BlockMethod):
    """Replaces each entry by its sign, times a function of the block."""

    def direction(
        self, bucket: Bucket, state: BucketState, filtered: jax.Array, step: Step
    ) -> jax.Array:
        """The sign of each entry."""
        kind = self.options.preconditioner
        assert isinstance(kind, Sign)
        direction = jnp.sign(filtered)
        if kind.scale is None:
            return direction
        scales = jax.vmap(kind.scale)(filtered)
        return direction * scales.reshape(-1, *[1] * len(bucket.block_shape))
