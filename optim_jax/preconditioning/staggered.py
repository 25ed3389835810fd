"""Refreshing a share of the roots and eigenbases at every step, without a branch.

Shape legend: S local slots of a bucket, K its preconditioned modes, N local matrices of
a refresh stack, n matrices of it that one step solves, d size of a factor, D size that
the stack pads it to.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.preconditioning.block_method import BlockMethod
from optim_jax.preconditioning.factor_solver import (
    Problem,
    Solution,
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
from optim_jax.preconditioning.mesh import on_each_device, place_blocks
from optim_jax.preconditioning.outcome import (
    Facts,
    no_facts,
    observe,
    record,
    saturating_add,
)
from optim_jax.preconditioning.refresh_stacks import common_exponent, unpadded
from optim_jax.preconditioning.state import Buckets, Health

_NOWHERE = 2**30  # out of the range of every slot: a write there is dropped


def turn_tables(layout: Layout) -> list[np.ndarray]:
    """Which local matrices of each refresh stack have their turn in which step.

    Matrices take turns in an order that no mesh changes. Neighbours in a stack are
    neighbours in this order, so the steps of a period have nearly equal work.

    Returns:
      Per stack an int32 array (devices, F, n): positions in the concatenation of the
      members' local slots, filled up with a position past the end.
    """
    options = layout.options
    period, devices = options.staggered_period, options.num_devices
    assert period is not None
    tables, running = [], 0
    for stack in layout.stacks:
        turns: list[list[list[int]]] = [
            [[] for _ in range(period)] for _ in range(devices)
        ]
        first = 0
        for key, _ in stack.members:
            bucket = layout.bucket[key]
            local_slots = bucket.padded_slots // devices
            for slot in range(bucket.slots):
                device, local = divmod(slot, local_slots)
                turns[device][running % period].append(first + local)
                running += 1
            first += local_slots
        width = max(len(turn) for of_device in turns for turn in of_device)
        table = np.full((devices, period, width), first, np.int32)
        for device, of_device in enumerate(turns):
            for phase, turn in enumerate(of_device):
                table[device, phase, : len(turn)] = turn
        tables.append(table)
    return tables


def refresh_share(
    layout: Layout,
    method: BlockMethod,
    buckets: Buckets,
    health: Health,
    inputs: RefreshInputs,
    phase: jax.Array,
    write: jax.Array,
) -> tuple[Buckets, Health]:
    """Refreshes one share of the matrices of every device.

    A period has F steps; in each, every device solves about N / F of its N matrices of
    every refresh stack, and sends nothing. Every matrix has its turn once in a period,
    and when does not depend on the mesh. Where a factor or a result is not finite, or a
    solver failed, the previous result stays.

    Args:
      layout: made for `refresh="staggered"`.
      method: what is done with a bucket.
      buckets: state by bucket.
      health: counters.
      inputs: scalars of a refresh.
      phase: int32, step modulo the period.
      write: scalar bool; false leaves results and counters as they are.
    """
    options = layout.options

    def local(buckets: Any, failures: Any, tables: Any) -> Any:
        turns = [table[0, phase] for table in tables]
        return _refresh_local(layout, method, buckets, failures, turns, inputs, write)

    tables = [
        place_blocks(jnp.asarray(table), options) for table in turn_tables(layout)
    ]
    buckets, failures, facts = on_each_device(local, options)(
        buckets, health.failures, tables
    )
    return buckets, record(health, write.astype(jnp.int32), failures, facts)


def _refresh_local(
    layout: Layout,
    method: BlockMethod,
    buckets: Buckets,
    failures: dict[str, jax.Array],
    turns: list[jax.Array],
    inputs: RefreshInputs,
    write: jax.Array,
) -> tuple[Buckets, dict[str, jax.Array], Facts]:
    options = layout.options
    buckets, failures = dict(buckets), dict(failures)
    facts = no_facts()
    for stack, turn in zip(layout.stacks, turns, strict=True):
        sizes = [buckets[key].factors[0].shape[0] for key, _ in stack.members]
        # Slot of each of these matrices in each member; out of range where it is not.
        slots, first = [], 0
        for size in sizes:
            local = turn - first
            slots.append(jnp.where((local >= 0) & (local < size), local, size))
            first += size
        problem = _collect(layout, stack, buckets, inputs, slots)
        solution = solve(options, problem, common_exponent(layout, stack))
        live = write & (turn < sum(sizes))
        for (key, position), slot in zip(stack.members, slots, strict=True):
            written = jnp.where(live & solution.success, slot, _NOWHERE)
            buckets[key] = _store(
                layout, method, buckets[key], key, position, solution, written
            )
            counts = failures[key][:, position].at[slot].get(mode="clip")
            after = jnp.where(solution.success, 0, saturating_add(counts, 1))
            seen = jnp.where(live, slot, _NOWHERE)
            failures[key] = failures[key].at[seen, position].set(after, mode="drop")
        facts = observe(facts, solution, live)
        failed = jnp.sum(live & ~solution.success, dtype=jnp.int32)
        facts = facts._replace(failures=facts.failures + failed)
    return buckets, failures, facts


def _collect(
    layout: Layout,
    stack: RefreshStack,
    buckets: Buckets,
    inputs: RefreshInputs,
    slots: list[jax.Array],
) -> Problem:
    """Picks the matrices whose turn it is from the members of a stack."""
    options = layout.options
    with_bases = needs_bases(options)
    problem = None
    for (key, position), slot in zip(stack.members, slots, strict=True):
        bucket, state = layout.bucket[key], buckets[key]
        factors = state.factors[position].at[slot].get(mode="clip")
        prepared, eps = prepare(options, factors, inputs)
        exponent = jnp.full(eps.shape, float(bucket.exponents[position]), eps.dtype)
        bases = ()
        if with_bases:
            old = state.eigenvectors[position].at[slot].get(mode="clip")
            bases = pad_bases(old.astype(prepared.dtype), stack.dim)
        candidate = Problem(pad_factors(prepared, stack.dim), eps, exponent, bases)
        if problem is None:
            problem = candidate
            continue
        here = slot < state.factors[position].shape[0]
        problem = jax.tree.map(
            lambda new, old, here=here: jnp.where(
                here.reshape(-1, *[1] * (new.ndim - 1)), new, old
            ),
            candidate,
            problem,
        )
    assert problem is not None
    return problem


def _store(
    layout: Layout,
    method: BlockMethod,
    state: Any,
    key: str,
    position: int,
    solution: Solution,
    slot: jax.Array,
) -> Any:
    """Writes the results of one member; slots out of range are dropped."""
    bucket = layout.bucket[key]
    dim = bucket.factor_dims[position]
    for field in method.results:
        arrays = list(getattr(state, field))
        new = unpadded(solution, field, dim)
        arrays[position] = arrays[position].at[slot].set(new, mode="drop")
        state = state._replace(**{field: tuple(arrays)})
    if permutes(layout.options):
        order = solution.permutation[:, :dim]
        moment = permute_slots(
            state.second_moment.at[slot].get(mode="clip"), order, bucket.modes[position]
        )
        moment = state.second_moment.at[slot].set(moment, mode="drop")
        state = state._replace(second_moment=moment)
    return state
