"""Metrics of a model that predicts the probability of a binary label.

Everything is computed on the host in float64. A row has a logit z, the probability
p = 1 / (1 + exp(-z)), a label y and a weight w; rows of weight 0 are padding and may
hold anything. A label between 0 and 1 counts as a positive of weight w y beside a
negative of weight w (1 - y), in every metric: with true probabilities for labels the
results are expectations.

The functions see all rows at once and are exact. `BinaryMetrics` sees them batch by
batch and keeps sums, which those of other batches or devices can be added to.
"""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

DEFAULT_BINS = 2**16


class _Groups(NamedTuple):
    """Rows with tied scores, taken together, by increasing score."""

    negative: np.ndarray  # weight of the negatives
    positive: np.ndarray
    predicted: np.ndarray  # sum of w p


def log_loss(logits: Any, labels: Any, weights: Any = None) -> float:
    """Mean cross-entropy in nats.

    Args:
      logits: `[n]` or `[n, 1]`, finite.
      labels: of the same size, in [0, 1].
      weights: of the same size, >= 0; None means 1.

    Returns:
      The weighted mean.

    Raises:
      ValueError: sizes differ, a value is out of range, or no row has a weight.
    """
    z, y, w = _rows("logits", logits, labels, weights)
    return float(np.sum(w * _cross_entropy(z, y)) / np.sum(w))


def normalized_entropy(logits: Any, labels: Any, weights: Any = None) -> float:
    """`log_loss` over the entropy of the base rate of the same rows.

    1 is no better than the constant prediction of the base rate (He et al., 2014,
    "Practical Lessons from Predicting Clicks on Ads at Facebook").

    Arguments and errors are those of `log_loss`.

    Returns:
      The ratio; NaN, with a warning, if there is only one class.
    """
    z, y, w = _rows("logits", logits, labels, weights)
    loss = float(np.sum(w * _cross_entropy(z, y)) / np.sum(w))
    return _normalized(loss, float(np.sum(w * y) / np.sum(w)))


def accuracy(logits: Any, labels: Any, weights: Any = None) -> float:
    """Share of rows whose label is that of p > 0.5; p = 0.5 predicts 0.

    Arguments and errors are those of `log_loss`.

    Returns:
      The weighted share.
    """
    z, y, w = _rows("logits", logits, labels, weights)
    return float(np.sum(w * np.where(z > 0, y, 1.0 - y)) / np.sum(w))


def calibration(logits: Any, labels: Any, weights: Any = None) -> float:
    """Predicted over observed positives, sum of p over sum of y; 1 is calibrated.

    Arguments and errors are those of `log_loss`.

    Returns:
      The ratio; NaN, with a warning, if there is no positive.
    """
    z, y, w = _rows("logits", logits, labels, weights)
    return _ratio("calibration", np.sum(w * sigmoid(z)), np.sum(w * y), "positives")


def expected_calibration_error(
    logits: Any, labels: Any, weights: Any = None, bins: int = 10
) -> float:
    """Mean distance of predicted and observed rate over bins of equal mass.

    Rows are ordered by p and cut into `bins` parts of the same weight; a row, or a
    group of rows with the same p, that a cut falls into belongs to both sides in
    proportion. So neither the order of the rows nor splitting one matters.

    Args:
      logits: see `log_loss`.
      labels: see `log_loss`.
      weights: see `log_loss`.
      bins: number of parts, >= 1.

    Returns:
      The error, in [0, 1].

    Raises:
      ValueError: see `log_loss`; `bins` is out of range.
    """
    if bins < 1:
        raise ValueError(f"bins must be >= 1, got {bins}")
    z, y, w = _rows("logits", logits, labels, weights)
    return _calibration_error(_tied(z, y, w, sigmoid(z)), bins)


def auc(scores: Any, labels: Any, weights: Any = None) -> float:
    """Area under the ROC curve: the chance that a positive outscores a negative.

    Exact: a sort, tied scores counted half (the average rank).

    Args:
      scores: `[n]` or `[n, 1]`; logits, probabilities or anything that orders rows.
        Infinities are allowed.
      labels: see `log_loss`.
      weights: see `log_loss`.

    Returns:
      The area; NaN, with a warning, if there is only one class.

    Raises:
      ValueError: see `log_loss`; a score is NaN.
    """
    return _area(_tied(*_rows("scores", scores, labels, weights)))


def average_precision(scores: Any, labels: Any, weights: Any = None) -> float:
    """Precision averaged over recall: the area under that curve, by steps.

    Args:
      scores: see `auc`.
      labels: see `log_loss`.
      weights: see `log_loss`.

    Returns:
      The sum of precision times growth of recall over the distinct scores, from the
      highest; NaN, with a warning, if there is no positive.

    Raises:
      ValueError: see `auc`.
    """
    return _average_precision(_tied(*_rows("scores", scores, labels, weights)))


