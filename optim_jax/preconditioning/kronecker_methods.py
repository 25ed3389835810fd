"""Kronecker-factored preconditioners on stacked blocks: roots, eigenbases, SOAP."""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.linalg import inverse_root_eigenvalues
from optim_jax.preconditioning.block_method import BlockMethod, Step, average
from optim_jax.preconditioning.factors import corrected_factors, perturbations
from optim_jax.preconditioning.kronecker import mode_outer, mode_product, scale_modes
from optim_jax.preconditioning.layout import Bucket
from optim_jax.preconditioning.matrix_functions import Eigh
from optim_jax.preconditioning.mesh import new_stack
from optim_jax.preconditioning.preconditioners import (
    Eigendecomposed,
    EigenvalueCorrected,
)
from optim_jax.preconditioning.state import BucketState


class KroneckerMethod(BlockMethod):
    """One factor per preconditioned mode, averaged at every step."""

    accumulates = ("factors",)

    def init(self, bucket: Bucket) -> BucketState:
        """Zero factors, and identities until the first refresh."""
        options, slots = self.options, bucket.padded_slots

        def matrices(dtype: Any, fill: str) -> tuple[jax.Array, ...]:
            return tuple(
                new_stack(options, (slots, d, d), dtype, fill)
                for d in bucket.factor_dims
            )

        state = BucketState(factors=matrices(options.factor_dtype, "zeros"))
        fields = {}
        if "inverses" in self.results:
            fields["inverses"] = matrices(options.inverse_dtype, "identity")
        if "eigenvectors" in self.results:
            fields["eigenvectors"] = matrices(options.inverse_dtype, "identity")
        if "eigenvalues" in self.results:
            fields["eigenvalues"] = tuple(
                new_stack(options, (slots, d), options.inverse_dtype, "ones")
                for d in bucket.factor_dims
            )
        return state._replace(**fields)

    def accumulate(
        self,
        bucket: Bucket,
        state: BucketState,
        blocks: jax.Array,
        step: Step,
        active: jax.Array | None,
    ) -> BucketState:
        """Adds one outer product per preconditioned mode."""
        factors = []
        for position, mode in enumerate(bucket.modes):
            old = state.factors[position]
            fibres = self._statistics_of(bucket, state, blocks, step, position)
            outer = mode_outer(
                fibres.astype(old.dtype), mode, jax.lax.Precision.HIGHEST
            )
            factors.append(average(old, outer, step.weights, active))
        return state._replace(factors=tuple(factors))

    def _statistics_of(
        self,
        bucket: Bucket,
        state: BucketState,
        blocks: jax.Array,
        step: Step,
        position: int,
    ) -> jax.Array:
        """What the outer products of one mode are taken of: the raw gradient."""
        del bucket, state, step, position
        return blocks

    def _all_modes(
        self,
        bucket: Bucket,
        matrices: tuple[jax.Array, ...],
        blocks: jax.Array,
        *,
        transposed: bool = False,
        but: int | None = None,
    ) -> jax.Array:
        for position, mode in enumerate(bucket.modes):
            if position != but:
                blocks = mode_product(
                    blocks,
                    matrices[position],
                    mode,
                    self.options.precision,
                    transposed=transposed,
                )
        return blocks


class RootInverseMethod(KroneckerMethod):
    """Classic Shampoo: multiply every mode by the stored inverse root."""

    results = ("inverses",)

    def direction(
        self, bucket: Bucket, state: BucketState, filtered: jax.Array, step: Step
    ) -> jax.Array:
        """Multiplies every mode by its inverse root."""
        if not bucket.modes:
            return filtered
        blocks = filtered.astype(self.options.inverse_dtype)
        # Roots are symmetric: contracting columns lets the first product be M @ G.
        direction = self._all_modes(bucket, state.inverses, blocks, transposed=True)
        direction = direction.astype(filtered.dtype)
        if self.options.refresh == "staggered":
            return jnp.where(step.ready, direction, filtered)
        return direction


class KLRootInverseMethod(RootInverseMethod):
    """Statistics of the gradient preconditioned on all other modes."""

    def _statistics_of(
        self,
        bucket: Bucket,
        state: BucketState,
        blocks: jax.Array,
        step: Step,
        position: int,
    ) -> jax.Array:
        blocks = blocks.astype(self.options.inverse_dtype)
        others = self._all_modes(
            bucket, state.inverses, blocks, transposed=True, but=position
        )
        if self.options.refresh == "staggered":
            return jnp.where(step.was_ready, others, blocks)
        return others


