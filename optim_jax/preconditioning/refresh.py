"""Refreshing all roots and eigenbases at once.

Shape legend: S local slots of a bucket, K its preconditioned modes, L local slots of a
refresh stack, q matrices of it that a device solves, d size of a factor, D size that
its stack pads it to.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optim_jax.linalg import frobenius_norm
from optim_jax.preconditioning.block_method import BlockMethod
from optim_jax.preconditioning.factor_solver import (
    Problem,
    Solution,
    needs_bases,
    solve,
)
from optim_jax.preconditioning.factors import (
    corrected_factors,
    pad_bases,
    pad_factors,
    perturbations,
)
from optim_jax.preconditioning.layout import Layout, RefreshStack
from optim_jax.preconditioning.mesh import on_each_device, place_blocks
from optim_jax.preconditioning.options import Options
from optim_jax.preconditioning.preconditioners import EigenvalueCorrected
from optim_jax.preconditioning.routing import Route, make_route
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


class Facts(NamedTuple):
    """What one device saw in a refresh, each of shape (1,).

    Attributes:
      failures: int32, failed blocks.
      residual: float32, largest residual of a solver.
      iterations: int32, most iterations.
      off_diagonal: float32, largest relative off-diagonal norm left.
    """

    failures: jax.Array
    residual: jax.Array
    iterations: jax.Array
    off_diagonal: jax.Array


def no_facts() -> Facts:
    """Facts before anything was solved."""
    zero, none = jnp.zeros(1, jnp.float32), jnp.zeros(1, jnp.int32)
    return Facts(none, zero, none, zero)


def observe(facts: Facts, solution: Solution, seen: jax.Array) -> Facts:
    """Looks at the solved matrices for which `seen` is true and that did not fail."""
    succeeded = seen & solution.success

    def largest(old: jax.Array, values: jax.Array) -> jax.Array:
        values = jnp.where(succeeded, values, 0).astype(old.dtype)
        return jnp.maximum(old, jnp.max(values, initial=0))

    return Facts(
        facts.failures,
        largest(facts.residual, solution.residual),
        largest(facts.iterations, solution.iterations),
        largest(facts.off_diagonal, solution.off_diagonal),
    )


def saturating_add(count: jax.Array, more: Any) -> jax.Array:
    """Adds to an int32 counter that stays at its largest value."""
    return count + jnp.minimum(more, jnp.iinfo(jnp.int32).max - count)


def record(
    health: Health, refreshes: Any, failures: dict[str, jax.Array], facts: Facts
) -> Health:
    """Health after a refresh, from the facts of all devices (devices,)."""
    return health._replace(
        refreshes=saturating_add(health.refreshes, refreshes),
        total_failures=saturating_add(
            health.total_failures, jnp.sum(facts.failures, dtype=jnp.int32)
        ),
        failures=failures,
        max_residual=jnp.max(facts.residual),
        iterations=jnp.max(facts.iterations),
        off_diagonal=jnp.max(facts.off_diagonal),
    )


def prepare(
    options: Options, factors: jax.Array, inputs: RefreshInputs
) -> tuple[jax.Array, jax.Array]:
    """Factors (N, d, d) as the solver wants them, and the perturbation of each."""
    factors = factors.astype(jnp.promote_types(factors.dtype, jnp.float32))
    exponent = getattr(options.preconditioner, "trace_scaling_exponent", None)
    factors = corrected_factors(factors, inputs.correction, exponent, inputs.eps)
    eps = perturbations(frobenius_norm(factors), inputs.eps, options.relative_epsilon)
    return factors, eps


def common_exponent(layout: Layout, stack: RefreshStack) -> Any:
    """The exponent of all factors of a stack, None where they differ."""
    values = {layout.bucket[key].exponents[position] for key, position in stack.members}
    return values.pop() if len(values) == 1 else None


def unpadded(solution: Solution, field: str, dim: int) -> jax.Array:
    """One field of a solution without the padding of its stack."""
    array = getattr(solution, field)
    return array[..., :dim] if field == "eigenvalues" else array[..., :dim, :dim]


def permutes(options: Options) -> bool:
    """Whether the second moment is sorted along with its basis."""
    kind = options.preconditioner
    return isinstance(kind, EigenvalueCorrected) and kind.permute_second_moment


def permute_slots(moments: jax.Array, order: jax.Array, mode: int) -> jax.Array:
    """Sorts one mode of second moments (N, *block) by an order (N, d)."""
    shape = [1] * moments.ndim
    shape[0], shape[1 + mode] = order.shape
    return jnp.take_along_axis(moments, order.reshape(shape), axis=1 + mode)


def refresh_all(
    layout: Layout,
    method: BlockMethod,
    buckets: Buckets,
    health: Health,
    inputs: RefreshInputs,
) -> tuple[Buckets, Health]:
    """Refreshes every root or basis.

    Each device solves an equal share of every stack. Where a factor or a result is not
    finite, or a solver failed, the previous result stays.
    """
    options = layout.options
    routes = [make_route(layout, stack) for stack in layout.stacks]

    def local(buckets: Any, failures: Any, tables: Any) -> Any:
        rows = [jax.tree.map(lambda table: table[0], table) for table in tables]
        return _refresh_local(layout, method, buckets, failures, routes, rows, inputs)

    tables = [
        {
            name: place_blocks(jnp.asarray(getattr(route, name)), options)
            for name in ("outgoing", "solved", "returned", "home", "real")
        }
        for route in routes
    ]
    buckets, failures, facts = on_each_device(local, options)(
        buckets, health.failures, tables
    )
    return buckets, record(health, 1, failures, facts)


def _refresh_local(
    layout: Layout,
    method: BlockMethod,
    buckets: Buckets,
    failures: dict[str, jax.Array],
    routes: list[Route],
    tables: list[dict[str, jax.Array]],
    inputs: RefreshInputs,
) -> tuple[Buckets, dict[str, jax.Array], Facts]:
    options = layout.options
    after, facts = dict(buckets), no_facts()
    failed: dict[str, jax.Array] = {}
    for stack, route, table in zip(layout.stacks, routes, tables, strict=True):
        problem = _collect(layout, stack, buckets, inputs)
        problem = _send(problem, route, table, options)
        solution = solve(options, problem, common_exponent(layout, stack))
        solution = _send_back(solution, route, table, options)
        facts = observe(facts, solution, table["real"])
        first = 0
        for key, position in stack.members:
            rows = slice(first, first + buckets[key].factors[position].shape[0])
            first = rows.stop
            mine = jax.tree.map(lambda x, rows=rows: x[rows], solution)
            real = table["real"][rows]
            after[key] = _store(layout, method, after[key], key, position, mine, real)
            failed[key] = failed.get(key, False) | (real & ~mine.success)
    counts = dict(failures)
    for key, flags in failed.items():
        # A block fails when any of its factors does; success of all resets its count.
        consecutive = saturating_add(jnp.max(counts[key], axis=1, keepdims=True), 1)
        consecutive = jnp.where(flags[:, None], consecutive, 0)
        counts[key] = jnp.broadcast_to(consecutive, counts[key].shape)
        total = facts.failures + jnp.sum(flags, dtype=jnp.int32)
        facts = facts._replace(failures=total)
    return after, counts, facts


def _collect(
    layout: Layout, stack: RefreshStack, buckets: Buckets, inputs: RefreshInputs
) -> Problem:
    """All local slots of a stack, empty ones included."""
    options, parts = layout.options, []
    for key, position in stack.members:
        bucket, state = layout.bucket[key], buckets[key]
        prepared, eps = prepare(options, state.factors[position], inputs)
        bases = ()
        if needs_bases(options):
            old = state.eigenvectors[position].astype(prepared.dtype)
            bases = pad_bases(old, stack.dim)
        exponents = jnp.full_like(eps, float(bucket.exponents[position]))
        parts.append(Problem(pad_factors(prepared, stack.dim), eps, exponents, bases))
    return jax.tree.map(lambda *leaves: _join(leaves), *parts)


def _join(leaves: Any) -> jax.Array:
    return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves)


def _send(
    problem: Problem, route: Route, table: dict[str, jax.Array], options: Options
) -> Problem:
    """From the local slots (L, ...) to what this device solves (q, ...)."""
    if route.is_identity:
        return problem

    def move(stack: jax.Array) -> jax.Array:
        filler = jnp.ones_like(stack[:1])
        if stack.ndim == 3:
            filler = jnp.eye(stack.shape[-1], dtype=stack.dtype)[None]
        parts = [stack, filler]
        if route.lanes:
            sent = _join([stack, filler])[table["outgoing"]]
            parts = [stack, _exchange(sent, options), filler]
        return _join(parts)[table["solved"]]

    return jax.tree.map(move, problem)


def _send_back(
    solution: Solution, route: Route, table: dict[str, jax.Array], options: Options
) -> Solution:
    """From what this device solved (q, ...) to its local slots (L, ...)."""
    if route.is_identity:
        return solution

    def move(stack: jax.Array) -> jax.Array:
        parts = [stack]
        if route.lanes:
            parts.append(_exchange(stack[table["returned"]], options))
        return _join(parts)[table["home"]]

    return jax.tree.map(move, solution)


def _exchange(lanes: jax.Array, options: Options) -> jax.Array:
    """Swaps lanes (devices * m, ...) between all devices."""
    return jax.lax.all_to_all(lanes, options.axis, 0, 0, tiled=True)


def _store(
    layout: Layout,
    method: BlockMethod,
    state: BucketState,
    key: str,
    position: int,
    solution: Solution,
    real: jax.Array,
) -> BucketState:
    """Takes over what was solved for the real slots of one member."""
    bucket = layout.bucket[key]
    dim, chosen = bucket.factor_dims[position], real & solution.success

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    for field in method.results:
        arrays = list(getattr(state, field))
        arrays[position] = choose(unpadded(solution, field, dim), arrays[position])
        state = state._replace(**{field: tuple(arrays)})
    if permutes(layout.options):
        order = solution.permutation[:, :dim]
        moment = permute_slots(state.second_moment, order, bucket.modes[position])
        state = state._replace(second_moment=choose(moment, state.second_moment))
    return state
