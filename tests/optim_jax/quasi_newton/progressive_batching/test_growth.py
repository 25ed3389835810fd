import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.memory import init_memory, store_pair
from optim_jax.quasi_newton.progressive_batching import growth
from optim_jax.quasi_newton.progressive_batching.options import Options
from optim_jax.quasi_newton.progressive_batching.problem import Problem
from optim_jax.quasi_newton.progressive_batching.renewal import first_evaluation
from optim_jax.quasi_newton.progressive_batching.sample_sums import SampleSums
from optim_jax.quasi_newton.progressive_batching.sampling import first_window
from optim_jax.quasi_newton.progressive_batching.solver_state import (
    Counters,
    PBLBFGSState,
)
from tests.optim_jax.quasi_newton.progressive_batching.logistic import (
    compiled,
    draw_rows,
    losses,
)

SIZE, POPULATION, GROUPS, THETA = 50, 200, 8, 0.4


def make_problem(**options):
    sums = SampleSums(
        lambda w, batch: (losses(w, batch), ()), jnp.float64, 16, POPULATION
    )
    options = {"batch_size": SIZE, "memory_size": 3, "theta": THETA, **options}
    return Problem(sums, Options(**options).sized(POPULATION))


class Start:
    """A sample at a point, a memory of two pairs, and all of it in explicit numbers."""

    def __init__(self):
        rng = np.random.default_rng(2)
        data = draw_rows(3, dtype=np.float64)
        self.source = tuple(jnp.asarray(leaf) for leaf in data)
        self.w = 0.3 * rng.normal(size=5)
        memory, self.inverse = init_memory(jnp.zeros(5), 3), None
        s = rng.normal(size=(2, 5))
        y = s * np.geomspace(0.05, 0.4, 5)
        for step, change in zip(s, y, strict=True):
            memory = store_pair(memory, jnp.asarray(step), jnp.asarray(change))
        self.inverse = self.dense_inverse(s, y)
        key = np.asarray(jax.random.key_data(jax.random.key(4)))
        window = first_window(key, POPULATION, SIZE, POPULATION)
        x, labels = data
        factor = -labels / (1 + np.exp(labels * (x @ self.w)))
        self.order = np.asarray(window.order)
        self.grads = (factor[:, None] * x + 0.01 * self.w)[self.order]
        self.losses = np.asarray(losses(self.w, data))[self.order]
        problem = make_problem()
        evaluate = compiled(functools.partial(first_evaluation, problem))
        w = jnp.asarray(self.w)
        evaluation, *overlap = evaluate(self.source, w, memory, window)
        self.state = PBLBFGSState(
            params=w,
            memory=memory,
            window=window,
            overlap_start=overlap[0],
            overlap_size=overlap[1],
            evaluation=evaluation,
            recent=(),
            aux=(),
            step=jnp.ones(()),
            counters=Counters.zeros(),
            reason=jnp.int32(0),
        )

    @staticmethod
    def dense_inverse(s, y):
        inverse = np.eye(5) * (s[-1] @ y[-1]) / (y[-1] @ y[-1])
        for step, change in zip(s, y, strict=True):
            rho = 1 / (step @ change)
            factor = np.eye(5) - rho * np.outer(step, change)
            inverse = factor @ inverse @ factor.T + rho * np.outer(step, step)
        return inverse


start = functools.cache(Start)


def judge(begin, state=None, **options):
    problem = make_problem(**options)
    function = compiled(functools.partial(growth.examine_sample, problem))
    return function(begin.source, begin.state if state is None else state)


def moments(grads, inverse, used=None):
    """r, r_U and the three variances of a sample, from its gradients."""
    mean = grads.mean(axis=0)
    image = inverse @ mean
    u, r = inverse @ image, image @ image
    parts = [inverse @ part.mean(axis=0) for part in np.array_split(grads, GROUPS)]
    pairs = sum(a @ b for a in parts for b in parts) - sum(a @ a for a in parts)
    some = grads[-(used or len(grads)) :]
    divisor = len(some) - 1
    return {
        "r": r,
        "r_U": pairs / (GROUPS * (GROUPS - 1)),
        "ipqn": np.sum((some @ u - r) ** 2) / divisor,
        "inner_product": np.sum((some @ mean - mean @ mean) ** 2) / divisor,
        "norm": np.sum((some - mean) ** 2) / divisor,
        "square": mean @ mean,
    }


