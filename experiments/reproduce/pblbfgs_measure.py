"""Measures one method on one logistic problem: epochs and seconds to gaps.

Progressive batching is run twice. First the device loop is stopped again and again, so
that F of all samples can be evaluated: after every iteration, or after several where
all of them together make no twentieth of an epoch. Then, for each gap, the loop is run
without a stop to the iteration that reached it, and that is timed.
"""

import time
from typing import Any

import jax
import numpy as np

from experiments.logistic.baselines import run_lbfgs, run_stochastic
from experiments.logistic.fit_records import Fit
from experiments.logistic.pb_lbfgs_fit import make_solver
from experiments.logistic.problem import LogisticProblem
from experiments.reproduce.pblbfgs_arms import GAPS, ConvexArm
from experiments.reproduce.pblbfgs_stops import MOST_ITERATIONS, advance
from experiments.reproduce.pblbfgs_store import Run
from experiments.reproduce.pblbfgs_trace import Point, curve_of, first_within

CERTIFICATE_EPOCHS = 200.0
TOL = 1e-8
_LOOKS_PER_EPOCH = 20


class ProgressiveRuns:
    """One solver on one problem, compiled once for all seeds."""

    def __init__(self, problem: LogisticProblem, optimum: float, arm: ConvexArm):
        """Makes the solver.

        Args:
          problem: to solve from w = 0.
          optimum: F*.
          arm: of the kind `pb_lbfgs`.
        """
        options = dict(arm.options)
        if options.get("batch_size") == "N":
            options["batch_size"] = problem.num_samples
        self._problem, self._optimum, self._arm = problem, optimum, arm
        self._solver = make_solver(
            problem,
            max_epochs=CERTIFICATE_EPOCHS,
            max_iterations=MOST_ITERATIONS,
            tol=TOL,
            **options,
        )

    def compile(self) -> None:
        """Compiles everything that the runs need."""
        self.advance(self.start(seed=0), 1)

    def measure(self, seed: int, *, last_gap: float = 0.0) -> Run:
        """One run.

        Args:
          seed: of the samples drawn.
          last_gap: the run ends there and is not timed. 0: it goes on to the
            certificate, or to the end of the arm's epochs.

        Returns:
          Epochs, iterations, work and perhaps seconds to each of `GAPS`, the curve and
          the end.
        """
        started = time.perf_counter()
        start = jax.block_until_ready(self.start(seed))
        init_seconds = time.perf_counter() - started
        points, result = self.look(start, last_gap)
        found = summary_of(points)
        if last_gap > 0.0:
            return found
        seconds = [
            None if iterations is None else self._seconds(start, iterations)
            for iterations in found["iterations"]
        ]
        if self._arm.certified and result.reason == "max_iterations":
            result = self.advance(result.state, MOST_ITERATIONS - 1)
        return {
            **found,
            "seconds": seconds,
            "init_seconds": init_seconds,
            "curve": curve_of(points),
            "reason": _reason(result.reason),
            "grad_norm": self._problem.evaluate(result.params).grad_norm,
            "end_epochs": result.grad_evals / self._problem.num_samples,
        }

    def start(self, seed: int) -> Any:
        """The solver's state before the first iteration."""
        params = self._problem.initial_params()
        return self._solver.init(params, jax.random.key(seed))

    def advance(self, state: Any, iterations: int) -> Any:
        """The solver's result after at most so many more iterations."""
        return advance(self._solver, state, iterations)

    def look(self, state: Any, last_gap: float) -> tuple[list[Point], Any]:
        """Runs with stops, at each of which the gap is taken.

        Args:
          state: from `start`.
          last_gap: ends the run, as do the epochs of the arm.

        Returns:
          The points and the solver's last result.
        """
        rows = self._problem.num_samples
        points = [Point(0, 0.0, self._gap(state.params))]
        iteration, size = 0, int(state.window.size)
        while True:
            stride = max(1, rows // (_LOOKS_PER_EPOCH * size))
            result = self.advance(state, stride)
            state, history = result.state, result.history
            iteration, size = iteration + len(history.b), int(history.b[-1])
            point = Point(
                iteration,
                result.grad_evals / rows,
                self._gap(result.params),
                size,
                float(history.work[-1]) / rows,
            )
            points.append(point)
            ended = result.reason != "max_iterations"
            if ended or point.gap <= last_gap or point.epochs > self._arm.max_epochs:
                return points, result

    def _gap(self, params: jax.Array) -> float:
        return self._problem.evaluate(params).value - self._optimum

    def _seconds(self, start: Any, iterations: int) -> float:
        started = time.perf_counter()
        jax.block_until_ready(self.advance(start, iterations).params)
        return time.perf_counter() - started


def _reason(reason: str) -> str:
    """The solver's reason; a run that was stopped from here has used its epochs."""
    return "max_epochs" if reason == "max_iterations" else reason


def summary_of(points: list[Point]) -> Run:
    """Iterations, epochs and work to each of `GAPS`; None where it was not reached."""
    reached = [first_within(points, gap) for gap in GAPS]
    return {
        name: [None if point is None else getattr(point, name) for point in reached]
        for name in ("iterations", "epochs", "work")
    }


def measure_peer(
    problem: LogisticProblem,
    optimum: float,
    arm: ConvexArm,
    seed: int,
    learning_rate: float | None = None,
) -> Run:
    """One run of `optax.lbfgs`, SG or SVRG.

    Args:
      problem: to solve from w = 0.
      optimum: F*.
      arm: of one of these kinds.
      seed: of the order of the samples.
      learning_rate: of SG and SVRG.

    Returns:
      As `ProgressiveRuns.measure`.
    """
    if arm.kind == "lbfgs":
        fit = run_lbfgs(problem, max_epochs=arm.max_epochs, tol=TOL, optimum=optimum)
    else:
        fit = run_stochastic(
            problem,
            arm.kind,
            learning_rate,
            batch_size=1,
            seed=seed,
            max_epochs=arm.max_epochs,
            tol=TOL,
            optimum=optimum,
        )
    points = points_of(fit)
    reached = [first_within(points, gap) for gap in GAPS]
    return {
        **summary_of(points),
        "seconds": [None if point is None else point.seconds for point in reached],
        "init_seconds": 0.0,
        "curve": curve_of(points),
        "reason": fit.reason,
        "grad_norm": fit.final.grad_norm,
        "end_epochs": fit.final.epochs,
    }


def points_of(fit: Fit) -> list[Point]:
    """The records of a peer; all of its work is gradients."""
    return [
        Point(
            record.iteration,
            record.epochs,
            record.gap if np.isfinite(record.gap) else np.inf,
            work=record.epochs,
            seconds=record.seconds,
        )
        for record in fit.records
    ]
