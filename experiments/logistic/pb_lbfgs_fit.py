"""Progressive-batching L-BFGS on a logistic problem, with the records of its peers."""

import math
import time
from typing import Any

import jax

from experiments.logistic.fit_records import Fit, FitLog, OnRecord
from experiments.logistic.problem import LogisticProblem
from optim_jax.quasi_newton import pb_lbfgs

# What the solver calls a number where the records of all methods have another name.
_RENAMED = {"k": None, "b": "batch_size", "alpha": "step_size", "epochs": None}


def make_solver(
    problem: LogisticProblem,
    *,
    max_epochs: float = 100.0,
    tol: float = 1e-8,
    **options: Any,
) -> Any:
    """The solver for a problem.

    Args:
      problem: to solve.
      max_epochs: of gradients.
      tol: on the largest entry of the gradient of F.
      **options: of `optim_jax.pb_lbfgs`.

    Raises:
      ValueError: for an option out of its range.
    """
    return pb_lbfgs(
        problem.per_sample_loss,
        problem.data,
        max_epochs=max_epochs,
        tol=tol,
        **options,
    )


def run_pb_lbfgs(
    problem: LogisticProblem,
    *,
    seed: int = 0,
    max_epochs: float = 100.0,
    tol: float = 1e-8,
    optimum: float | None = None,
    on_record: OnRecord | None = None,
    **options: Any,
) -> Fit:
    """Runs progressive batching from w = 0; a record per iteration.

    The solver is stepped from the host, so that F of all samples is known after each
    iteration; that evaluation counts neither as gradients nor as time.

    Args:
      problem: to solve.
      seed: of the samples drawn.
      max_epochs: of gradients, checked after each iteration.
      tol: ends the fit as certified when the batch is all samples and no entry of the
        gradient is above it.
      optimum: F*, for the gaps.
      on_record: called with each new record.
      **options: of `optim_jax.pb_lbfgs`.

    Returns:
      The fit; the details of a record are the solver's own numbers of the iteration.

    Raises:
      ValueError: for an option out of its range.
    """
    asked = options.get("max_time")
    max_time = math.inf if asked is None else asked
    solver = make_solver(problem, max_epochs=max_epochs, tol=tol, **options)
    params, key = problem.initial_params(), jax.random.key(seed)
    # Compiles everything that the timed run below needs.
    jax.block_until_ready(solver.step(solver.init(params, key)))
    log = FitLog(problem, optimum, on_record)
    log.add(params, iteration=0, epochs=0.0, seconds=0.0)
    started = time.perf_counter()
    state = jax.block_until_ready(solver.init(params, key))
    seconds = time.perf_counter() - started
    while not int(state.reason) and seconds < max_time:
        started = time.perf_counter()
        state, info = jax.block_until_ready(solver.step(state))
        seconds += time.perf_counter() - started
        numbers = {name: x.item() for name, x in jax.device_get(info)._asdict().items()}
        log.add(
            state.params,
            iteration=numbers["k"] + 1,
            epochs=numbers["grad_evals"] / problem.num_samples,
            seconds=seconds,
            details=_details(numbers),
        )
    # Of a state with a reason to stop this is the result, without an iteration.
    reason = solver.run(state=state).reason if int(state.reason) else "max_time"
    return Fit("pb_lbfgs", state.params, log.records, reason)


def _details(numbers: dict[str, float]) -> dict[str, float]:
    """The solver's numbers, without those that every record has."""
    renamed = {_RENAMED.get(name, name): x for name, x in numbers.items()}
    renamed.pop(None)
    # F and its gradient of the sample, beside those of all samples.
    for name in ("value", "grad_norm"):
        renamed[f"sample_{name}"] = renamed.pop(name)
    return renamed