def signals(known):
    return {
        "ipqn": known["r"],
        "ipqn_window": known["r"],
        "ipqn_unbiased": known["r_U"],
        "inner_product": known["square"],
        "norm": math.sqrt(known["square"]),
    }


@pytest.mark.parametrize(
    ("test", "used"),
    [
        ("ipqn", None),
        ("ipqn_window", None),
        ("ipqn_unbiased", 20),
        ("inner_product", None),
        ("norm", 20),
    ],
)
def test_every_test_is_that_of_the_written_out_gradients(x64, test, used):
    begin = start()
    state = begin.state
    if test == "ipqn_window":
        state = state._replace(recent=jnp.zeros((10, 5)))
    options = {"variance": "exact", "init_step": "unit"}
    found = judge(begin, state, test=test, variance_samples=used, **options)
    known = moments(begin.grads[:SIZE], begin.inverse, used)
    variance = known[test.removesuffix("_window").removesuffix("_unbiased")]
    ratio = variance / (SIZE * THETA**2 * signals(known)[test] ** 2)
    assert float(found.r) == pytest.approx(known["r"], rel=1e-11)
    if test == "ipqn_unbiased":
        assert float(found.r_unbiased) == pytest.approx(known["r_U"], rel=1e-11)
    assert float(found.ratio) == pytest.approx(ratio, rel=1e-10)
    wanted = min(max(math.ceil(ratio * SIZE), SIZE), 2 * SIZE)
    assert int(found.wanted) == wanted
    assert int(found.jvp_evals) == (0 if test == "norm" else used or SIZE)


def test_a_part_of_a_known_population_varies_less(x64):
    begin = start()
    found = judge(begin, finite_population=True, growth_cap=math.inf)
    known = moments(begin.grads[:SIZE], begin.inverse)
    share = SIZE / POPULATION
    r = known["r"] - (1 - share) * (known["r"] - known["r_U"])
    size = known["ipqn"] / (THETA**2 * r**2)
    ratio = (1 - share) * size / SIZE
    assert float(found.ratio) == pytest.approx(ratio, rel=1e-10)
    wanted = math.ceil(size / (1 + size / POPULATION))
    assert int(found.wanted) == max(wanted, SIZE)


@pytest.mark.parametrize("cap", [1.5, math.inf])
def test_a_sample_without_a_signal_grows_as_far_as_it_may(x64, cap):
    begin = start()
    # The group means of a gradient that vanishes: they add up to zero.
    groups = begin.state.evaluation.groups
    groups = groups._replace(total_square=jnp.zeros(()))
    means = jax.tree.map(lambda rows: rows - rows.mean(axis=0), groups.means)
    means = means._replace(square=groups.means.square)
    evaluation = begin.state.evaluation._replace(groups=groups._replace(means=means))
    state = begin.state._replace(evaluation=evaluation)
    found = judge(begin, state, growth_cap=cap)
    assert float(found.r_unbiased) < 0 and math.isinf(float(found.ratio))
    assert int(found.wanted) == min(cap * SIZE, POPULATION)


def test_the_window_test_looks_at_the_mean_of_recent_gradients(x64):
    begin = start()
    mean = 0.1 * begin.grads[:SIZE].mean(axis=0)
    state = begin.state._replace(recent=jnp.tile(mean, (10, 1)))
    image = begin.inverse @ begin.grads[:SIZE].mean(axis=0)
    # 0.1 of the gradient, so a hundredth of the square.
    for steady, expected in [(9, image @ image), (10, 0.01 * image @ image)]:
        counters = state.counters._replace(same_size=jnp.int32(steady))
        found = judge(begin, state._replace(counters=counters), test="ipqn_window")
        assert float(found.r) == pytest.approx(expected, rel=1e-11)


