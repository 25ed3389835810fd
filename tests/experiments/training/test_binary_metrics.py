"""The metrics against their definitions, written out pair by pair and row by row."""

import math

import numpy as np
import pytest

from experiments.training import binary_metrics
from experiments.training.binary_metrics import (
    BinaryMetrics,
    accuracy,
    auc,
    average_precision,
    calibration,
    expected_calibration_error,
    log_loss,
    normalized_entropy,
    precision_recall_f1,
    sigmoid,
    undo_subsampling,
)


def _draw(n=400, *, seed=0, ties=False, weights=False):
    generator = np.random.default_rng(seed)
    z = generator.normal(-1.0, 1.5, n)
    if ties:
        z = np.round(z)
    y = (generator.random(n) < sigmoid(z)).astype(np.float64)
    w = generator.integers(0, 4, n).astype(np.float64) if weights else None
    return z.astype(np.float32), y, w


def _pair_count(scores, labels, weights):
    area = total = 0.0
    for s, y, w in zip(scores, labels, weights, strict=True):
        for t, x, v in zip(scores, labels, weights, strict=True):
            if y == 1 and x == 0:
                area += w * v * ((s > t) + 0.5 * (s == t))
                total += w * v
    return area / total


# Log loss.


def test_log_loss_is_that_of_the_probabilities():
    z, y, w = _draw(weights=True)
    p = 1.0 / (1.0 + np.exp(-z.astype(np.float64)))
    terms = -np.where(y == 1, np.log(p), np.log(1.0 - p))
    assert log_loss(z, y) == pytest.approx(terms.mean(), rel=1e-12)
    assert log_loss(z, y, w) == pytest.approx(np.average(terms, weights=w), rel=1e-12)


@pytest.mark.parametrize("z", [1e4, 80.0, 1e-20, 0.0, -1e-20, -80.0, -1e4])
def test_log_loss_is_finite_at_any_logit(z):
    # log(1 + exp(-|z|)) if the prediction is right, |z| more if it is wrong.
    small = math.log1p(math.exp(-abs(z)))
    for label in (0, 1):
        towards = abs(z) if label else -abs(z)
        assert log_loss([towards], [label]) == pytest.approx(small, rel=1e-14)
        assert log_loss([-towards], [label]) == pytest.approx(abs(z) + small)


def test_sums_are_kept_in_float64():
    # In float32 a sum of ten million such terms would be off in the third digit.
    z = np.full(10**6, np.float32(0.1))
    y = np.zeros(10**6, np.float32)
    expected = math.log1p(math.exp(float(np.float32(0.1))))
    assert log_loss(z, y) == pytest.approx(expected, rel=1e-12)


def test_soft_labels_are_a_positive_beside_a_negative():
    z, _, _ = _draw(60)
    soft = np.random.default_rng(1).random(60)
    both = np.concatenate([z, z])
    hard = np.repeat([1.0, 0.0], 60)
    weights = np.concatenate([soft, 1.0 - soft])
    for metric in (
        log_loss,
        normalized_entropy,
        accuracy,
        calibration,
        expected_calibration_error,
        auc,
        average_precision,
        precision_recall_f1,
    ):
        assert metric(z, soft) == pytest.approx(metric(both, hard, weights), rel=1e-12)


# The constant predictor, and a calibrated one.


@pytest.mark.parametrize("weighted", [False, True])
def test_the_base_rate_has_entropy_and_calibration_one(weighted):
    _, y, w = _draw(weights=weighted)
    rate = np.average(y, weights=w)
    z = np.full(len(y), math.log(rate / (1.0 - rate)))
    assert normalized_entropy(z, y, w) == pytest.approx(1.0, rel=1e-12)
    assert calibration(z, y, w) == pytest.approx(1.0, rel=1e-12)
    assert expected_calibration_error(z, y, w) == pytest.approx(0.0, abs=1e-12)
    assert auc(z, y, w) == 0.5


def test_accuracy_counts_a_half_as_zero():
    assert accuracy([0.0, 0.0, 1e-30, -1e-30], [0, 1, 1, 0]) == 0.75


def test_calibration_error_is_the_mean_gap_of_ten_bins():
    z, y, _ = _draw(400)
    order = np.argsort(z)
    p = sigmoid(z)[order].reshape(10, 40)
    gaps = np.abs(p.mean(1) - y[order].reshape(10, 40).mean(1))
    assert expected_calibration_error(z, y) == pytest.approx(gaps.mean(), rel=1e-9)


