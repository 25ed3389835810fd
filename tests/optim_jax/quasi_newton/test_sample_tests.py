import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton import sample_tests
from optim_jax.quasi_newton.sample_tests import (
    finite_population_square,
    judge_sample,
    unbiased_square,
)
from tests.optim_jax.quasi_newton.golden_sample import read_golden_sample

LARGEST = 2**31 - 1


def moments(r=1.0, r_unbiased=1.0, variance=1.0, gradient_variance=1.0, square=1.0):
    return sample_tests.TestMoments(
        r, r_unbiased, variance, gradient_variance, jnp.asarray(square)
    )


def judge(test="ipqn", batch_size=10, theta=0.5, growth_cap=2.0, **options):
    facts = {
        name: options.pop(name) for name in tuple(options) if name in ARGUMENTS_OF_FACTS
    }
    return judge_sample(
        test,
        moments(**facts),
        batch_size,
        theta=theta,
        growth_cap=growth_cap,
        **options,
    )


ARGUMENTS_OF_FACTS = {"r", "r_unbiased", "variance", "gradient_variance", "square"}


@pytest.fixture
def golden(x64):
    return read_golden_sample().numbers


def judge_golden(golden, test, **options):
    facts = moments(
        golden["r"],
        golden["r_group"],
        golden["var_ipqn"],
        golden["var_norm"],
        golden["g"] @ golden["g"],
    )
    return judge_sample(
        test, facts, 24, theta=golden["theta"], growth_cap=math.inf, **options
    )


def test_golden_ratio_and_size_of_the_ipqn_test(golden):
    verdict = judge_golden(golden, "ipqn")
    assert float(verdict.ratio) == pytest.approx(0.17693546502079938, rel=1e-14)
    assert float(verdict.ratio) == pytest.approx(
        golden["lhs"] / golden["rhs"], rel=1e-13
    )
    assert int(verdict.batch_size) == golden["b_new"] == 5


def test_the_window_test_has_the_formula_of_the_ipqn_test(golden):
    window, plain = (judge_golden(golden, test) for test in ("ipqn_window", "ipqn"))
    assert window.ratio == plain.ratio
    assert window.batch_size == plain.batch_size


def test_golden_size_in_a_finite_population(golden):
    verdict = judge_golden(
        golden, "ipqn", population=int(golden["N"]), finite_population=True
    )
    assert int(verdict.batch_size) == golden["b_new_fpc"]
    expected = (1 - 24 / 240) * golden["lhs"] / golden["rhs"]
    assert float(verdict.ratio) == pytest.approx(expected, rel=1e-13)


def test_golden_ratio_of_the_norm_test(golden):
    verdict = judge_golden(golden, "norm")
    assert float(verdict.ratio) == pytest.approx(
        float(golden["norm_test_ratio"]), rel=1e-13
    )


def test_the_unbiased_test_fails_on_the_golden_sample(golden):
    assert golden["r_group"] < 0
    assert judge_golden(golden, "ipqn_unbiased").ratio == math.inf
    # In 25 samples r_F is r but for a 25th, and the signal is there again.
    verdict = judge_golden(
        golden, "ipqn_unbiased", population=25, finite_population=True
    )
    r_finite = golden["r"] - (1 - 24 / 25) * (golden["r"] - golden["r_group"])
    expected = golden["var_ipqn"] * (1 - 24 / 25) / (24 * 0.81 * r_finite**2)
    assert float(verdict.r_finite) == pytest.approx(r_finite, rel=1e-13)
    assert float(verdict.ratio) == pytest.approx(expected, rel=1e-12)


def test_the_norm_is_the_inner_product_and_the_orthogonal_part(golden):
    square = golden["g"] @ golden["g"]
    along = golden["var_ip"] / square
    assert golden["var_norm"] == pytest.approx(along + golden["var_orth"], rel=1e-13)

    # The ratios of the two parts, theta = nu = 1, add up to that of the norm test.
    def ratio(test, **facts):
        return float(
            judge(test, batch_size=24, theta=1.0, square=square, **facts).ratio
        )

    inner = ratio("inner_product", variance=golden["var_ip"])
    orthogonal = ratio("norm", gradient_variance=golden["var_orth"])
    whole = ratio("norm", gradient_variance=golden["var_norm"])
    assert whole == pytest.approx(inner + orthogonal, rel=1e-13)
    # So tau^2 = theta^2 + nu^2, where both parts just hold, just holds.
    theta, nu = math.sqrt(inner), math.sqrt(orthogonal)
    tau = math.hypot(theta, nu)
    assert whole / tau**2 == pytest.approx(1.0, rel=1e-13)


def test_the_unbiased_square_is_the_mean_of_products_of_two_groups(x64):
    h = np.random.default_rng(0).standard_normal((5, 3))
    pairs = [h[i] @ h[j] for i, j in itertools.permutations(range(5), 2)]
    total = h.sum(0)
    squares = (h**2).sum(1)
    assert float(unbiased_square(total @ total, squares)) == pytest.approx(
        np.mean(pairs), rel=1e-13
    )
    with_empty = np.append(squares, [0.0, 0.0])
    assert float(unbiased_square(total @ total, with_empty, 5)) == pytest.approx(
        np.mean(pairs), rel=1e-13
    )


def test_one_group_has_no_unbiased_square():
    assert np.isnan(unbiased_square(1.0, jnp.ones(1)))


