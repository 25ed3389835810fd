"""What the solver carries from one iteration to the next, and what it reports."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optim_jax.quasi_newton.memory import LBFGSMemory
from optim_jax.quasi_newton.progressive_batching.evaluation import Evaluation
from optim_jax.quasi_newton.progressive_batching.sampling import Window

RUNNING = "running"
REASONS = (
    RUNNING,
    "certified",
    "max_epochs",
    "max_iterations",
    "max_time",
    "noise_limited",
    "line_search",
    "stalled",
    "diverged",
)


class Counters(NamedTuple):
    """Whole numbers that accumulate, all scalars.

    Attributes:
      k: iterations done.
      grad_evals: gradients of samples computed.
      fn_evals: losses of samples computed without their gradients.
      jvp_evals: directional derivatives of samples computed.
      skipped: pairs skipped in a row.
      search_failures: line searches failed in a row.
      no_signal: tests in a row at the largest batch that found no signal.
      still: iterations in a row at b = N that moved less than `tol`.
      same_size: iterations in a row with this batch size.
    """

    k: jax.Array
    grad_evals: jax.Array
    fn_evals: jax.Array
    jvp_evals: jax.Array
    skipped: jax.Array
    search_failures: jax.Array
    no_signal: jax.Array
    still: jax.Array
    same_size: jax.Array

    @classmethod
    def zeros(cls) -> "Counters":
        """Nothing counted yet; samples are counted in the default integer dtype."""
        samples = jnp.zeros((), jnp.result_type(int))
        few = jnp.int32(0)
        return cls(few, samples, samples, samples, few, few, few, few, few)


class PBLBFGSState(NamedTuple):
    """State of `pb_lbfgs`: arrays only, so that any checkpointer can keep it.

    Attributes:
      params: tree, the current point w.
      memory: the pairs.
      window: the sample S of the coming iteration.
      overlap_start: int32, first position of the samples shared with the next one.
      overlap_size: int32, how many there are.
      evaluation: the sample at w.
      recent: tree of (10, ...), last gradients for the window test, else `()`.
      aux: tree, mean auxiliary outputs over the last sample at the accepted point.
      step: last accepted step.
      counters: counts.
      reason: int32, index into `REASONS`; 0 while running.
    """

    params: Any
    memory: LBFGSMemory
    window: Window
    overlap_start: jax.Array
    overlap_size: jax.Array
    evaluation: Evaluation
    recent: Any
    aux: Any
    step: jax.Array
    counters: Counters
    reason: jax.Array


class StepInfo(NamedTuple):
    """One iteration in numbers; counts are cumulative, in samples.

    Attributes:
      k: number of the iteration, from 0.
      b_tested: batch size that was tested.
      b: batch size of the step, after growth.
      ratio: sample test, <= 1 passes; NaN if untested.
      r: squared norm of the quasi-Newton step of the tested gradient.
      r_U: the same without the noise of the gradient; NaN without groups.
      alpha0: first trial step.
      alpha: accepted step, 0 if the search failed.
      backtracks: trials beyond the first.
      value: F_S before the step, over the grown sample.
      grad_norm: Euclidean norm of g_S there.
      pair: 0 skipped, 1 accepted, 2 damped.
      memory_count: pairs stored after the step.
      grad_evals: gradients computed.
      fn_evals: losses computed without a gradient.
      jvp_evals: directional derivatives computed.
      epochs: `grad_evals / N`, 0 for a stream.
      work: weighted sum of the three counts in gradients (`work_weights`).
      reset: whether the memory was emptied.
      ls_failed: whether no step was accepted.
      compilations: most programs compiled so far for one device function.
      capped: whether `max_batch` kept the batch from growing as asked.
    """

    k: Any
    b_tested: Any
    b: Any
    ratio: Any
    r: Any
    r_U: Any
    alpha0: Any
    alpha: Any
    backtracks: Any
    value: Any
    grad_norm: Any
    pair: Any
    memory_count: Any
    grad_evals: Any
    fn_evals: Any
    jvp_evals: Any
    epochs: Any
    work: Any
    reset: Any
    ls_failed: Any
    compilations: Any
    capped: Any


class PBLBFGSResult(NamedTuple):
    """What a run returns.

    Attributes:
      params: the last good point.
      value: mean loss there over the last sample, of all data at b = N; after
        "diverged" the one that was not finite.
      grad_norm: largest magnitude in the gradient there, ‖g‖_∞.
      reason: why the run ended, one of `REASONS`.
      converged: whether the reason is "certified": b = N and ‖g‖_∞ <= tol.
      n_iter: iterations done.
      grad_evals: gradients of samples computed.
      fn_evals: losses of samples computed without their gradients.
      jvp_evals: directional derivatives of samples computed.
      batch_size: last batch size.
      history: `StepInfo` of NumPy arrays with one entry per iteration.
      state: the last state, from which `run(..., state=...)` goes on.
    """

    params: Any
    value: float
    grad_norm: float
    reason: str
    converged: bool
    n_iter: int
    grad_evals: int
    fn_evals: int
    jvp_evals: int
    batch_size: int
    history: StepInfo
    state: PBLBFGSState
