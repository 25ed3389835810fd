"""Refreshing factors in stacks of equal size, shared out between devices.

Shape legend: S local slots of a bucket, L local slots of a refresh stack, q matrices of
it that a device solves, d size of a factor, D size that its stack pads it to.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.preconditioning.block_method import BlockMethod
from optim_jax.preconditioning.factor_solver import (
    Problem,
    Solution,
    choose,
    needs_bases,
    permute_slots,
    permutes,
    solve,
)
from optim_jax.preconditioning.factors import (
    RefreshInputs,
    pad_bases,
    pad_factors,
    prepare,
)
from optim_jax.preconditioning.layout import Layout, RefreshStack
from optim_jax.preconditioning.options import Options
from optim_jax.preconditioning.outcome import (
    Facts,
    count_failures,
    no_facts,
    observe,
)
from optim_jax.preconditioning.routing import Route
from optim_jax.preconditioning.state import Buckets, BucketState


def refresh_stacks(
    layout: Layout,
    method: BlockMethod,
    buckets: Buckets,
    failures: dict[str, jax.Array],
    routes: list[Route],
    tables: list[dict[str, jax.Array]],
    inputs: RefreshInputs,
) -> tuple[Buckets, dict[str, jax.Array], Facts]:
    """Refreshes what one device solves; `tables` are its rows of the routes."""
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
    return after, *count_failures(failures, failed, facts)


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

    for field in method.results:
        arrays = list(getattr(state, field))
        arrays[position] = choose(
            chosen, unpadded(solution, field, dim), arrays[position]
        )
        state = state._replace(**{field: tuple(arrays)})
    if permutes(layout.options):
        order = solution.permutation[:, :dim]
        moment = permute_slots(state.second_moment, order, bucket.modes[position])
        state = state._replace(
            second_moment=choose(chosen, moment, state.second_moment)
        )
    return state


def common_exponent(layout: Layout, stack: RefreshStack) -> Any:
    """The exponent of all factors of a stack, None where they differ."""
    values = {layout.bucket[key].exponents[position] for key, position in stack.members}
    return values.pop() if len(values) == 1 else None


def unpadded(solution: Solution, field: str, dim: int) -> jax.Array:
    """One field of a solution without the padding of its stack."""
    array = getattr(solution, field)
    return array[..., :dim] if field == "eigenvalues" else array[..., :dim, :dim]
