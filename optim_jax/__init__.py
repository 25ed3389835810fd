"""Research optimizers for JAX as composable Optax transformations."""

# Averaging.
from optim_jax.averaging.adamw import gpa_adamw
from optim_jax.averaging.diloco import DiLoCoState, single_worker_diloco
from optim_jax.averaging.displacement import (
    PrimalAveragingState,
    scale_by_primal_averaging,
)
from optim_jax.averaging.iterates import GPAState
from optim_jax.averaging.primal_averaging import gpa, schedule_free
from optim_jax.averaging.sequences import (
    gpa_eval_params,
    gpa_sequences,
    gpa_train_params,
)
from optim_jax.averaging.stability import (
    inner_steps_from_mu_x,
    mu_x_from_inner_steps,
    stability_limit,
)

# Types and trees.
from optim_jax.trees.matrices import matrix_axes_from_rules
from optim_jax.typing import MatrixAxes

__version__ = "0.1.0"

__all__ = [
    # Averaging.
    "DiLoCoState",
    "GPAState",
    "PrimalAveragingState",
    "gpa",
    "gpa_adamw",
    "gpa_eval_params",
    "gpa_sequences",
    "gpa_train_params",
    "inner_steps_from_mu_x",
    "mu_x_from_inner_steps",
    "scale_by_primal_averaging",
    "schedule_free",
    "single_worker_diloco",
    "stability_limit",
    # Types and trees.
    "MatrixAxes",
    "matrix_axes_from_rules",
]
