r"""The minimum of a logistic problem to the last digits, by Newton's method in float64.

.. math::

  H = \frac{1}{N} X^\top S X + \lambda I, \quad S_{ii} = p_i (1 - p_i),

is solved with directly where the rows are dense; where they are sparse, by conjugate
gradients with the diagonal of H as preconditioner, to a residual of the order of the
gradient so that convergence stays quadratic. Steps are halved until the objective
falls.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.logistic.problem import (
    DenseSamples,
    LogisticProblem,
    in_float64,
    mean_loss,
    predictions,
)

_MAX_HALVINGS = 40
_PATIENCE = 3  # iterations without a smaller gradient: rounding has the last word


class Optimum(NamedTuple):
    """Where a problem has its minimum.

    Attributes:
      params: w*, float64 (d,).
      value: F* = F(w*).
      grad_norm: largest entry of the gradient there.
      iterations: of Newton's method.
      converged: whether `grad_norm` is within the tolerance.
    """

    params: np.ndarray
    value: float
    grad_norm: float
    iterations: int
    converged: bool


def reference_optimum(
    problem: LogisticProblem, *, tol: float = 1e-12, max_iterations: int = 100
) -> Optimum:
    """Finds the minimum of a problem, whatever type its data have.

    Args:
      problem: its data are taken to float64 as they are, so that the result is the
        minimum of the function that other methods see.
      tol: on the largest entry of the gradient.
      max_iterations: of Newton's method.

    Returns:
      The point of the smallest gradient found. It is not `converged` where rounding
      forbids it (features far above 1) or where there is no minimum (`l2=0` and
      classes that a plane separates).

    Raises:
      ValueError: for a `tol` that is not positive.
    """
    if not tol > 0.0:
        raise ValueError(f"tol must be > 0, got {tol}")
    with jax.enable_x64(True):
        data = in_float64(problem.data)
        w = jnp.zeros(problem.num_features, jnp.float64)
        best, since_best = None, 0
        for iteration in range(max_iterations + 1):
            following, value, grad_norm = _newton_step(w, data, problem.l2)
            found = Optimum(
                np.asarray(w), float(value), float(grad_norm), iteration, False
            )
            if best is None or found.grad_norm < best.grad_norm:
                best, since_best = found, 0
            else:
                since_best += 1
            if best.grad_norm <= tol:
                return best._replace(converged=True)
            if since_best >= _PATIENCE and best.grad_norm < 1e-6:
                break
            w = following
    return best


@jax.jit
def _newton_step(w, data, l2):
    """The next point, and the objective and its gradient's largest entry at w."""
    value, gradient = jax.value_and_grad(mean_loss)(w, data, l2)
    chance = jax.nn.sigmoid(predictions(w, data))
    curvature = chance * (1.0 - chance) / len(data.labels)  # S / N
    solve = _solve_dense if isinstance(data, DenseSamples) else _solve_sparse
    direction = -solve(gradient, data, curvature, l2)
    slope = jnp.vdot(gradient, direction)
    slack = 1e-15 * jnp.abs(value)

    def rejected(carry):
        step, halvings = carry
        trial = mean_loss(w + step * direction, data, l2)
        enough = trial <= value + 1e-4 * step * slope + slack
        return ~enough & (halvings < _MAX_HALVINGS)

    step, _ = jax.lax.while_loop(
        rejected, lambda carry: (0.5 * carry[0], carry[1] + 1), (1.0, 0)
    )
    grad_norm = jnp.max(jnp.abs(gradient))
    return w + step * direction, value, grad_norm


def _solve_dense(gradient, data, curvature, l2):
    x = data.features
    hessian = x.T @ (curvature[:, None] * x) + l2 * jnp.eye(x.shape[1])
    return jax.scipy.linalg.solve(hessian, gradient, assume_a="pos")


def _solve_sparse(gradient, data, curvature, l2):
    columns, values = data.columns, data.values

    def gather(rows):  # X^T rows, for a value per stored entry
        return jnp.zeros_like(gradient).at[columns].add(rows)

    def hessian(v):
        return gather((curvature * predictions(v, data))[:, None] * values) + l2 * v

    diagonal = gather(curvature[:, None] * values**2) + l2
    tol = jnp.clip(jnp.linalg.norm(gradient), 1e-10, 1e-2)
    solution, _ = jax.scipy.sparse.linalg.cg(
        hessian, gradient, tol=tol, M=lambda v: v / diagonal
    )
    return solution
