"""Refreshing all roots and eigenbases at once."""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.preconditioning.block_method import BlockMethod
from optim_jax.preconditioning.factor_solver import (
    Problem,
    choose,
    needs_bases,
    permute_slots,
    permutes,
    solve,
)
from optim_jax.preconditioning.factors import RefreshInputs, prepare
from optim_jax.preconditioning.layout import Layout
from optim_jax.preconditioning.mesh import on_each_device, place_blocks
from optim_jax.preconditioning.outcome import (
    Facts,
    count_failures,
    no_facts,
    no_outcome,
    observe,
    outcome_of,
    record,
)
from optim_jax.preconditioning.refresh_stacks import refresh_stacks
from optim_jax.preconditioning.routing import make_route
from optim_jax.preconditioning.slots import over_slots
from optim_jax.preconditioning.state import Buckets, Health


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
        return refresh_stacks(layout, method, buckets, failures, routes, rows, inputs)

    def in_stacks(buckets: Any, failures: Any) -> Any:
        tables = [
            {
                name: place_blocks(jnp.asarray(getattr(route, name)), options)
                for name in ("outgoing", "solved", "returned", "home", "real")
            }
            for route in routes
        ]
        return on_each_device(local, options)(buckets, failures, tables)

    def in_place(buckets: Any, failures: Any) -> Any:
        return _refresh_in_place(layout, method, buckets, failures, inputs)

    if options.num_devices == 1:
        # One CPU gains nothing from stacks, and they need memory for all matrices.
        after = jax.lax.platform_dependent(
            buckets, health.failures, cpu=in_place, default=in_stacks
        )
    else:
        after = in_stacks(buckets, health.failures)
    buckets, failures, facts = after
    return buckets, record(health, 1, failures, facts)


def _refresh_in_place(
    layout: Layout,
    method: BlockMethod,
    buckets: Buckets,
    failures: dict[str, jax.Array],
    inputs: RefreshInputs,
) -> tuple[Buckets, dict[str, jax.Array], Facts]:
    """Refreshes every mode of every bucket where it lies."""
    options = layout.options
    after, facts = dict(buckets), no_facts()
    failed: dict[str, jax.Array] = {}
    for bucket in layout.buckets:
        for position, mode in enumerate(bucket.modes):

            def refresh(
                written: Any, factors: jax.Array, at: Any = (bucket, position, mode)
            ) -> Any:
                bucket, position, mode = at
                old, moment, _ = written
                exponent = bucket.exponents[position]
                prepared, eps = prepare(options, factors, inputs)
                bases = ()
                if needs_bases(options):
                    bases = old["eigenvectors"].astype(prepared.dtype)
                exponents = jnp.full_like(eps, float(exponent))
                solution = solve(
                    options, Problem(prepared, eps, exponents, bases), exponent
                )
                new = {name: getattr(solution, name) for name in old}
                if permutes(options):
                    new_moment = permute_slots(moment, solution.permutation, mode)
                    moment = choose(solution.success, new_moment, moment)
                chosen = jax.tree.map(
                    lambda x, y: choose(solution.success, x, y), new, old
                )
                return chosen, moment, outcome_of(solution)

            state = after[bucket.key]
            results = {name: getattr(state, name)[position] for name in method.results}
            moment = state.second_moment if permutes(options) else ()
            factors = state.factors[position]
            results, moment, outcome = over_slots(
                refresh,
                (results, moment, no_outcome(factors)),
                factors,
                bucket,
                options,
            )
            fields = {}
            for name, array in results.items():
                arrays = list(getattr(state, name))
                arrays[position] = array
                fields[name] = tuple(arrays)
            if permutes(options):
                fields["second_moment"] = moment
            after[bucket.key] = state._replace(**fields)
            facts = observe(facts, outcome, jnp.ones_like(outcome.success))
            flags = failed.get(bucket.key, jnp.zeros_like(outcome.success))
            failed[bucket.key] = flags | ~outcome.success
    return after, *count_failures(failures, failed, facts)
