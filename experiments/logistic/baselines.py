r"""Peers of progressive batching: SGD, SVRG, Adam and full-batch L-BFGS.

The stochastic ones go through the samples in a new random order in every epoch, b at a
time; N mod b samples are left out of an epoch. An epoch of each is one program on the
device, and its learning rate is an argument of it.

* `sgd`: :math:`w \leftarrow w - \eta \nabla F_B(w)`;
* `adam`: Optax's, with its default averages;
* `svrg` (Johnson and Zhang, 2013): :math:`w \leftarrow w - \eta (\nabla F_B(w) -
  \nabla F_B(\tilde w) + \nabla F(\tilde w))` for one pass over the samples, with the
  last iterate of the epoch before as snapshot :math:`\tilde w`. That is three gradients
  a sample: those at the snapshot are evaluated again, not stored;
* `lbfgs`: `optax.lbfgs` with its zoom line search on F. A trial of the search is one
  gradient of each sample.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.logistic.fit_records import Fit, FitLog, OnRecord, Record
from experiments.logistic.problem import LogisticProblem, mean_loss

STOCHASTIC = ("sgd", "svrg", "adam")
DEFAULT_BATCH_SIZES = {"sgd": 1, "svrg": 1, "adam": 32}

# Iterations of L-BFGS that leave F as it is before it counts as stalled.
_PATIENCE = 3

Carry = tuple[jax.Array, Any]  # the weights, and what a method keeps besides


def check_batch_size(problem: LogisticProblem, batch_size: int) -> None:
    """Raises a `ValueError` unless the problem has that many samples."""
    if not 1 <= batch_size <= problem.num_samples:
        raise ValueError(
            f"batch_size must lie in [1, {problem.num_samples}] for the samples of "
            f"{problem.name}, got {batch_size}"
        )


def gradients_per_epoch(method: str, num_samples: int, batch_size: int) -> int:
    """Per-sample gradients that one epoch of a stochastic method evaluates."""
    drawn = num_samples // batch_size * batch_size
    return num_samples + 2 * drawn if method == "svrg" else drawn


def initial_carry(method: str, params: jax.Array) -> Carry:
    """What a stochastic method starts from."""
    return params, optax.scale_by_adam().init(params) if method == "adam" else ()


def stochastic_epoch(
    carry: Carry,
    data: Any,
    l2: jax.Array | float,
    key: jax.Array,
    learning_rate: jax.Array | float,
    *,
    method: str,
    batch_size: int,
) -> Carry:
    """One pass over the samples; pure, so that it can be compiled and vectorised.

    Args:
      carry: of the epoch before; see `initial_carry`.
      data: all samples.
      l2: the penalty.
      key: of the order of the samples.
      learning_rate: of its steps.
      method: one of `STOCHASTIC`.
      batch_size: b.

    Returns:
      The next carry.
    """
    gradient = jax.grad(mean_loss)
    num_samples = len(data.labels)
    steps = num_samples // batch_size
    order = jax.random.permutation(key, num_samples)[: steps * batch_size]
    rate = jnp.asarray(learning_rate, carry[0].dtype)
    snapshot = carry[0]
    if method == "svrg":
        whole = gradient(snapshot, data, l2)

    def step(carry: Carry, rows: jax.Array) -> tuple[Carry, None]:
        w, kept = carry
        batch = jax.tree.map(lambda leaf: leaf[rows], data)
        update = gradient(w, batch, l2)
        if method == "svrg":
            update = update - gradient(snapshot, batch, l2) + whole
        elif method == "adam":
            update, kept = optax.scale_by_adam().update(update, kept)
        return (w - rate * update, kept), None

    carry, _ = jax.lax.scan(step, carry, order.reshape(steps, batch_size))
    return carry


_epoch = jax.jit(stochastic_epoch, static_argnames=("method", "batch_size"))


def run_stochastic(
    problem: LogisticProblem,
    method: str,
    learning_rate: float,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    max_epochs: float = 100.0,
    tol: float = 1e-8,
    optimum: float | None = None,
    on_record: OnRecord | None = None,
) -> Fit:
    """Runs SGD, SVRG or Adam with a constant learning rate; a record per epoch.

    Args:
      problem: to solve, from w = 0.
      method: one of `STOCHASTIC`.
      learning_rate: > 0.
      batch_size: b; by default that of `DEFAULT_BATCH_SIZES`, N at most.
      seed: of the orders.
      max_epochs: an epoch that would go beyond is not begun.
      tol: ends the fit as certified when no entry of the gradient of F is above it.
      optimum: F*, for the gaps.
      on_record: called with each new record.

    Returns:
      The fit; it ends as `diverged` with the first F that is not finite.

    Raises:
      ValueError: for an unknown method or a number out of range.
    """
    if method not in STOCHASTIC:
        raise ValueError(
            f"method must be one of {', '.join(STOCHASTIC)}, got {method!r}"
        )
    if not 0.0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate must be > 0 and finite, got {learning_rate}")
    if batch_size is None:
        batch_size = min(DEFAULT_BATCH_SIZES[method], problem.num_samples)
    check_batch_size(problem, batch_size)
    _check_budget(max_epochs, tol)
    log = FitLog(problem, optimum, on_record)
    gradients = gradients_per_epoch(method, problem.num_samples, batch_size)
    cost = gradients / problem.num_samples
    details = {"batch_size": batch_size, "learning_rate": learning_rate}
    carry = initial_carry(method, problem.initial_params())
    key = jax.random.key(seed)
    compiled = _epoch.lower(
        carry,
        problem.data,
        problem.l2,
        key,
        learning_rate,
        method=method,
        batch_size=batch_size,
    ).compile()
    record = log.add(carry[0], iteration=0, epochs=0.0, seconds=0.0)
    epoch, seconds = 0, 0.0
    while (reason := _reason(record, max_epochs - cost, tol)) is None:
        started = time.perf_counter()
        carry = compiled(
            carry,
            problem.data,
            problem.l2,
            jax.random.fold_in(key, epoch),
            learning_rate,
        )
        jax.block_until_ready(carry)
        seconds += time.perf_counter() - started
        epoch += 1
        record = log.add(
            carry[0],
            iteration=epoch,
            epochs=epoch * cost,
            seconds=seconds,
            details=details,
        )
    return Fit(method, carry[0], log.records, reason)


@functools.partial(jax.jit, static_argnames="memory_size")
def _lbfgs_iteration(w, state, data, l2, *, memory_size):
    solver = optax.lbfgs(memory_size=memory_size)

    def objective(w):
        return mean_loss(w, data, l2)

    value, gradient = optax.value_and_grad_from_state(objective)(w, state=state)
    updates, state = solver.update(
        gradient, state, w, value=value, grad=gradient, value_fn=objective
    )
    return optax.apply_updates(w, updates), state


def run_lbfgs(
    problem: LogisticProblem,
    *,
    memory_size: int = 10,
    max_epochs: float = 100.0,
    tol: float = 1e-8,
    optimum: float | None = None,
    on_record: OnRecord | None = None,
) -> Fit:
    """Runs `optax.lbfgs` on all samples; a record per iteration.

    Args:
      problem: to solve, from w = 0.
      memory_size: pairs that are kept.
      max_epochs: as of `run_stochastic`, and so are the others.
      tol: on the gradient of F.
      optimum: F*.
      on_record: called with each new record.

    Returns:
      The fit; it ends as `stalled` when three iterations have left F as it was.

    Raises:
      ValueError: for a number out of range.
    """
    if memory_size < 1:
        raise ValueError(f"memory_size must be >= 1, got {memory_size}")
    _check_budget(max_epochs, tol)
    log = FitLog(problem, optimum, on_record)
    w = problem.initial_params()
    state = optax.lbfgs(memory_size=memory_size).init(w)
    compiled = _lbfgs_iteration.lower(
        w, state, problem.data, problem.l2, memory_size=memory_size
    ).compile()
    record = log.add(w, iteration=0, epochs=0.0, seconds=0.0)
    gradients, seconds, unchanged = 1, 0.0, 0
    while (reason := _reason(record, max_epochs, tol)) is None:
        if unchanged >= _PATIENCE:
            reason = "stalled"
            break
        started = time.perf_counter()
        w, state = compiled(w, state, problem.data, problem.l2)
        jax.block_until_ready(w)
        seconds += time.perf_counter() - started
        trials = int(optax.tree.get(state, "num_linesearch_steps"))
        gradients += trials
        before = record
        record = log.add(
            w,
            iteration=before.iteration + 1,
            epochs=float(gradients),
            seconds=seconds,
            details={
                "batch_size": problem.num_samples,
                "step_size": float(optax.tree.get(state, "learning_rate")),
                "trials": trials,
            },
        )
        unchanged = unchanged + 1 if record.value == before.value else 0
    return Fit("lbfgs", w, log.records, reason)


def _check_budget(max_epochs: float, tol: float) -> None:
    if not max_epochs > 0.0:
        raise ValueError(f"max_epochs must be > 0, got {max_epochs}")
    if not tol >= 0.0:
        raise ValueError(f"tol must be >= 0, got {tol}")


def _reason(record: Record, max_epochs: float, tol: float) -> str | None:
    """Why a fit ends here, if it does."""
    # Written so that NaN is caught.
    if not abs(record.value) < float("inf") or not record.grad_norm < float("inf"):
        return "diverged"
    if record.grad_norm <= tol:
        return "certified"
    return "max_epochs" if record.epochs > max_epochs else None
