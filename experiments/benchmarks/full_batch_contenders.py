"""Full-batch L-BFGS to one and the same gap: ours, Optax's and SciPy's.

Every contender minimises the same logistic problem in float64 from w = 0 with ten
pairs. How many iterations it needs to the gap is found first; a timed run then makes
just those, ours and Optax's as one compiled loop. SciPy's is timed with the same
compiled function and with plain NumPy, whichever serves it better, to the gap and to
the end that its own default tolerances choose.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

from experiments.logistic.problem import LogisticProblem, mean_loss
from optim_jax import pb_lbfgs

MEMORY = 10


@dataclasses.dataclass(frozen=True)
class FullBatchRun:
    """One contender, ready to be timed.

    Attributes:
      run: one whole run.
      iterations: it makes.
      gradients: of all data that it computes.
      value: F at its end.
    """

    run: Callable[[], object]
    iterations: int
    gradients: int
    value: float


def ours(
    problem: LogisticProblem, target: float, chunk_size: int, *, whole_run: bool = False
) -> FullBatchRun:
    """`pb_lbfgs` with a batch of all data.

    Args:
      problem: the problem.
      target: F to reach.
      chunk_size: samples evaluated at once.
      whole_run: whether to time `run`, which hands its history to the host, or the
        compiled loop alone, as with Optax.
    """
    options = {
        "batch_size": problem.num_samples,
        "memory_size": MEMORY,
        "chunk_size": chunk_size,
        "tol": 0.0,
    }
    w = problem.initial_params()
    solver = pb_lbfgs(
        problem.per_sample_loss, problem.data, max_iterations=500, **options
    )
    values = solver.run(w, jax.random.key(0)).history.value
    # The value at the start of an iteration is that at the end of the one before.
    iterations = int(np.argmax(values <= target))
    solver = pb_lbfgs(
        problem.per_sample_loss, problem.data, max_iterations=iterations, **options
    )
    start = solver.init(w, jax.random.key(0))
    result = solver.run(state=start)
    # One at the start, then one with every trial.
    trials = int((result.history.backtracks + 1).sum())
    if whole_run:
        run = lambda: solver.run(state=start).params  # noqa: E731
    else:
        run = lambda: solver.advance(start)[0].params  # noqa: E731
    return FullBatchRun(
        run=run,
        iterations=iterations,
        gradients=1 + trials,
        value=result.value,
    )


def optax_lbfgs(problem: LogisticProblem, target: float) -> FullBatchRun:
    """`optax.lbfgs` in a loop on the device that ends at the target."""
    optimizer = optax.lbfgs(memory_size=MEMORY)

    @jax.jit
    def minimise(w, data, l2, target):
        def value_fn(w):
            return mean_loss(w, data, l2)

        value_and_grad = optax.value_and_grad_from_state(value_fn)

        def goes_on(carry):
            _, state, count, _ = carry
            value = optax.tree.get(state, "value")
            return (count < 500) & ((count == 0) | (value > target))

        def iterate(carry):
            w, state, count, gradients = carry
            value, grad = value_and_grad(w, state=state)
            updates, state = optimizer.update(
                grad, state, w, value=value, grad=grad, value_fn=value_fn
            )
            trials = optax.tree.get(state, "num_linesearch_steps")
            w = optax.apply_updates(w, updates)
            return w, state, count + 1, gradients + trials.astype(gradients.dtype)

        # The first pass evaluates; afterwards each trial brings its own gradient.
        return jax.lax.while_loop(
            goes_on, iterate, (w, optimizer.init(w), jnp.int32(0), jnp.int32(1))
        )

    w = problem.initial_params()

    def run():
        return minimise(w, problem.data, problem.l2, target)

    end, state, iterations, gradients = run()
    return FullBatchRun(
        run=run,
        iterations=int(iterations),
        gradients=int(gradients),
        value=float(optax.tree.get(state, "value")),
    )


def scipy_lbfgs(
    problem: LogisticProblem, target: float | None, *, compiled: bool
) -> FullBatchRun:
    """SciPy's L-BFGS-B.

    Args:
      problem: a dense problem.
      target: F to reach; None runs to the end its default tolerances choose.
      compiled: whether its function is the compiled one, else NumPy's.
    """
    function = _compiled(problem) if compiled else _plain(problem)
    options: dict = {"maxcor": MEMORY}
    if target is not None:
        tight = {**options, "ftol": 0.0, "gtol": 0.0, "maxiter": 1000, "maxfun": 5000}
        values = []
        scipy.optimize.minimize(
            function,
            np.zeros(problem.num_features),
            jac=True,
            method="L-BFGS-B",
            callback=lambda intermediate_result: values.append(intermediate_result.fun),
            options=tight,
        )
        reached = int(np.argmax(np.array(values) <= target)) + 1
        options = {**tight, "maxiter": reached}

    def run():
        return scipy.optimize.minimize(
            function,
            np.zeros(problem.num_features),
            jac=True,
            method="L-BFGS-B",
            options=options,
        )

    end = run()
    return FullBatchRun(
        run=lambda: run().x,
        iterations=int(end.nit),
        gradients=int(end.njev),
        value=float(end.fun),
    )


def _compiled(problem: LogisticProblem) -> Callable:
    value_and_grad = jax.jit(jax.value_and_grad(mean_loss))

    def function(w):
        value, grad = value_and_grad(jnp.asarray(w), problem.data, problem.l2)
        return float(value), np.asarray(grad)

    return function


def _plain(problem: LogisticProblem) -> Callable:
    features = np.asarray(problem.data.features)
    labels = np.asarray(problem.data.labels)
    count, l2 = len(labels), problem.l2

    def function(w):
        margins = -labels * (features @ w)
        value = np.logaddexp(0.0, margins).mean() + 0.5 * l2 * w @ w
        slopes = -labels / (1.0 + np.exp(-margins))
        return value, features.T @ slopes / count + l2 * w

    return function