def precision_recall_f1(
    logits: Any, labels: Any, weights: Any = None
) -> tuple[float, float, float]:
    """Precision, recall and their harmonic mean where p > 0.5 predicts a positive.

    Arguments and errors are those of `log_loss`.

    Returns:
      The three; one whose denominator is 0 is NaN, with a warning.
    """
    z, y, w = _rows("logits", logits, labels, weights)
    called = w * (z > 0)
    return _precision_recall_f1(np.sum(called * y), np.sum(called), np.sum(w * y))


def undo_subsampling(logits: Any, rate: float) -> np.ndarray:
    r"""Logits for all rows from those of a model trained on a part of the negatives.

    Dropping a share r of the negatives divides the odds of a negative, so that the
    model's own log-odds come out too high by :math:`-\ln(1 - r)`.

    Args:
      logits: of a model trained where a row of label 0 was dropped with probability
        `rate`.
      rate: r in [0, 1).

    Returns:
      float64, the logits plus ln(1 - r).

    Raises:
      ValueError: `rate` is out of range.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must lie in [0, 1), got {rate}")
    return np.asarray(logits, np.float64) + math.log1p(-rate)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-z)) in float64, without overflow."""
    logits = np.asarray(logits, np.float64)
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


class BinaryMetrics:
    """Sums of the metrics over batches; those of several devices can be merged.

    All that is kept is two arrays of sums, so adding the arrays of several processes
    is merging them. Log loss, accuracy, calibration, precision, recall and F1 are
    those of one pass over all rows. What depends on the order of the scores comes from
    histograms over p: rows in one bin count as tied. For the AUC the error of that is
    at most the result `auc_error_bound`.

    Attributes:
      totals: float64 `[6]`: sums of weight, loss, positives, predicted positives
        (sum of w p), rows with p > 0.5, and positives among those.
      histogram: float64 `[3, bins]`: weight of negatives, of positives, and sum of
        w p, by p.
    """

    def __init__(self, bins: int = DEFAULT_BINS):
        """Starts with no rows.

        Args:
          bins: bins of equal width on [0, 1], >= 1.

        Raises:
          ValueError: `bins` is out of range.
        """
        if bins < 1:
            raise ValueError(f"bins must be >= 1, got {bins}")
        self.totals = np.zeros(6)
        self.histogram = np.zeros((3, bins))

    def update(self, logits: Any, labels: Any, weights: Any = None) -> "BinaryMetrics":
        """Adds a batch.

        Args:
          logits: see `log_loss`.
          labels: see `log_loss`.
          weights: see `log_loss`; here all of them may be 0.

        Returns:
          Itself.

        Raises:
          ValueError: see `log_loss`. Nothing has been added then.
        """
        z, y, w = _rows("logits", logits, labels, weights, may_be_empty=True)
        p = sigmoid(z)
        bins = self.histogram.shape[1]
        index = np.minimum((p * bins).astype(np.int64), bins - 1)
        called = w * (z > 0)
        columns = (w, w * _cross_entropy(z, y), w * y, w * p, called, called * y)
        self.totals += [np.sum(column) for column in columns]
        for row, column in enumerate((w * (1.0 - y), w * y, w * p)):
            self.histogram[row] += np.bincount(index, column, bins)
        return self

    def merge(self, other: "BinaryMetrics") -> "BinaryMetrics":
        """Adds the rows of another accumulator, which stays as it is.

        Args:
          other: with the same number of bins.

        Returns:
          Itself.

        Raises:
          ValueError: the numbers of bins differ.
        """
        bins, others = self.histogram.shape[1], other.histogram.shape[1]
        if bins != others:
            raise ValueError(f"cannot merge {others} bins into {bins}")
        self.totals += other.totals
        self.histogram += other.histogram
        return self

    def result(self) -> dict[str, float]:
        """The metrics of all rows so far.

        Returns:
          `weight`, `loss`, `normalized_entropy`, `accuracy`, `auc`,
          `auc_error_bound`, `average_precision`, `calibration`,
          `calibration_error` (ten bins of equal mass), `precision`, `recall`, `f1`;
          NaN, with a warning, where a single class leaves one undefined.

        Raises:
          ValueError: no row has had a weight.
        """
        weight, loss, positive, predicted, called, hits = self.totals.tolist()
        if weight == 0:
            raise ValueError("there are no rows to evaluate")
        groups = _Groups(*self.histogram)
        precision, recall, f1 = _precision_recall_f1(hits, called, positive)
        right = hits + (weight - positive) - (called - hits)
        return {
            "weight": weight,
            "loss": loss / weight,
            "normalized_entropy": _normalized(loss / weight, positive / weight),
            "accuracy": right / weight,
            "auc": _area(groups),
            "auc_error_bound": _area_error_bound(groups),
            "average_precision": _average_precision(groups),
            "calibration": _ratio("calibration", predicted, positive, "positives"),
            "calibration_error": _calibration_error(groups, 10),
            "precision": precision,
            "recall": recall,
            "f1": f1,
        }