def test_enumeration_of_draws_without_replacement(x64):
    # All 70 samples of four of eight, every sample its own group.
    h = np.random.default_rng(1).standard_normal((8, 3)) + 0.3
    subsets = np.array(list(itertools.combinations(range(8), 4)))

    def estimates(subset):
        drawn = jnp.asarray(h)[subset]
        total = jnp.sum(drawn, 0)
        r = jnp.sum((total / 4) ** 2)
        r_unbiased = unbiased_square(total @ total, jnp.sum(drawn**2, 1))
        return r, r_unbiased, finite_population_square(r, r_unbiased, 4, 8)

    r, r_unbiased, r_finite = (np.mean(x) for x in jax.vmap(estimates)(subsets))
    truth = np.sum(h.mean(0) ** 2)
    assert r_finite == pytest.approx(truth, rel=1e-13)
    assert r > truth + 0.1
    assert r_unbiased < truth - 0.05


def test_ends_of_the_finite_population_square():
    assert finite_population_square(3.0, 0.1, 7, math.inf) == np.float32(0.1)
    assert finite_population_square(3.0, math.nan, 7, 7) == 3.0
    assert np.isnan(finite_population_square(3.0, math.nan, 7, 8))


@pytest.mark.parametrize("test", ["ipqn", "ipqn_unbiased", "inner_product", "norm"])
@pytest.mark.parametrize("population", [math.inf, 400])
def test_the_size_proposed_is_the_smallest_that_passes(x64, test, population):
    rng = np.random.default_rng(2)
    for _ in range(20):
        r, v = np.exp(rng.normal(0, 0.5)), np.exp(rng.normal(1, 1))
        options = {
            "r": r,
            "r_unbiased": r,
            "square": r,
            "variance": v,
            "gradient_variance": v,
            "growth_cap": math.inf,
            "population": population,
            "finite_population": population < math.inf,
        }
        size = int(judge(test, 10, **options).batch_size)
        assert float(judge(test, size, **options).ratio) <= 1
        if size > 1:
            assert float(judge(test, size - 1, **options).ratio) > 1


def test_growth_is_capped():
    # Without a cap 4 / 0.25 = 16 samples.
    sizes = [
        int(judge(variance=4.0, growth_cap=cap, batch_size=5).batch_size)
        for cap in (1.5, 2.0, 3.0, 4.0, math.inf)
    ]
    assert sizes == [8, 10, 15, 16, 16]


@pytest.mark.parametrize(
    ("growth_cap", "population", "expected"),
    [
        (2.0, math.inf, 20),
        (2.0, 15, 15),
        (math.inf, 1797, 1797),
        (math.inf, math.inf, LARGEST),
    ],
)
@pytest.mark.parametrize("finite_population", [False, True])
@pytest.mark.parametrize("signal", [0.0, -1.0])
def test_without_a_signal_the_caps_decide(
    growth_cap, population, expected, finite_population, signal
):
    verdict = judge(
        "ipqn_unbiased",
        r=max(signal, 0.0),
        r_unbiased=signal,
        growth_cap=growth_cap,
        population=population,
        finite_population=finite_population,
    )
    if finite_population and population == 15 and signal < 0:
        assert verdict.r_finite < 0
    assert verdict.ratio == math.inf
    assert int(verdict.batch_size) == expected


def test_a_finite_population_is_never_exceeded(x64):
    variance, signal, size, population = np.meshgrid(
        [0.0, 1e-3, 1.0, 1e6, 1e200], [1e-8, 1.0, 1e4], [2, 50, 97], [97, 1000, 10**9]
    )

    def proposal(variance, signal, size, population, finite):
        return judge_sample(
            "ipqn",
            moments(r=signal, variance=variance),
            size,
            theta=0.9,
            population=population,
            finite_population=finite,
            growth_cap=math.inf,
        ).batch_size

    for finite in (False, True):
        sizes = jax.vmap(lambda *case, finite=finite: proposal(*case, finite))(
            *(jnp.asarray(x.ravel()) for x in (variance, signal, size, population))
        )
        assert np.all(np.asarray(sizes) <= population.ravel())
        assert np.all(np.asarray(sizes) >= 1)


def test_counts_beyond_the_integers_of_float32():
    population = 2**24 + 1
    for value in (population, jnp.asarray(population)):
        verdict = judge(r=0.0, growth_cap=math.inf, population=value)
        assert int(verdict.batch_size) == population
    assert int(judge(variance=1e30, growth_cap=math.inf).batch_size) == LARGEST


def test_moments_that_are_not_finite_leave_the_size():
    for facts in ({"r": math.nan}, {"variance": math.nan}):
        verdict = judge(**facts)
        assert np.isnan(verdict.ratio)
        assert int(verdict.batch_size) == 10


def test_no_test_leaves_the_size():
    verdict = judge("none", variance=100.0)
    assert np.isnan(verdict.ratio)
    assert int(verdict.batch_size) == 10


def test_at_least_one_sample_is_proposed():
    verdict = judge(variance=0.0)
    assert verdict.ratio == 0
    assert int(verdict.batch_size) == 1


def test_squares_beyond_the_range_of_float32():
    # 3e19 squared is not a float32, nor is 3e-20 squared.
    large = judge(r=3e19, variance=1e38, theta=1.0, batch_size=2)
    assert float(large.ratio) == pytest.approx(1e38 / 9e38 / 2, rel=1e-5)
    small = judge(r=3e-20, variance=1e-37, theta=1.0, batch_size=2, growth_cap=1e9)
    assert float(small.ratio) == pytest.approx(1e-37 / 9e-40 / 2, rel=1e-5)


def test_one_program_for_all_sizes():
    @jax.jit
    def ratio(size):
        return judge(batch_size=size, variance=4.0).ratio

    for size in (4, 8, 64):
        assert float(ratio(size)) == pytest.approx(16 / size)
    assert ratio._cache_size() == 1


def test_an_unknown_test_is_refused():
    with pytest.raises(ValueError, match="test must be one of inner_product, ipqn"):
        judge("cosine")
