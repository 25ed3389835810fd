import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim_jax.quasi_newton.ipqn import IPQNStats, ipqn_statistics
from tests.optim_jax.quasi_newton.golden_sample import (
    read_golden_sample,
    regularised_logistic,
)

# Options whose programs differ little are compiled as one.
CASES = {
    "paper": {"test": "ipqn", "groups": 4, "variance": "exact"},
    "finite": {
        "test": "ipqn",
        "groups": 4,
        "population": 240,
        "finite_population": True,
    },
    "norm": {"test": "norm", "variance": "exact"},
    "inner_product": {"test": "inner_product", "variance": "exact"},
    "none": {"test": "none"},
    "seven groups": {"groups": 7},
    "cap 2": {"groups": 4, "growth_cap": 2.0},
    "cap 3.5": {"groups": 4, "growth_cap": 3.5},
    "no cap": {"groups": 4},
    "population": {"groups": 4, "population": 569},
    "both": {"groups": 4, "growth_cap": 4.0, "population": 60},
    "finite, both": {
        "groups": 4,
        "growth_cap": 4.0,
        "population": 1000,
        "finite_population": True,
    },
}


@pytest.fixture(scope="module", autouse=True)
def wide_types():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def golden(wide_types):
    return read_golden_sample()


@pytest.fixture(scope="module")
def numbers(golden):
    return golden.numbers


@pytest.fixture(scope="module")
def found(golden):
    return statistics(golden, CASES)


def statistics(sample, cases):
    """The statistics of a golden sample, without a cap unless one is given."""

    @jax.jit
    def compute(w, gradient, memory):
        return {
            name: ipqn_statistics(
                sample.losses, w, gradient, memory, **{"growth_cap": math.inf, **case}
            )
            for name, case in cases.items()
        }

    return compute(sample.w, sample.gradient, sample.memory)


def assert_close(found, expected, rtol):
    assert isinstance(found, IPQNStats)
    for name, ours, theirs in zip(found._fields, found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, err_msg=name)


def approx(expected, rel=1e-11):
    return pytest.approx(float(expected), rel=rel)


def test_golden_statistics_of_the_paper(found, numbers):
    paper = found["paper"]
    assert float(paper.ratio) == approx(0.17693546502079938)
    assert float(paper.r) == approx(numbers["r"])
    assert float(paper.r_U) == approx(numbers["r_group"])
    assert float(paper.var) == approx(numbers["var_ipqn"])
    assert float(paper.alpha0) == approx(numbers["alpha0"])
    assert paper.r_F == paper.r_U
    assert paper.b_new == numbers["b_new"] == 5
    assert paper.b_new.dtype == jnp.int32


def test_golden_finite_population(found, numbers):
    finite = found["finite"]
    r_finite = numbers["r"] - 0.9 * (numbers["r"] - numbers["r_group"])
    assert float(finite.r_F) == approx(r_finite)
    assert float(finite.ratio) == approx(0.9 * 0.17693546502079938)
    assert finite.b_new == numbers["b_new_fpc"] == 5


def test_golden_norm_and_inner_product_tests(found, numbers):
    norm, inner = found["norm"], found["inner_product"]
    assert float(norm.ratio) == approx(numbers["norm_test_ratio"])
    square = numbers["g"] @ numbers["g"]
    assert float(inner.ratio) == approx(numbers["var_ip"] / (24 * 0.81 * square**2))
    # The others do not depend on the test.
    for name in ("r", "r_U", "r_F", "var", "alpha0"):
        assert float(getattr(norm, name)) == approx(getattr(inner, name), 1e-14)


def test_the_variance_from_groups_is_that_of_the_group_means(found, numbers):
    parts = np.array_split(numbers["G"], 7)
    g = numbers["g"]
    spread = sum(len(part) * np.sum((part.mean(0) - g) ** 2) for part in parts) / 6
    alpha0 = 1 / (1 + spread / (24 * g @ g))
    assert float(found["seven groups"].alpha0) == approx(alpha0)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("cap 2", 48),
        ("cap 3.5", 84),
        ("no cap", 2**31 - 1),
        ("population", 569),
        ("both", 60),
        ("finite, both", 96),
    ],
)
def test_the_unbiased_test_fails_where_the_paper_s_passes(found, case, expected):
    assert found[case].r_U < 0
    assert found[case].ratio == math.inf
    assert found[case].b_new == expected


def test_no_test(found):
    assert np.isnan(found["none"].ratio)
    assert found["none"].b_new == 24
    assert found["none"].var > 0


def test_the_window_takes_an_average_for_the_gradient(golden, numbers):
    # u and r are those of the average; the deviations are taken about that r.
    average = numbers["g"] + 0.05 * np.arange(6)
    sample = golden._replace(gradient=jnp.asarray(average))
    window = statistics(sample, {"": {"test": "ipqn_window"}})[""]
    h_average = numbers["H_dense"] @ average
    a = numbers["G"] @ numbers["H_dense"] @ h_average
    r = h_average @ h_average
    variance = ((a - r) ** 2).sum() / 23
    assert float(window.r) == approx(r)
    assert float(window.var) == approx(variance)
    assert float(window.ratio) == approx(variance / (24 * 0.81 * r**2))