def _rows(
    name: str, scores: Any, labels: Any, weights: Any, *, may_be_empty: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows that count, flat in float64."""
    scores = np.asarray(scores, np.float64)
    labels = np.asarray(labels, np.float64)
    ones = np.ones(scores.size) if weights is None else weights
    weights = np.asarray(ones, np.float64)
    for other, values in (("labels", labels), ("weights", weights)):
        if values.size != scores.size:
            raise ValueError(
                f"{other} must have one value for each of {scores.size} {name}, got "
                f"shape {values.shape} beside {scores.shape}"
            )
    scores, labels, weights = scores.ravel(), labels.ravel(), weights.ravel()
    _require("weights", weights, weights, (weights >= 0) & np.isfinite(weights), ">= 0")
    counts = weights > 0
    if name == "logits":
        _require(name, scores, counts, np.isfinite(scores), "finite")
    else:
        _require(name, scores, counts, ~np.isnan(scores), "a number")
    _require("labels", labels, counts, (labels >= 0) & (labels <= 1), "in [0, 1]")
    if not may_be_empty and not counts.any():
        raise ValueError(f"no row has a weight: there are no {name} to evaluate")
    return scores[counts], labels[counts], weights[counts]


def _require(
    name: str, values: np.ndarray, counts: np.ndarray, good: np.ndarray, allowed: str
) -> None:
    bad = ~good & (counts != 0)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"{name}[{row}] is {values[row]}; it must be {allowed}")


def _cross_entropy(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(z, 0.0) - z * y + np.log1p(np.exp(-np.abs(z)))


def _tied(
    scores: np.ndarray, y: np.ndarray, w: np.ndarray, p: np.ndarray | None = None
) -> _Groups:
    _, group = np.unique(scores, return_inverse=True)
    p = np.zeros_like(w) if p is None else p
    return _Groups(*(np.bincount(group, v) for v in (w * (1.0 - y), w * y, w * p)))


def _area(groups: _Groups) -> float:
    negative, positive = groups.negative, groups.positive
    pairs = np.sum(negative) * np.sum(positive)
    # Negatives below, and half of those that tie.
    below = np.cumsum(negative) - 0.5 * negative
    return _ratio("AUC", np.sum(positive * below), pairs, "two classes")


def _area_error_bound(groups: _Groups) -> float:
    # A pair in one bin is counted as a half and may be worth nothing or one.
    negative, positive = groups.negative, groups.positive
    pairs = np.sum(negative) * np.sum(positive)
    return float(0.5 * np.sum(negative * positive) / pairs) if pairs else math.nan


def _average_precision(groups: _Groups) -> float:
    positive = groups.positive[::-1]
    above = np.cumsum((groups.negative + groups.positive)[::-1])
    precision = np.cumsum(positive) / np.where(above > 0, above, 1.0)
    total = np.sum(positive)
    return _ratio("average precision", np.sum(positive * precision), total, "positives")


def _calibration_error(groups: _Groups, bins: int) -> float:
    masses = np.cumsum(groups.negative + groups.positive)
    cuts = np.linspace(0.0, masses[-1], bins + 1)
    # Predicted minus observed positives among the lowest scores, by their mass.
    excess = np.cumsum(groups.predicted - groups.positive)
    at_cuts = np.interp(cuts, np.append(0.0, masses), np.append(0.0, excess))
    return float(np.sum(np.abs(np.diff(at_cuts))) / masses[-1])


def _precision_recall_f1(
    hits: float, called: float, positive: float
) -> tuple[float, float, float]:
    return (
        _ratio("precision", hits, called, "rows predicted positive"),
        _ratio("recall", hits, positive, "positives"),
        _ratio("F1", 2.0 * hits, called + positive, "positives of either kind"),
    )


def _normalized(loss: float, rate: float) -> float:
    entropy = -sum(q * math.log(q) for q in (rate, 1.0 - rate) if q > 0)
    return _ratio("normalized entropy", loss, entropy, "two classes")


def _ratio(name: str, part: float, whole: float, needed: str) -> float:
    if whole > 0:
        return float(part / whole)
    warnings.warn(f"{name} is undefined without {needed}", RuntimeWarning, stacklevel=4)
    return math.nan