def test_no_test_where_none_is_due(x64):
    begin = start()
    counters = begin.state.counters._replace(k=jnp.int32(3))
    skipped = judge(begin, begin.state._replace(counters=counters), test_every=2)
    off = judge(begin, test="none")
    window = begin.state.window._replace(size=jnp.int32(POPULATION))
    full = judge(begin, begin.state._replace(window=window))
    for found, size in [(skipped, SIZE), (off, SIZE), (full, POPULATION)]:
        assert math.isnan(float(found.ratio))
        assert int(found.wanted) == size and int(found.jvp_evals) == 0


@pytest.mark.parametrize("in_front", [False, True])
def test_a_grown_sample_is_that_of_its_final_size(x64, in_front):
    begin, size = start(), 83
    state = begin.state
    if in_front:
        front = jnp.asarray(begin.grads[:13].sum(axis=0))
        state = state._replace(
            overlap_start=jnp.int32(0),
            overlap_size=jnp.int32(13),
            evaluation=state.evaluation._replace(overlap=front),
        )
    problem = make_problem()
    grow = compiled(
        functools.partial(growth.grow_sample, problem, overlap_in_front=in_front)
    )
    found = grow(begin.source, state, jnp.int32(size))
    grads = begin.grads[:size]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13)
    close(found.evaluation.value, begin.losses[:size].mean())
    close(found.evaluation.grad, grads.mean(axis=0))
    first = int(state.overlap_start)
    assert int(found.overlap_size) == math.ceil(0.25 * size)
    last = first + int(found.overlap_size)
    close(found.evaluation.overlap, grads[first:last].sum(axis=0))
    parts = [
        *np.array_split(grads[:SIZE], GROUPS),
        *np.array_split(grads[SIZE:], GROUPS),
    ]
    assert found.group_sizes.tolist() == [len(part) for part in parts]
    means = np.stack([part.mean(axis=0) for part in parts])
    close(found.group_squares, np.sum(means**2, axis=1))
    same = grow(begin.source, state, jnp.int32(SIZE))
    close(same.evaluation.grad, begin.grads[:SIZE].mean(axis=0))
    assert same.group_sizes[GROUPS:].tolist() == [0] * GROUPS


@pytest.mark.parametrize("variance", ["groups", "exact", "hutchinson"])
def test_the_variance_of_the_gradients(x64, variance):
    begin = start()
    problem = make_problem(variance=variance)
    sample = growth.ungrown(problem, begin.state)

    @compiled
    def noise(keys):
        def one(key):
            return growth.gradient_noise(
                problem, begin.source, begin.state.params, sample, jnp.bool_(True), key
            )

        return jax.lax.map(one, keys)

    found, jvps = noise(jax.random.split(jax.random.key(0), 300))
    grads = begin.grads[:SIZE]
    mean = grads.mean(axis=0)
    exact = np.sum((grads - mean) ** 2) / (SIZE - 1)
    if variance == "groups":
        parts = np.array_split(grads, GROUPS)
        exact = sum(
            len(part) * np.sum((part.mean(axis=0) - mean) ** 2) for part in parts
        ) / (GROUPS - 1)
    if variance == "hutchinson":
        assert np.std(found) > 0
        assert np.mean(found) == pytest.approx(exact, rel=0.05)
    else:
        np.testing.assert_allclose(found, exact, rtol=1e-11)
    assert set(jvps.tolist()) == {SIZE if variance == "hutchinson" else 0}


def test_the_probes_differ_between_iterations(x64):
    state = start().state
    later = state._replace(counters=state.counters._replace(k=jnp.int32(1)))
    keys = [jax.random.key_data(growth.probe_key(s)) for s in (state, state, later)]
    assert (keys[0] == keys[1]).all() and (keys[0] != keys[2]).any()


def test_the_oldest_recent_gradient_is_overwritten():
    recent = jnp.arange(10.0)[:, None] * jnp.ones(2)
    found = growth.push_recent(recent, jnp.asarray([-1.0, -2.0]), jnp.int32(23))
    np.testing.assert_array_equal(found[3], [-1, -2])
    np.testing.assert_array_equal(np.delete(found, 3, 0), np.delete(recent, 3, 0))
