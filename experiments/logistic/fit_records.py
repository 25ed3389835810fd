"""What a fit leaves behind: where it stood after each iteration, and how it ended."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from experiments.logistic.problem import LogisticProblem

# Why a fit ended. The first is success; the second means that a budget was used up.
REASONS = (
    "certified",
    "max_epochs",
    "max_iterations",
    "max_time",
    "noise_limited",
    "line_search",
    "stalled",
    "diverged",
)


class Record(NamedTuple):
    """Where a fit stood.

    Attributes:
      iteration: iterations before, 0 for the start.
      epochs: per-sample gradients evaluated so far, over N.
      value: F, of all samples.
      gap: F - F*; NaN where F* is not known.
      grad_norm: largest entry of the gradient of F.
      seconds: spent in the method so far, without compilation and without the
        evaluation of this record.
      details: what else a method tells of an iteration, by name.
    """

    iteration: int
    epochs: float
    value: float
    gap: float
    grad_norm: float
    seconds: float
    details: Mapping[str, float] = {}

    def as_row(self) -> dict[str, Any]:
        """All of it in one flat mapping."""
        row = self._asdict()
        return row | row.pop("details")


class Fit(NamedTuple):
    """A finished fit.

    Attributes:
      method: that made it.
      params: w at its end, (d,).
      records: in order, from the start.
      reason: one of `REASONS`.
    """

    method: str
    params: jax.Array
    records: list[Record]
    reason: str

    @property
    def converged(self) -> bool:
        """Whether the gradient of F was seen to be within the tolerance."""
        return self.reason == "certified"

    @property
    def final(self) -> Record:
        """The last record."""
        return self.records[-1]


OnRecord = Callable[[Record], None]


class FitLog:
    """Collects the records of one fit."""

    def __init__(
        self,
        problem: LogisticProblem,
        optimum: float | None = None,
        on_record: OnRecord | None = None,
    ):
        """Starts empty.

        Args:
          problem: evaluates F and its gradient for each record, in float64.
          optimum: F*, for the gaps.
          on_record: called with each new record.
        """
        self.records: list[Record] = []
        self._problem = problem
        self._optimum = float("nan") if optimum is None else optimum
        self._on_record = on_record

    def add(
        self,
        params: jax.Array,
        *,
        iteration: int,
        epochs: float,
        seconds: float,
        details: Mapping[str, float] | None = None,
    ) -> Record:
        """Evaluates a point and keeps its record.

        Args:
          params: w.
          iteration: see `Record`, as are the others.
          epochs: of gradients.
          seconds: in the method.
          details: of the iteration.

        Returns:
          The record.
        """
        value, grad_norm = self._problem.evaluate(params)
        record = Record(
            iteration,
            epochs,
            value,
            value - self._optimum,
            grad_norm,
            seconds,
            dict(details or {}),
        )
        self.records.append(record)
        if self._on_record is not None:
            self._on_record(record)
        return record


def epochs_to_reach(records: list[Record], gap: float) -> float | None:
    """Epochs at the first record whose gap is at most `gap`; None if there is none."""
    return next((r.epochs for r in records if r.gap <= gap), None)
