"""The method as an Optax transformation, for batches that a data loader supplies."""

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optim_jax.quasi_newton.directional_derivatives import check_per_sample
from optim_jax.quasi_newton.memory import (
    LBFGSMemory,
    accumulation_dtype,
    init_memory,
)
from optim_jax.quasi_newton.progressive_batching import sources
from optim_jax.quasi_newton.progressive_batching.accounting import count_work, record
from optim_jax.quasi_newton.progressive_batching.descent import descend, move
from optim_jax.quasi_newton.progressive_batching.evaluation import (
    Evaluation,
    empty_prefix,
    evaluate_rest,
)
from optim_jax.quasi_newton.progressive_batching.growth import (
    examine_sample,
    no_recent,
    push_recent,
    ungrown,
)
from optim_jax.quasi_newton.progressive_batching.options import Options
from optim_jax.quasi_newton.progressive_batching.problem import Problem
from optim_jax.quasi_newton.progressive_batching.sample_sums import (
    Losses,
    SampleSums,
)
from optim_jax.quasi_newton.progressive_batching.sampling import Window
from optim_jax.quasi_newton.progressive_batching.solver_state import (
    Counters,
    PBLBFGSState,
    StepInfo,
)
from optim_jax.quasi_newton.progressive_batching.stored_step import store_step
from optim_jax.validation import require_params

NAME = "pb_lbfgs(...).as_optax()"


class SuppliedBatchState(NamedTuple):
    """State of `as_optax`.

    Attributes:
      memory: the pairs.
      step: last accepted step.
      counters: counts, in samples.
      recent: last gradients for the window test, else `()`.
      info: record of the last update; its `b` is the batch size the test asks for,
        `b_tested` the one it was given.
    """

    memory: LBFGSMemory
    step: jax.Array
    counters: Counters
    recent: Any
    info: StepInfo


def as_optax(losses: Losses, options: Options) -> optax.GradientTransformationExtraArgs:
    """Line search and quasi-Newton step on each batch, the overlap being all of it.

    An update costs, besides the gradient it is given: one more over the groups of the
    batch if the test or the first step needs them, the losses of the line search, a
    directional derivative for the test, and the gradient at the new point that closes
    the pair. The batch never grows by itself: `state.info.b` says what size the test
    asks for.

    Args:
      losses: (params, batch) -> (per-sample losses, auxiliary outputs).
      options: of the solver.

    Returns:
      Transformation whose `update(updates, state, params, *, batch, value=None)` takes
      the gradient of the mean loss over `batch` and returns the step of the line
      search, which needs no learning rate. `value` is that mean loss where it is known.
    """

    def init(params: Any) -> SuppliedBatchState:
        memory = init_memory(
            params, options.memory_size, memory_dtype=options.memory_dtype
        )
        dtype = accumulation_dtype(params)
        counters = Counters.zeros()
        return SuppliedBatchState(
            memory=memory,
            step=jnp.ones((), dtype),
            counters=counters,
            recent=no_recent(options, params, dtype),
            info=_empty_info(dtype, counters),
        )

    def update(
        updates: Any,
        state: SuppliedBatchState,
        params: Any = None,
        *,
        batch: Any = None,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, SuppliedBatchState]:
        del extra_args
        require_params(NAME, params)
        if batch is None:
            raise ValueError(f"{NAME} needs the batch: update(..., batch=batch)")
        size = sources.rows_of(batch)
        if size < 2:
            raise ValueError(
                f"{NAME} needs at least 2 samples in a batch, got {size}: the variance "
                "of one sample is undefined"
            )
        batch = jax.tree.map(jnp.asarray, batch)
        check_per_sample(jax.eval_shape(losses, params, batch)[0].shape, size)
        problem = _problem(losses, options, params, size)
        grad = jax.tree.map(lambda leaf: leaf.astype(problem.dtype), updates)
        inner = _as_solver_state(problem, state, params, batch, grad, value, size)
        test = examine_sample(problem, batch, inner)
        sample = ungrown(problem, inner)
        descent = descend(problem, batch, inner, sample, test)
        accepted = descent.result.accepted
        step = jnp.where(accepted, descent.result.step, 0.0)
        moved = move(params, descent.direction, step)
        # What the caller's addition will really do to the parameters.
        change = jax.tree.map(jnp.subtract, moved, params)
        change = jax.tree.map(
            lambda leaf: jnp.where(accepted, leaf, jnp.zeros_like(leaf)), change
        )
        point = jax.tree.map(jnp.add, params, change)
        window = inner.window
        if problem.needs_slope:
            new_grad = descent.result.trial.aux.grad
        else:
            total = problem.sums.gradient(point, batch, window.order, 0, size).grad
            new_grad = jax.tree.map(lambda leaf: leaf / size, total)
        s = jax.tree.map(lambda leaf: leaf.astype(problem.dtype), change)
        y = jax.tree.map(jnp.subtract, new_grad, grad)
        stored = store_step(problem, descent, s, y, grad, state.counters)
        # Passes over the batch besides the gradient that was given.
        passes = (problem.groups > 1) + (not problem.needs_slope)
        counters = count_work(
            problem, inner, test, sample, descent, jnp.int32(passes * size)
        )._replace(skipped=stored.skipped)
        recent = state.recent
        if options.test == "ipqn_window":
            recent = push_recent(recent, grad, state.counters.k)
        info = record(problem, inner, test, sample, descent, stored, counters)
        new_state = SuppliedBatchState(
            memory=stored.memory,
            step=jnp.where(accepted, step, state.step),
            counters=counters,
            recent=recent,
            info=info._replace(b=test.wanted),
        )
        return change, new_state

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))


