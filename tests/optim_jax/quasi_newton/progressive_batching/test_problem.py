import dataclasses
import math

import jax.numpy as jnp
import pytest

from optim_jax.quasi_newton.progressive_batching.options import Options
from optim_jax.quasi_newton.progressive_batching.problem import Problem
from optim_jax.quasi_newton.progressive_batching.sample_sums import SampleSums


def make_problem(population=1000, **options):
    sums = SampleSums(lambda w, batch: (batch, ()), jnp.float32, 64, population)
    return Problem(sums, Options(**options).sized(population))


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.25, 0.3, 1 / 3, 0.5])
def test_the_overlap_is_the_ratio_rounded_up(ratio):
    problem = make_problem(overlap_ratio=ratio)
    sizes = jnp.arange(2, 900, dtype=jnp.int32)
    # Exactly: 0.1 * 30 is more than 3 in floating point, and its ceiling is 4.
    numerator, denominator = {1 / 3: (1, 3)}.get(ratio, (round(100 * ratio), 100))
    expected = [-(-numerator * n // denominator) for n in range(2, 900)]
    assert problem.overlap_size(sizes).tolist() == expected


def test_large_samples_do_not_overflow_in_their_overlap():
    problem = make_problem()
    assert int(problem.overlap_size(jnp.int32(2**31 - 1))) == 2**29
    size = jnp.int32(2**30)
    assert int(make_problem(overlap_ratio=0.3001).overlap_size(size)) == math.ceil(
        2**30 * 3001 / 10_000
    )


@pytest.mark.parametrize(
    ("cap", "size", "expected"),
    [(2.0, 100, 200), (1.5, 101, 152), (2.0, 600, 1000), (math.inf, 64, 1000)],
)
def test_a_sample_grows_to_the_cap_and_no_further(cap, size, expected):
    problem = make_problem(growth_cap=cap)
    assert int(problem.grown_size(jnp.int32(size))) == expected


def test_a_stream_may_grow_to_the_largest_integer():
    problem = make_problem(None, max_batch=2**31 - 1, max_iterations=3, growth_cap=1e12)
    assert int(problem.grown_size(jnp.int32(2**30))) >= 2**31 - 129
    assert not bool(problem.is_full(jnp.int32(5)))


def test_the_last_samples_give_the_variance():
    problem = make_problem(variance_samples=100)
    assert problem.variance_start(jnp.asarray([64, 100, 164])).tolist() == [0, 0, 64]
    problem = make_problem(variance_samples=None)
    assert problem.variance_start(jnp.asarray([64, 164])).tolist() == [0, 0]


def test_all_data_are_full():
    problem = make_problem()
    assert problem.is_full(jnp.asarray([999, 1000])).tolist() == [False, True]


@pytest.mark.parametrize(
    ("search", "needed"),
    [("armijo", False), ("weak_wolfe", True), ("strong_wolfe", True)],
)
def test_what_a_trial_needs(search, needed):
    assert make_problem(line_search=search).needs_slope == needed


def test_groups_are_made_where_they_are_used():
    assert make_problem(groups=5).groups == 5
    assert make_problem(groups=5, test="ipqn", init_step="unit").groups == 1
    assert make_problem().shares_samples
    assert not make_problem(overlap="full").shares_samples


def test_only_the_cases_that_can_occur_are_traced():
    def case(name):
        traced.append(name)
        return jnp.float32(len(name))

    for options, population, expected in [
        ({"batch_size": 1000}, 1000, ["all"]),
        ({"max_batch": 64, "max_iterations": 2}, None, ["sample"]),
        ({}, 1000, ["all", "sample"]),
    ]:
        traced = []
        problem = make_problem(population, **options)
        found = problem.either(
            jnp.int32(1000), lambda: case("all"), lambda: case("sample")
        )
        assert sorted(traced) == expected
        assert int(found) == len(expected[0])
    full = make_problem(batch_size=1000)
    assert full.always_full and full.groups == 1 and not full.shares_samples


def test_a_problem_is_static():
    one, other = make_problem(), make_problem()
    assert dataclasses.replace(one) == one
    assert hash(one.options) == hash(other.options) and one.options == other.options
