"""Is the sample large enough? The test of an iteration, and the growth it asks for."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optim_jax.quasi_newton.compact_form import (
    Combination,
    combine,
    compose,
    image_products,
    inverse_hessian_combination,
)
from optim_jax.quasi_newton.group_estimates import group_bounds, group_variance
from optim_jax.quasi_newton.memory import (
    LBFGSMemory,
    Products,
    inner_products,
    tree_dot,
)
from optim_jax.quasi_newton.progressive_batching.evaluation import (
    Evaluation,
    evaluate_growth,
)
from optim_jax.quasi_newton.progressive_batching.options import Options
from optim_jax.quasi_newton.progressive_batching.problem import Problem
from optim_jax.quasi_newton.progressive_batching.sampling import Window, grow
from optim_jax.quasi_newton.progressive_batching.solver_state import PBLBFGSState
from optim_jax.quasi_newton.sample_tests import (
    TestMoments,
    judge_sample,
    unbiased_square,
)

RECENT_GRADIENTS = 10
RECENT_FRACTION = 0.38


class Examination(NamedTuple):
    """Outcome of a sample test.

    Attributes:
      ratio: <= 1 passes; NaN if untested.
      r: ‖H g‖² of the tested gradient.
      r_unbiased: the same without the gradient's noise; NaN without groups.
      variance: of g_i'u about its mean; NaN if not computed.
      wanted: int32, the batch size asked for, at least the present one.
      jvp_evals: directional derivatives computed.
    """

    ratio: jax.Array
    r: jax.Array
    r_unbiased: jax.Array
    variance: jax.Array
    wanted: jax.Array
    jvp_evals: jax.Array


class Sample(NamedTuple):
    """The sample of the step, grown or not.

    Attributes:
      window: which samples.
      evaluation: at the current point.
      overlap_size: samples shared with the next one.
      group_squares: (2 M,) squared norms of the group means; the second half belongs
        to the samples that growth has added.
      group_sizes: (2 M,) their sizes, 0 where there is none.
    """

    window: Window
    evaluation: Evaluation
    overlap_size: jax.Array
    group_squares: jax.Array
    group_sizes: jax.Array


def examine_sample(problem: Problem, source: Any, state: PBLBFGSState) -> Examination:
    """Tests the sample of a state.

    Args:
      problem: sums and options.
      source: data.
      state: before the iteration.

    Returns:
      `Examination`; at b = N, and in iterations that `test_every` leaves out, untested.
    """
    options, dtype = problem.options, problem.dtype
    memory, evaluation = state.memory, state.evaluation
    size = state.window.size
    is_full = problem.is_full(size)
    due = ~is_full & (state.counters.k % options.test_every == 0)
    direction, products, first = _tested_direction(problem, state)
    image = image_products(memory, first, products)
    r = image.square
    r_unbiased = jnp.where(is_full, jnp.nan, _unbiased(problem, memory, evaluation))
    along = options.test not in ("norm", "none") or options.init_step == "projected"

    nan = jnp.full((), jnp.nan, dtype)
    start = problem.variance_start(size)
    count = size - start
    variance, jvp_evals = nan, jnp.zeros_like(count)
    if along:

        def measured() -> jax.Array:
            if options.test == "inner_product":
                u, center = direction, products.square
            else:
                second = inverse_hessian_combination(memory, image)
                u, center = combine(memory, compose(second, first), direction), r
            total = problem.sums.squared_deviations(
                state.params,
                source,
                state.window.order,
                state.window.start + start,
                state.window.start + size,
                u,
                center,
            )
            return total / (count - 1).astype(dtype)

        wanted = due
        if options.init_step == "projected":
            wanted = ~is_full
        variance = lax.cond(wanted, measured, lambda: nan)
        jvp_evals = jnp.where(wanted, count, 0)
    gradient_variance, jvps = nan, jnp.zeros_like(count)
    if options.test == "norm":
        sample = ungrown(problem, state)
        gradient_variance, jvps = gradient_noise(
            problem, source, state.params, sample, due, probe_key(state)
        )
    moments = TestMoments(r, r_unbiased, variance, gradient_variance, products.square)
    verdict = judge_sample(
        options.test,
        moments,
        size,
        theta=options.theta,
        population=float("inf") if problem.population is None else problem.population,
        finite_population=options.finite_population,
        growth_cap=options.growth_cap,
    )
    ratio = jnp.where(due, verdict.ratio, jnp.nan)
    return Examination(
        ratio=ratio,
        r=r,
        r_unbiased=r_unbiased,
        variance=variance,
        wanted=jnp.where(ratio > 1, jnp.maximum(verdict.batch_size, size), size),
        jvp_evals=jvp_evals + jvps,
    )


def untested(problem: Problem, state: PBLBFGSState) -> Examination:
    """The record of a sample that needs no test, being all data."""
    grad = state.evaluation.grad
    products = inner_products(state.memory, grad)
    first = inverse_hessian_combination(state.memory, products)
    nan = jnp.full((), jnp.nan, problem.dtype)
    size = state.window.size
    return Examination(
        ratio=nan,
        r=image_products(state.memory, first, products).square,
        r_unbiased=nan,
        variance=nan,
        wanted=size,
        jvp_evals=jnp.zeros_like(size),
    )


def grow_sample(
    problem: Problem,
    source: Any,
    state: PBLBFGSState,
    size: jax.Array,
    *,
    overlap_in_front: bool,
) -> Sample:
    """Draws and evaluates what is missing to a larger sample.

    Args:
      problem: sums and options.
      source: data.
      state: before the iteration.
      size: int32, the new size; the present one leaves everything as it is.
      overlap_in_front: the samples shared with the next one are the first ones, as
        under a given permutation; otherwise they follow on each other around the
        border between old and new samples, where no gradient is computed twice.

    Returns:
      The `Sample`.
    """
    same = ungrown(problem, state)

    def grown() -> Sample:
        old = state.window.size
        window = grow(state.window, size)
        overlap_size = problem.overlap_size(size)
        overlap_stop = state.overlap_start + overlap_size
        own_overlap = problem.shares_samples and not overlap_in_front
        added, overlap, squares = evaluate_growth(
            problem.sums,
            state.params,
            source,
            window.order,
            window.start,
            old,
            size,
            overlap_stop if own_overlap else None,
            groups=problem.groups,
        )
        if problem.shares_samples and overlap_in_front:
            overlap = problem.sums.gradient(
                state.params,
                source,
                window.order,
                window.start + state.overlap_size,
                window.start + overlap_size,
            ).grad
        weight = old.astype(problem.dtype) / size.astype(problem.dtype)

        def merge(mean: jax.Array, total: jax.Array) -> jax.Array:
            return weight * mean + total / size.astype(problem.dtype)

        evaluation = state.evaluation
        evaluation = evaluation._replace(
            value=merge(evaluation.value, added.loss),
            grad=jax.tree.map(merge, evaluation.grad, added.grad),
        )
        if problem.shares_samples:
            total = jax.tree.map(jnp.add, evaluation.overlap, overlap)
            evaluation = evaluation._replace(overlap=total)
        starts, stops = group_bounds(size - old, problem.groups)
        half = problem.groups
        return Sample(
            window=window,
            evaluation=evaluation,
            overlap_size=overlap_size,
            group_squares=same.group_squares.at[half:].set(squares),
            group_sizes=same.group_sizes.at[half:].set(stops - starts),
        )

    return lax.cond(size > state.window.size, grown, lambda: same)


def ungrown(problem: Problem, state: PBLBFGSState) -> Sample:
    """The sample of a state as it is."""
    groups = problem.groups
    squares = jnp.zeros(2 * groups, problem.dtype)
    starts, stops = group_bounds(state.window.size, groups)
    if groups > 1:
        squares = squares.at[:groups].set(state.evaluation.groups.means.square)
    sizes = jnp.zeros(2 * groups, jnp.int32).at[:groups].set(stops - starts)
    return Sample(
        window=state.window,
        evaluation=state.evaluation,
        overlap_size=state.overlap_size,
        group_squares=squares,
        group_sizes=sizes,
    )


def gradient_noise(
    problem: Problem,
    source: Any,
    params: Any,
    sample: Sample,
    wanted: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Var(g_i) of a sample by the rule of `variance`.

    Returns:
      The variance, and the directional derivatives it took. The gradients of single
      samples of "exact" are those of samples that are counted already.
    """
    options, dtype = problem.options, problem.dtype
    grad = sample.evaluation.grad
    size = sample.window.size
    none = jnp.zeros_like(size)
    if options.variance == "groups":
        square = tree_dot(grad, grad)
        estimate = group_variance(sample.group_squares, sample.group_sizes, square)
        return estimate, none
    start = problem.variance_start(size)
    count = size - start
    first, last = sample.window.start + start, sample.window.start + size
    order = sample.window.order

    def measured() -> jax.Array:
        if options.variance == "exact":
            total = problem.sums.squared_distances(
                params, source, order, first, last, grad
            )
        else:
            probe = _rademacher(key, grad)
            total = problem.sums.squared_deviations(
                params, source, order, first, last, probe, tree_dot(grad, probe)
            )
        return total / (count - 1).astype(dtype)

    nan = jnp.full((), jnp.nan, dtype)
    variance = lax.cond(wanted, measured, lambda: nan)
    taken = jnp.where(wanted, count, 0)
    return variance, none if options.variance == "exact" else taken