def _problem(losses: Losses, options: Options, params: Any, size: int) -> Problem:
    fitting = dataclasses.replace(
        options,
        overlap="full",
        batch_size=size,
        max_batch=np.iinfo(np.int32).max,
        groups=min(options.groups, size),
    )
    sums = SampleSums(
        losses=losses,
        dtype=accumulation_dtype(params),
        chunk=min(options.chunk_size, size),
    )
    return Problem(sums, fitting)


def _as_solver_state(
    problem: Problem,
    state: SuppliedBatchState,
    params: Any,
    batch: Any,
    grad: Any,
    value: Any,
    size: int,
) -> PBLBFGSState:
    """The batch as a window of its own, evaluated."""
    order = jnp.arange(size, dtype=jnp.int32)
    window = Window.of_batch(order)
    none = jnp.int32(0)
    sums = problem.sums
    if problem.groups > 1:
        evaluation = evaluate_rest(
            sums,
            params,
            batch,
            order,
            none,
            window.size,
            none,
            empty_prefix(sums, params, 1),
            state.memory,
            None,
            groups=problem.groups,
        )._replace(grad=grad)
    else:
        if value is None:
            value = sums.loss(params, batch, order, 0, size).loss / size
        evaluation = Evaluation(jnp.asarray(value, problem.dtype), grad, (), ())
    return PBLBFGSState(
        params=params,
        memory=state.memory,
        window=window,
        overlap_start=none,
        overlap_size=window.size,
        evaluation=evaluation,
        recent=state.recent,
        aux=sums.no_aux(params, batch, order),
        step=state.step,
        counters=state.counters,
        reason=none,
    )


def _empty_info(dtype: Any, counters: Counters) -> StepInfo:
    """A record of nothing, with the types of a record."""
    nan, few = jnp.full((), jnp.nan, dtype), jnp.int32(0)
    flag, zero = jnp.zeros((), bool), counters.grad_evals
    return StepInfo(
        k=few,
        b_tested=few,
        b=few,
        ratio=nan,
        r=nan,
        r_U=nan,
        alpha0=nan,
        alpha=nan,
        backtracks=few,
        value=nan,
        grad_norm=nan,
        pair=few,
        memory_count=few,
        grad_evals=zero,
        fn_evals=zero,
        jvp_evals=zero,
        epochs=nan,
        work=nan,
        reset=flag,
        ls_failed=flag,
        compilations=few,
        capped=flag,
    )