def test_given_group_means_replace_the_pullbacks(golden, numbers, found):
    # 24 samples in 7 groups: three groups have four, the others three.
    parts = np.array_split(numbers["G"], 7)
    means = jnp.asarray(np.array([part.mean(0) for part in parts]))
    sizes = np.array([len(part) for part in parts])
    # A group of no samples may hold anything.
    with_empty = jnp.concatenate([means, jnp.full((1, 6), jnp.nan)])
    given = statistics(
        golden,
        {
            "split": {"group_grads": means},
            "sizes": {"group_grads": means, "group_sizes": sizes},
            "empty": {"group_grads": with_empty, "group_sizes": np.append(sizes, 0)},
        },
    )
    for case in given.values():
        assert_close(case, found["seven groups"], 1e-11)


def test_a_tree_gives_what_its_vector_gives(golden, found):
    def split(vector):
        return {"a": vector[..., :2], "b": [vector[..., 2:5], vector[..., 5]]}

    def join(tree):
        return jnp.concatenate([tree["a"], tree["b"][0], tree["b"][1][None]])

    tree = golden._replace(
        losses=lambda tree: golden.losses(join(tree)),
        w=split(golden.w),
        gradient=split(golden.gradient),
        memory=golden.memory._replace(
            s=split(golden.memory.s), y=split(golden.memory.y)
        ),
    )
    case = statistics(tree, {"seven groups": CASES["seven groups"]})["seven groups"]
    assert_close(case, found["seven groups"], 1e-11)


def test_enumeration_of_the_finite_population(golden, numbers):
    # r_F over all 70 samples of four of eight is the squared length of H grad F.
    x, y = jnp.asarray(numbers["X"][:8]), jnp.asarray(numbers["y"][:8])
    gradients = jnp.asarray(numbers["G"][:8])

    @jax.jit
    @jax.vmap
    def r_finite(subset):
        return ipqn_statistics(
            lambda w: regularised_logistic(w, x[subset], y[subset], numbers["lam"]),
            golden.w,
            jnp.mean(gradients[subset], 0),
            golden.memory,
            group_grads=gradients[subset],
            population=8,
        ).r_F

    subsets = jnp.array(list(itertools.combinations(range(8), 4)))
    truth = np.sum((numbers["H_dense"] @ numbers["G"][:8].mean(0)) ** 2)
    assert float(jnp.mean(r_finite(subsets))) == approx(truth)


def test_the_scale_of_the_loss_does_not_matter(golden):
    tests = ("ipqn_unbiased", "ipqn", "inner_product", "norm")

    @jax.jit
    def of_scaled_loss(scale):
        m = golden.memory
        memory = m._replace(
            y=scale * m.y, sy=scale * m.sy, yy=scale**2 * m.yy, gamma=m.gamma / scale
        )
        return [
            ipqn_statistics(
                lambda w: scale * golden.losses(w),
                golden.w,
                scale * golden.gradient,
                memory,
                test=test,
                growth_cap=math.inf,
            )
            for test in tests
        ]

    expected = of_scaled_loss(1.0)
    for scale in (1e-6, 1e6):
        for ours, theirs in zip(of_scaled_loss(scale), expected, strict=True):
            # H is one over the scale, so that r and var stay as well.
            assert_close(ours, theirs, 1e-10)


def test_padding_changes_nothing(golden):
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((50, 6)), rng.choice([-1.0, 1.0], 50)
    gradient = jax.grad(lambda w: jnp.mean(regularised_logistic(w, x, y, 0.01)))(
        golden.w
    )

    def of_bucket(length, **options):
        features, labels = np.full((length, 6), 7.0), np.ones(length)
        features[:50], labels[:50] = x, y
        sample = golden._replace(
            losses=lambda w: regularised_logistic(w, features, labels, 0.01),
            gradient=gradient,
        )
        cases = {
            name: {"variance": name, **options} for name in ("groups", "hutchinson")
        }
        return statistics(sample, cases)

    plain = of_bucket(50)
    for length in (64, 128):
        padded = of_bucket(length, weights=np.arange(length) < 50)
        for name, case in padded.items():
            assert_close(case, plain[name], 1e-12)


def test_weights_count_as_shares(golden, numbers):
    weights = np.random.default_rng(4).uniform(0.1, 2.0, 24)
    weights[[3, 10]] = 0
    shares = weights / weights.sum()
    gradient = shares @ numbers["G"]
    options = {"test": "ipqn", "variance": "exact"}
    cases = statistics(
        golden._replace(gradient=jnp.asarray(gradient)),
        {scale: {**options, "weights": scale * weights} for scale in (1, 10)},
    )
    u = numbers["H_dense"] @ numbers["H_dense"] @ gradient
    r = np.sum((numbers["H_dense"] @ gradient) ** 2)
    variance = 22 / 21 * shares @ (numbers["G"] @ u - r) ** 2
    spread = 22 / 21 * shares @ ((numbers["G"] - gradient) ** 2).sum(1)
    assert float(cases[1].var) == approx(variance)
    assert float(cases[1].ratio) == approx(variance / (22 * 0.81 * r**2))
    alpha0 = 1 / (1 + spread / (22 * gradient @ gradient))
    assert float(cases[1].alpha0) == approx(alpha0)
    # Groups are formed of the samples that count.
    parts = np.array_split(np.flatnonzero(weights), 8)
    h = np.array([shares[p] @ numbers["G"][p] / shares[p].sum() for p in parts])
    h = h @ numbers["H_dense"]
    r_unbiased = (np.sum(h.sum(0) ** 2) - np.sum(h**2)) / 56
    assert float(cases[1].r_U) == approx(r_unbiased)
    assert_close(cases[10], cases[1], 1e-12)