def probe_key(state: PBLBFGSState) -> jax.Array:
    """Key of the random probes of an iteration."""
    key = jax.random.wrap_key_data(state.window.key)
    return jax.random.fold_in(key, state.counters.k)


def no_recent(options: Options, params: Any, dtype: Any) -> Any:
    """Room for the last gradients where the test looks at them, else `()`."""
    if options.test != "ipqn_window":
        return ()
    return jax.tree.map(
        lambda leaf: jnp.zeros((RECENT_GRADIENTS, *leaf.shape), dtype), params
    )


def push_recent(recent: Any, grad: Any, k: jax.Array) -> Any:
    """Stores a gradient over the oldest of the last `RECENT_GRADIENTS`."""
    slot = k % RECENT_GRADIENTS
    return jax.tree.map(lambda rows, row: rows.at[slot].set(row), recent, grad)


def _tested_direction(
    problem: Problem, state: PBLBFGSState
) -> tuple[Any, Products, Combination]:
    """The gradient that the test looks at, and H times it as a combination."""
    memory, grad = state.memory, state.evaluation.grad
    if problem.options.test == "ipqn_window":
        mean = jax.tree.map(lambda rows: rows.mean(axis=0), state.recent)
        is_steady = state.counters.same_size >= RECENT_GRADIENTS
        is_small = tree_dot(mean, mean) < RECENT_FRACTION**2 * tree_dot(grad, grad)
        grad = jax.tree.map(
            lambda m, g: jnp.where(is_steady & is_small, m, g), mean, grad
        )
    products = inner_products(memory, grad)
    return grad, products, inverse_hessian_combination(memory, products)


def _unbiased(
    problem: Problem, memory: LBFGSMemory, evaluation: Evaluation
) -> jax.Array:
    """r_U from the products of the group means."""
    if problem.groups == 1:
        return jnp.full((), jnp.nan, problem.dtype)

    def square(products: Products) -> jax.Array:
        combination = inverse_hessian_combination(memory, products)
        return image_products(memory, combination, products).square

    means = evaluation.groups.means
    total = Products(
        means.s.sum(axis=0), means.y.sum(axis=0), evaluation.groups.total_square
    )
    return unbiased_square(square(total), jax.vmap(square)(means))


def _rademacher(key: jax.Array, tree: Any) -> Any:
    """A tree of random signs."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        jax.random.rademacher(k, leaf.shape, leaf.dtype)
        for k, leaf in zip(keys, leaves, strict=True)
    )
