"""Refreshing all roots and eigenbases at once.

Shape legend: S slots of a bucket, K its preconditioned modes, N matrices of a refresh
stack, d size of a factor, D size that its stack pads it to.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.preconditioning.block_method import BlockMethod
from optim_jax.preconditioning.factor_solver import (
    Problem,
    Solution,
    needs_bases,
    solve,
)
from optim_jax.preconditioning.factors import (
    corrected_factors,
    factor_norms,
    pad_bases,
    pad_factors,
    perturbations,
)
from optim_jax.preconditioning.layout import Layout, RefreshStack
from optim_jax.preconditioning.mesh import on_each_device, place_blocks
from optim_jax.preconditioning.options import Options
from optim_jax.preconditioning.preconditioners import EigenvalueCorrected
from optim_jax.preconditioning.state import BucketState, Health

Buckets = dict[str, BucketState]


class RefreshInputs(NamedTuple):
    """Scalars that a refresh needs.

    Attributes:
      correction: bias correction of the factors.
      eps: perturbation of the factors.
    """

    correction: Any
    eps: Any


def prepare(
    options: Options, factors: jax.Array, inputs: RefreshInputs
) -> tuple[jax.Array, jax.Array]:
    """Factors (N, d, d) as the solver wants them, and the perturbation of each."""
    factors = factors.astype(jnp.promote_types(factors.dtype, jnp.float32))
    exponent = getattr(options.preconditioner, "trace_scaling_exponent", None)
    factors = corrected_factors(factors, inputs.correction, exponent, inputs.eps)
    eps = perturbations(factor_norms(factors), inputs.eps, options.relative_epsilon)
    return factors, eps


def common_exponent(layout: Layout, stack: RefreshStack) -> Any:
    """The exponent of all factors of a stack, None where they differ."""
    values = {layout.bucket[key].exponents[position] for key, position in stack.members}
    return values.pop() if len(values) == 1 else None


def unpadded(solution: Solution, field: str, rows: Any, dim: int) -> jax.Array:
    """One field of some matrices, without the padding of its stack."""
    array = getattr(solution, field)[rows]
    return array[..., :dim] if field == "eigenvalues" else array[..., :dim, :dim]


def refresh_all(
    layout: Layout,
    method: BlockMethod,
    buckets: Buckets,
    health: Health,
    inputs: RefreshInputs,
) -> tuple[Buckets, Health]:
    """Refreshes every root or basis.

    Factors move from the device of their block to the device that solves them, and
    results move back: stacks of equal size share the work better than blocks do.
    Where a factor or a result is not finite, or a solver failed, the previous result
    stays.
    """
    options = layout.options
    with_bases = needs_bases(options)
    results = {
        key: {field: list(getattr(state, field)) for field in method.results}
        for key, state in buckets.items()
    }
    moments = {key: state.second_moment for key, state in buckets.items()}
    succeeded = {
        bucket.key: jnp.ones(bucket.slots, bool)
        for bucket in layout.buckets
        if bucket.modes
    }
    worst = _Worst()
    for stack in layout.stacks:
        problem, spans = _collect(layout, stack, buckets, inputs, with_bases)
        exponent = common_exponent(layout, stack)

        def solve_local(local: Problem, exponent: Any = exponent) -> Solution:
            return solve(options, local, exponent)

        solution = on_each_device(solve_local, options)(problem)
        worst.add(solution, spans[-1][1])
        for (key, position), span in zip(stack.members, spans, strict=True):
            bucket, rows = layout.bucket[key], slice(*span)
            success = solution.success[rows]
            succeeded[key] = succeeded[key] & success
            dim = bucket.factor_dims[position]
            for field in method.results:
                old = results[key][field][position]
                new = unpadded(solution, field, rows, dim)
                chosen = _where(success, new, old[: bucket.slots])
                results[key][field][position] = _with_padding(chosen, old, options)
            if permutes(options):
                order = solution.permutation[rows][:, :dim]
                real = moments[key][: bucket.slots]
                sorted_moments = permute_slots(real, order, bucket.modes[position])
                moments[key] = _with_padding(
                    _where(success, sorted_moments, real), moments[key], options
                )
    buckets = {
        key: state._replace(
            second_moment=moments[key],
            **{field: tuple(values) for field, values in results[key].items()},
        )
        for key, state in buckets.items()
    }
    return buckets, _count_failures(layout, health, succeeded, worst)


def _collect(
    layout: Layout,
    stack: RefreshStack,
    buckets: Buckets,
    inputs: RefreshInputs,
    with_bases: bool,
) -> tuple[Problem, list[tuple[int, int]]]:
    """The stack of a refresh and the rows of each member in it."""
    options = layout.options
    factors, epsilons, exponents, bases, spans = [], [], [], [], []
    first = 0
    for key, position in stack.members:
        bucket, state = layout.bucket[key], buckets[key]
        prepared, eps = prepare(
            options, state.factors[position][: bucket.slots], inputs
        )
        factors.append(pad_factors(prepared, stack.dim))
        epsilons.append(eps)
        exponent = float(bucket.exponents[position])
        exponents.append(np.full(bucket.slots, exponent, eps.dtype))
        if with_bases:
            old = state.eigenvectors[position][: bucket.slots].astype(prepared.dtype)
            bases.append(pad_bases(old, stack.dim))
        spans.append((first, first + bucket.slots))
        first += bucket.slots
    dtype = factors[0].dtype
    empty = -first % options.num_devices
    identities = jnp.broadcast_to(
        jnp.eye(stack.dim, dtype=dtype), (empty, stack.dim, stack.dim)
    )

    def join(parts: list[Any], filler: Any) -> jax.Array:
        parts = [*parts, filler] if empty else parts
        joined = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
        return place_blocks(jnp.asarray(joined), options)

    problem = Problem(
        join(factors, identities),
        join(epsilons, jnp.zeros(empty, dtype)),
        join(exponents, np.ones(empty, dtype)),
        join(bases, identities) if with_bases else (),
    )
    return problem, spans


def _where(choice: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(choice.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _with_padding(rows: jax.Array, old: jax.Array, options: Options) -> jax.Array:
    """Rows of real slots, followed by what the empty slots held."""
    if rows.shape[0] < old.shape[0]:
        rows = jnp.concatenate([rows, old[rows.shape[0] :]])
    return place_blocks(rows, options)


def permutes(options: Options) -> bool:
    """Whether the second moment is sorted along with its basis."""
    kind = options.preconditioner
    return isinstance(kind, EigenvalueCorrected) and kind.permute_second_moment


def permute_slots(moments: jax.Array, order: jax.Array, mode: int) -> jax.Array:
    """Sorts one mode of second moments (N, *block) by an order (N, d)."""
    shape = [1] * moments.ndim
    shape[0], shape[1 + mode] = order.shape
    return jnp.take_along_axis(moments, order.reshape(shape), axis=1 + mode)


class _Worst:
    """Largest residual, iteration count and off-diagonal norm of a refresh."""

    def __init__(self) -> None:
        self.residual = jnp.zeros([], jnp.float32)
        self.iterations = jnp.zeros([], jnp.int32)
        self.off_diagonal = jnp.zeros([], jnp.float32)

    def add(self, solution: Solution, rows: int) -> None:
        """Looks at the first `rows` matrices; failed ones are counted elsewhere."""

        def largest(values: jax.Array, dtype: Any) -> jax.Array:
            values = jnp.where(solution.success, values, 0)[:rows]
            return jnp.max(values, initial=0).astype(dtype)

        self.residual = jnp.maximum(
            self.residual, largest(solution.residual, jnp.float32)
        )
        self.iterations = jnp.maximum(
            self.iterations, largest(solution.iterations, jnp.int32)
        )
        self.off_diagonal = jnp.maximum(
            self.off_diagonal, largest(solution.off_diagonal, jnp.float32)
        )


def _count_failures(
    layout: Layout, health: Health, succeeded: dict[str, jax.Array], worst: _Worst
) -> Health:
    """A block fails when any of its factors does; success of all resets its count."""
    failures, total = dict(health.failures), health.total_failures
    for key, success in succeeded.items():
        old = failures[key]
        empty = old.shape[0] - success.shape[0]
        success = jnp.concatenate([success, jnp.ones(empty, bool)])
        total = total + jnp.sum(~success, dtype=jnp.int32)
        counts = jnp.where(success[:, None], 0, jnp.max(old, axis=1)[:, None] + 1)
        counts = jnp.broadcast_to(counts, old.shape)
        failures[key] = place_blocks(counts, layout.options)
    return health._replace(
        refreshes=health.refreshes + 1,
        total_failures=total,
        failures=failures,
        max_residual=worst.residual,
        iterations=worst.iterations,
        off_diagonal=worst.off_diagonal,
    )
