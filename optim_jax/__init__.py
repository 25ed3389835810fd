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

# Noise scale: the family is the module `optim_jax.noise_scale`.
from optim_jax.noise_scale.sample_schedule import scale_by_batch_lr
from optim_jax.noise_scale.tracking import track_noise_scale
from optim_jax.preconditioning.canonical import (
    from_canonical_state,
    to_canonical_state,
)
from optim_jax.preconditioning.grafting import graft
from optim_jax.preconditioning.health import (
    check_preconditioners,
    refresh_preconditioners,
)
from optim_jax.preconditioning.matrix_functions import (
    QR,
    SVD,
    CoupledHigherOrder,
    CoupledNewton,
    Eigh,
    NewtonSchulz,
)
from optim_jax.preconditioning.plan import Plan

# Preconditioning.
from optim_jax.preconditioning.planning import plan_preconditioners, state_sharding
from optim_jax.preconditioning.preconditioners import (
    Diagonal,
    Eigendecomposed,
    EigenvalueCorrected,
    Graft,
    KLEigendecomposed,
    KLRootInverse,
    Momentum,
    RootInverse,
    Sign,
    Spectral,
)
from optim_jax.preconditioning.scaling import scale_by_shampoo, scale_by_soap
from optim_jax.preconditioning.shampoo import (
    SHAMPOO_STATIC_ARGS,
    kl_shampoo,
    shampoo,
    soap,
)
from optim_jax.preconditioning.state import ShampooState

# Quasi-Newton.
from optim_jax.quasi_newton.armijo import ArmijoState, scale_by_armijo
from optim_jax.quasi_newton.curvature_pairs import push_pair
from optim_jax.quasi_newton.extra_args import with_filtered_args
from optim_jax.quasi_newton.hessian_products import (
    apply_hessian,
    apply_inverse_hessian,
)
from optim_jax.quasi_newton.ipqn import IPQNStats, ipqn_statistics
from optim_jax.quasi_newton.memory import LBFGSMemory, init_memory
from optim_jax.quasi_newton.multibatch import (
    MultibatchLBFGSState,
    scale_by_multibatch_lbfgs,
)
from optim_jax.quasi_newton.powell_damping import damp_pair
from optim_jax.quasi_newton.progressive_batching.driver import PBLBFGS
from optim_jax.quasi_newton.progressive_batching.solver import pb_lbfgs

# Embedding tables: the family is the module `optim_jax.row_sparse`.
from optim_jax.row_sparse.dense_adagrad import row_wise_adagrad

# Steepest descent.
from optim_jax.steepest_descent.muon import muon, specsgd
from optim_jax.steepest_descent.sign import (
    SignumState,
    scale_by_signum,
    sign_sgd,
    signum,
)
from optim_jax.steepest_descent.spectral import SpectralState, scale_by_spectral

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
    # Noise scale.
    "scale_by_batch_lr",
    "track_noise_scale",
    # Preconditioning.
    "QR",
    "SHAMPOO_STATIC_ARGS",
    "SVD",
    "CoupledHigherOrder",
    "CoupledNewton",
    "Diagonal",
    "Eigendecomposed",
    "EigenvalueCorrected",
    "Eigh",
    "Graft",
    "KLEigendecomposed",
    "KLRootInverse",
    "Momentum",
    "NewtonSchulz",
    "Plan",
    "RootInverse",
    "ShampooState",
    "Sign",
    "Spectral",
    "check_preconditioners",
    "from_canonical_state",
    "graft",
    "kl_shampoo",
    "plan_preconditioners",
    "refresh_preconditioners",
    "scale_by_shampoo",
    "scale_by_soap",
    "shampoo",
    "soap",
    "state_sharding",
    "to_canonical_state",
    # Quasi-Newton.
    "ArmijoState",
    "IPQNStats",
    "LBFGSMemory",
    "MultibatchLBFGSState",
    "PBLBFGS",
    "apply_hessian",
    "apply_inverse_hessian",
    "damp_pair",
    "init_memory",
    "ipqn_statistics",
    "pb_lbfgs",
    "push_pair",
    "scale_by_armijo",
    "scale_by_multibatch_lbfgs",
    "with_filtered_args",
    # Embedding tables.
    "row_wise_adagrad",
    # Steepest descent.
    "SignumState",
    "SpectralState",
    "muon",
    "scale_by_signum",
    "scale_by_spectral",
    "sign_sgd",
    "signum",
    "specsgd",
    # Types and trees.
    "MatrixAxes",
    "matrix_axes_from_rules",
]