class EigendecomposedMethod(KroneckerMethod):
    """Roots rebuilt at every step from stored eigenvectors and eigenvalues."""

    results = ("eigenvectors", "eigenvalues")

    @property
    def _kind(self) -> Eigendecomposed:
        kind = self.options.preconditioner
        assert isinstance(kind, Eigendecomposed)
        return kind

    def _root_eigenvalues(
        self, bucket: Bucket, state: BucketState, position: int, step: Step
    ) -> jax.Array:
        """Eigenvalues of the inverse root of one mode, (S, d)."""
        kind, method = self._kind, self._kind.method
        assert method is not None
        before = method.perturb_before
        eigenvalues = state.eigenvalues[position]
        if kind.correct_eigenvalues:
            factors = corrected_factors(
                state.factors[position],
                step.weights.correction,
                kind.trace_scaling_exponent,
                step.eps,
            ).astype(eigenvalues.dtype)
            basis = state.eigenvectors[position]
            rotated = mode_product(factors, basis, 1, jax.lax.Precision.HIGHEST)
            eigenvalues = jnp.sum(basis * rotated, axis=-2)
        norms = jnp.sqrt(jnp.sum(jnp.square(eigenvalues), axis=-1))
        eps = perturbations(norms, step.eps, self.options.relative_epsilon)
        if kind.correct_eigenvalues and before:
            eigenvalues = eigenvalues + eps[:, None]
        rank = {}
        if isinstance(method, Eigh):
            rank = {
                "pseudo_inverse": method.pseudo_inverse,
                "rank_rtol": method.rank_rtol,
                "rank_atol": method.rank_atol,
            }
        return inverse_root_eigenvalues(
            eigenvalues,
            float(bucket.exponents[position]),
            eps=eps,
            perturb_before=before,
            **rank,
        )

    def _apply(
        self,
        bucket: Bucket,
        state: BucketState,
        blocks: jax.Array,
        step: Step,
        ready: jax.Array,
        but: int | None = None,
    ) -> jax.Array:
        """Multiplies modes by their roots; the identity where `ready` is false."""
        rotated = self._all_modes(bucket, state.eigenvectors, blocks, but=but)
        scales = [
            (mode, self._root_eigenvalues(bucket, state, position, step))
            for position, mode in enumerate(bucket.modes)
            if position != but
        ]
        rotated = scale_modes(rotated, scales)
        applied = self._all_modes(
            bucket, state.eigenvectors, rotated, transposed=True, but=but
        )
        return jnp.where(ready, applied, blocks)

    def direction(
        self, bucket: Bucket, state: BucketState, filtered: jax.Array, step: Step
    ) -> jax.Array:
        """Multiplies every mode by its inverse root, in its eigenbasis."""
        if not bucket.modes:
            return filtered
        blocks = filtered.astype(self.options.inverse_dtype)
        applied = self._apply(bucket, state, blocks, step, step.ready)
        return applied.astype(filtered.dtype)


class KLEigendecomposedMethod(EigendecomposedMethod):
    """Statistics of the gradient preconditioned on all other modes."""

    def _statistics_of(
        self,
        bucket: Bucket,
        state: BucketState,
        blocks: jax.Array,
        step: Step,
        position: int,
    ) -> jax.Array:
        blocks = blocks.astype(self.options.inverse_dtype)
        return self._apply(bucket, state, blocks, step, step.was_ready, but=position)


class EigenvalueCorrectedMethod(KroneckerMethod):
    """SOAP: an Adam whose second moment lives in the eigenbasis of the factors."""

    results = ("eigenvectors",)
    rotates = ("second_moment",)

    @property
    def _kind(self) -> EigenvalueCorrected:
        kind = self.options.preconditioner
        assert isinstance(kind, EigenvalueCorrected)
        return kind

    def init(self, bucket: Bucket) -> BucketState:
        """Also a zero second moment."""
        shape = (bucket.padded_slots, *bucket.block_shape)
        moment = new_stack(self.options, shape, self.options.factor_dtype)
        return super().init(bucket)._replace(second_moment=moment)

    def _rotate(
        self,
        bucket: Bucket,
        state: BucketState,
        blocks: jax.Array,
        step: Step,
        *,
        back: bool = False,
    ) -> jax.Array:
        if not bucket.modes:
            return blocks
        rotated = self._all_modes(bucket, state.eigenvectors, blocks, transposed=back)
        if self.options.refresh == "staggered":
            return jnp.where(step.ready, rotated, blocks)
        return rotated

    def accumulate_rotated(
        self,
        bucket: Bucket,
        state: BucketState,
        blocks: jax.Array,
        step: Step,
        active: jax.Array | None,
    ) -> BucketState:
        """Adds the squares of the gradient in the basis of this step."""
        blocks = blocks.astype(self.options.inverse_dtype)
        squares = jnp.square(self._rotate(bucket, state, blocks, step))
        moment = average(state.second_moment, squares, step.weights, active)
        return state._replace(second_moment=moment)

    def direction(
        self, bucket: Bucket, state: BucketState, filtered: jax.Array, step: Step
    ) -> jax.Array:
        """Adam's direction in the eigenbasis, rotated back."""
        override = dict(self._kind.inverse_exponent_override or ())
        exponent = float(override.get(bucket.order, 0.5))
        rotated = self._rotate(
            bucket, state, filtered.astype(self.options.inverse_dtype), step
        )
        moment = state.second_moment / step.weights.correction
        root = jnp.sqrt(moment) if exponent == 0.5 else moment**exponent
        rotated = (rotated / (root + step.eps)).astype(self.options.inverse_dtype)
        back = self._rotate(bucket, state, rotated, step, back=True)
        return back.astype(filtered.dtype)


KRONECKER_METHODS = {
    "RootInverse": RootInverseMethod,
    "KLRootInverse": KLRootInverseMethod,
    "Eigendecomposed": EigendecomposedMethod,
    "KLEigendecomposed": KLEigendecomposedMethod,
    "EigenvalueCorrected": EigenvalueCorrectedMethod,
}