def test_calibration_error_does_not_depend_on_the_order_of_ties():
    z, y, w = _draw(403, ties=True, weights=True)
    order = np.random.default_rng(2).permutation(len(z))
    error = expected_calibration_error(z, y, w)
    assert error > 0.01
    shuffled = expected_calibration_error(z[order], y[order], w[order])
    assert shuffled == pytest.approx(error, rel=1e-9)


# The order of the scores.


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_auc_is_the_count_of_ordered_pairs(ties, weighted):
    z, y, w = _draw(150, ties=ties, weights=weighted)
    expected = _pair_count(z, y, np.ones(150) if w is None else w)
    assert auc(z, y, w) == pytest.approx(expected, rel=1e-12)


def test_auc_depends_on_the_order_alone():
    z, y, _ = _draw(ties=True)
    area = auc(z, y)
    for scores in (3.0 * z - 7.0, np.exp(z), np.arctan(z), z**3):
        assert auc(scores, y) == area
    assert auc(-z, y) == pytest.approx(1.0 - area, rel=1e-12)
    assert auc([-np.inf, 0.0, np.inf], [0, 0, 1]) == 1.0


@pytest.mark.parametrize("ties", [False, True])
def test_curves_are_those_of_scikit_learn(ties):
    reference = pytest.importorskip("sklearn.metrics")
    z, y, w = _draw(300, ties=ties, weights=True)
    for ours, theirs in (
        (auc, reference.roc_auc_score),
        (average_precision, reference.average_precision_score),
    ):
        expected = theirs(y, z, sample_weight=w)
        assert ours(z, y, w) == pytest.approx(expected, rel=1e-12)
    called = z > 0
    expected = [
        metric(y, called, sample_weight=w)
        for metric in (
            reference.precision_score,
            reference.recall_score,
            reference.f1_score,
        )
    ]
    assert precision_recall_f1(z, y, w) == pytest.approx(expected, rel=1e-12)


# Dropped negatives.


def test_subsampled_odds_are_corrected():
    # Of 1000 negatives and 100 positives, a quarter of the negatives is left.
    trained = np.log(100 / 250)
    corrected = undo_subsampling([trained], 0.75)
    assert corrected.dtype == np.float64
    assert corrected[0] == pytest.approx(math.log(100 / 1000), rel=1e-12)
    labels = np.repeat([0.0, 1.0], [1000, 100])
    assert calibration(np.full(1100, corrected[0]), labels) == pytest.approx(1.0)
    np.testing.assert_array_equal(undo_subsampling([1.5], 0.0), [1.5])


# Rows that do not count, and one class.


def test_padding_is_invisible():
    z, y, _ = _draw()
    padded = np.append(z, [np.nan, np.inf, 3.0]), np.append(y, [7.0, np.nan, 1.0])
    weights = np.append(np.ones(len(z)), np.zeros(3))
    for metric in (
        log_loss,
        normalized_entropy,
        accuracy,
        calibration,
        expected_calibration_error,
        auc,
        average_precision,
        precision_recall_f1,
    ):
        assert metric(*padded, weights) == metric(z, y)
    alone, with_padding = BinaryMetrics(), BinaryMetrics()
    assert with_padding.update(*padded, weights).result() == alone.update(z, y).result()
    with_padding.update([np.nan], [0.0], [0.0])
    assert with_padding.result() == alone.result()


@pytest.mark.filterwarnings("ignore:.* is undefined without:RuntimeWarning")
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_leaves_the_order_undefined(label):
    z, y = [0.3, -0.2], [label, label]
    with pytest.warns(RuntimeWarning, match="AUC is undefined without two classes"):
        assert math.isnan(auc(z, y))
    with pytest.warns(RuntimeWarning, match="normalized entropy is undefined"):
        assert math.isnan(normalized_entropy(z, y))
    with pytest.warns(RuntimeWarning, match="AUC is undefined"):
        result = BinaryMetrics().update(z, y).result()
    assert math.isnan(result["auc"]) and math.isnan(result["auc_error_bound"])
    assert result["loss"] == pytest.approx(log_loss(z, y), rel=1e-15)
    if label == 0:
        with pytest.warns(RuntimeWarning, match="calibration is undefined"):
            assert math.isnan(calibration(z, y))
        with pytest.warns(RuntimeWarning, match="average precision is undefined"):
            assert math.isnan(average_precision(z, y))
        with pytest.warns(RuntimeWarning, match="recall is undefined"):
            assert math.isnan(precision_recall_f1(z, y)[1])
    else:
        assert calibration(z, y) == pytest.approx(sigmoid(np.array(z)).mean())


# Sums over batches.


