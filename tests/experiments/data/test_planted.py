"""The planted click data: published optima, calibration, and the closed form."""

import math

import numpy as np
import pytest

from experiments.data import planted
from experiments.training.binary_metrics import auc, log_loss


def _entropy(p):
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def _logit(p):
    return np.log(p) - np.log1p(-p)


@pytest.fixture(scope="module")
def pairs():
    return planted.four_feature_world()


@pytest.fixture(scope="module")
def drawn(pairs):
    return planted.sample(pairs, 50_000, 1)


@pytest.fixture(scope="module")
def single():
    return planted.one_feature_world()


def test_the_optimum_of_four_features(drawn):
    p_star, labels = drawn.p_star, drawn.labels
    assert round(planted.bayes_log_loss(p_star), 5) == 0.51535
    assert round(planted.realized_log_loss(p_star, labels), 5) == 0.51648
    assert round(float(p_star.mean()), 5) == 0.34811
    assert round(float(labels.mean(dtype=np.float64)), 5) == 0.34960
    assert round(_entropy(float(p_star.mean())), 5) == 0.64627
    assert round(auc(p_star, labels), 5) == 0.79135


def test_the_optimum_of_one_feature(single):
    ids = np.arange(1000)
    assert round(planted.oracle_log_loss(single, 0 * ids), 6) == 0.633143
    assert round(planted.oracle_log_loss(single), 6) == 0.467586
    for c, hashed, quotient in (
        (2, 0.510307, 0.514836),
        (4, 0.549662, 0.549609),
        (16, 0.592891, 0.592237),
    ):
        rows = math.ceil(1000 / c) + c
        assert round(planted.oracle_log_loss(single, ids % rows), 6) == hashed
        assert round(planted.oracle_log_loss(single, ids // c), 6) == quotient


def test_the_oracle_is_what_the_best_constants_of_the_buckets_reach(single):
    buckets = np.arange(1000) % 254
    p_star = 1 / (1 + np.exp(-single.logits(np.arange(1000)[:, None])))
    mass = single.popularity(0)
    assert mass.sum() == pytest.approx(1.0, rel=1e-12)
    rate = np.bincount(buckets, mass * p_star) / np.bincount(buckets, mass)
    best = _logit(rate)[buckets]
    oracle = planted.oracle_log_loss(single, buckets)
    reached = planted.expected_log_loss(best, p_star, mass)
    assert reached == pytest.approx(oracle, rel=1e-12)
    generator = np.random.default_rng(0)
    for _ in range(5):
        other = best + 0.1 * generator.standard_normal(254)[buckets]
        assert planted.expected_log_loss(other, p_star, mass) > oracle


def test_labels_follow_the_true_probabilities(drawn):
    order = np.argsort(drawn.p_star)
    for part in np.array_split(order, 20):
        p, y = drawn.p_star[part], drawn.labels[part]
        deviation = math.sqrt(np.sum(p * (1 - p))) / len(part)
        assert abs(y.mean() - p.mean()) < 4 * deviation


def test_expected_loss_is_least_at_the_truth(drawn):
    p_star, truth = drawn.p_star, _logit(drawn.p_star)
    bayes = planted.bayes_log_loss(p_star)
    assert planted.expected_log_loss(truth, p_star) == pytest.approx(bayes, rel=1e-12)
    # With the drawn labels for probabilities it is the ordinary loss.
    labels = drawn.labels.astype(np.float64)
    assert planted.expected_log_loss(truth, labels) == pytest.approx(
        planted.realized_log_loss(p_star, labels), rel=1e-9
    )
    assert log_loss(truth, labels) == pytest.approx(
        planted.realized_log_loss(p_star, labels), rel=1e-9
    )
    for shift in (-0.3, 0.3):
        assert planted.expected_log_loss(truth + shift, p_star) > bayes + 0.005


def test_logits_are_the_double_sum_over_pairs(pairs, drawn):
    row = 17
    ids = drawn.ids[row]
    z = -1.0 + drawn.dense[row].astype(np.float64) @ pairs.dense_weights
    for f in range(4):
        z += pairs.effects[f][ids[f]]
        for g in range(f):
            product = pairs.vectors[f][ids[f]] @ pairs.vectors[g][ids[g]]
            z += 0.6 * math.sqrt(4) / math.sqrt(6) * product
    assert drawn.p_star[row] == pytest.approx(1 / (1 + math.exp(-z)), rel=1e-6)


def test_popular_ids_are_drawn_as_often_as_they_should(pairs, drawn):
    for feature, size in enumerate(pairs.rows):
        counts = np.bincount(drawn.ids[:, feature], minlength=size)
        expected = 50_000 * pairs.popularity(feature)
        deviations = (counts - expected) / np.sqrt(expected)
        assert len(counts) == size and np.abs(deviations).max() < 6
        assert np.mean(deviations**2) == pytest.approx(1.0, abs=5 * math.sqrt(2 / size))
        # The most popular ids are spread over the table.
        assert pairs.popularity(feature).argmax() == pairs.categories[feature][0]
    assert {int(order[0]) for order in pairs.categories} != {0}


def test_shapes_and_types(drawn):
    assert drawn.ids.shape == (50_000, 4) and drawn.ids.dtype == np.int64
    assert drawn.dense.shape == (50_000, 4) and drawn.dense.dtype == np.float32
    assert drawn.labels.shape == (50_000,) and drawn.labels.dtype == np.float32
    assert drawn.p_star.shape == (50_000,)
    assert drawn.p_star.dtype == np.float64
    assert set(np.unique(drawn.labels)) == {0.0, 1.0}


def test_a_world_depends_on_its_seed_alone(pairs, drawn):
    again = planted.sample(planted.four_feature_world(), 50_000, 1)
    for ours, theirs in zip(drawn, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    other = planted.sample(pairs, 50_000, 0)
    assert (other.ids != drawn.ids).mean() > 0.5
    settings = dict(zipf=0.6, sigma_u=1.0, gamma=0.6, num_dense=4, bias=-1.0)
    # A feature is drawn by itself: the others may have any size.
    smaller = planted.make_world(0, rows=(2000, 7, 8, 9), **settings)
    np.testing.assert_array_equal(smaller.effects[0], pairs.effects[0])
    another = planted.make_world(1, rows=(2000, 7, 8, 9), **settings)
    assert not np.array_equal(another.effects[0], pairs.effects[0])


def test_a_rank_beyond_the_last_sum_is_the_last(single):
    # cumulative[-1] below 1 by rounding must not give a rank that is not there.
    cut = single.cumulative[0] * (1 - 1e-2)
    cut_world = planted.PlantedWorld(**{**vars(single), "cumulative": (cut,)})
    ids = planted.sample(cut_world, 5000, 1).ids
    last = single.categories[0][-1]
    assert (ids == last).mean() > 0.005


SETTINGS = dict(
    seed=0, rows=(3, 2), zipf=1.0, sigma_u=1.0, gamma=1.0, num_dense=1, bias=0.0
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rows=()), "rows must be one or more numbers >= 1"),
        (dict(rows=(3, 0)), "rows must be one or more numbers >= 1"),
        (dict(seed=-1), "seed must be >= 0 and finite, got -1"),
        (dict(zipf=float("nan")), "zipf must be >= 0 and finite, got nan"),
        (dict(sigma_u=-1.0), "sigma_u must be >= 0"),
        (dict(num_dense=-1), "num_dense must be >= 0"),
        (dict(rank=0), "rank must be >= 1"),
        (dict(gamma=math.inf), "gamma must be finite, got inf"),
        (dict(bias=math.nan), "bias must be finite, got nan"),
    ],
)
def test_bad_worlds_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        planted.make_world(**{**SETTINGS, **changes})


def test_bad_requests_are_refused(single):
    world = planted.make_world(**SETTINGS)
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        planted.sample(world, 0, 0)
    with pytest.raises(ValueError, match="split must be >= 0, got -1"):
        planted.sample(world, 1, -1)
    with pytest.raises(ValueError, match="2 features and 1 dense ones"):
        planted.oracle_log_loss(world)
    with pytest.raises(ValueError, match=r"buckets must have shape \(1000,\), got"):
        planted.oracle_log_loss(single, np.arange(999))
    with pytest.raises(TypeError, match="buckets must be integers, got dtype float64"):
        planted.oracle_log_loss(single, np.arange(1000) / 2)
    with pytest.raises(ValueError, match="logits and p_star must have one shape"):
        planted.expected_log_loss(np.zeros((3, 1)), np.zeros(3))