@pytest.mark.parametrize("weighted", [False, True])
def test_merged_parts_are_one_pass(weighted):
    z, y, w = _draw(1000, weights=weighted)
    whole = BinaryMetrics().update(z, y, w)
    parts = []
    for device in range(3):
        part = BinaryMetrics()
        for batch in range(4):
            rows = slice(3 * batch + device, None, 12)
            part.update(z[rows], y[rows], None if w is None else w[rows])
        parts.append(part)
    before = parts[1].totals.copy()
    merged = BinaryMetrics()
    for part in parts:
        merged.merge(part)
    assert (parts[1].totals == before).all()
    # Counts are exact, sums of reals are so up to their order.
    np.testing.assert_array_equal(merged.histogram[:2], whole.histogram[:2])
    expected = whole.result()
    assert merged.result() == pytest.approx(expected, rel=1e-12)
    assert {"auc", "accuracy", "f1"} <= {
        name for name, value in expected.items() if merged.result()[name] == value
    }


def test_the_stream_is_the_exact_metric():
    z, y, w = _draw(3000, weights=True)
    result = BinaryMetrics().update(z, y, w).result()
    precision, recall, f1 = precision_recall_f1(z, y, w)
    exact = {
        "weight": w.sum(),
        "loss": log_loss(z, y, w),
        "normalized_entropy": normalized_entropy(z, y, w),
        "accuracy": accuracy(z, y, w),
        "calibration": calibration(z, y, w),
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }
    for name, value in exact.items():
        assert result[name] == pytest.approx(value, rel=1e-12), name
    assert result["average_precision"] == pytest.approx(
        average_precision(z, y, w), abs=1e-3
    )
    assert result["calibration_error"] == pytest.approx(
        expected_calibration_error(z, y, w), abs=1e-4
    )


@pytest.mark.parametrize("bins", [1, 2, 7, 64, 4096, binary_metrics.DEFAULT_BINS])
def test_the_histogram_keeps_its_bound(bins):
    z, y, w = _draw(2000, weights=True)
    result = BinaryMetrics(bins).update(z, y, w).result()
    error = abs(result["auc"] - auc(z, y, w))
    assert error <= result["auc_error_bound"] * (1 + 1e-9)
    if bins == 1:
        assert result["auc"] == result["auc_error_bound"] == 0.5
    if bins == 2**16:
        assert result["auc_error_bound"] < 1e-4


def test_the_bound_is_attained():
    # Both pairs of one bin are in order, so that each half counted is one missed.
    result = BinaryMetrics(1).update([-1.0, 1.0], [0, 1]).result()
    assert result["auc"] + result["auc_error_bound"] == 1.0


def test_certain_predictions_fall_into_the_last_bin():
    metrics = BinaryMetrics(4).update([-1e4, 1e4, 0.0], [0, 1, 1])
    np.testing.assert_array_equal(metrics.histogram[0], [1, 0, 0, 0])
    np.testing.assert_array_equal(metrics.histogram[1], [0, 0, 1, 1])


# Bad input.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_loss([0.0, np.nan], [0, 1]), r"logits\[1\] is nan; it must be fi"),
        (lambda: log_loss([np.inf], [1]), r"logits\[0\] is inf; it must be finite"),
        (lambda: auc([0.0, np.nan], [0, 1]), r"scores\[1\] is nan; it must be a numb"),
        (lambda: accuracy([0.0, 1.0], [0, 2]), r"labels\[1\] is 2.0; .* in \[0, 1\]"),
        (lambda: auc([0.0, 1.0], [0]), "labels must have one value for each of 2 scor"),
        (lambda: log_loss([0.0], [0], [-1.0]), r"weights\[0\] is -1.0; it must be >="),
        (lambda: log_loss([0.0], [0], [np.nan]), r"weights\[0\] is nan"),
        (lambda: log_loss([], []), "no row has a weight"),
        (lambda: auc([1.0], [1], [0.0]), "no row has a weight"),
        (lambda: BinaryMetrics().result(), "there are no rows to evaluate"),
        (lambda: BinaryMetrics(0), "bins must be >= 1, got 0"),
        (
            lambda: BinaryMetrics(4).merge(BinaryMetrics(8)),
            "cannot merge 8 bins into 4",
        ),
        (lambda: expected_calibration_error([0.0], [0], bins=0), "bins must be >= 1"),
        (lambda: undo_subsampling([0.0], 1.0), r"rate must lie in \[0, 1\), got 1.0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_refused_batch_adds_nothing():
    metrics = BinaryMetrics().update([1.0], [1])
    with pytest.raises(ValueError, match="logits"):
        metrics.update([1.0, np.nan], [1, 1])
    assert metrics.totals[0] == 1.0
