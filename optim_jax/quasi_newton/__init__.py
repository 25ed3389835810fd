"""Quasi-Newton methods: L-BFGS for full and for progressively growing samples."""

from optim_jax.quasi_newton.armijo import ArmijoState, scale_by_armijo
from optim_jax.quasi_newton.curvature_pairs import push_pair
from optim_jax.quasi_newton.extra_args import with_filtered_args
from optim_jax.quasi_newton.hessian_products import (
    apply_hessian,
    apply_inverse_hessian,
)
from optim_jax.quasi_newton.ipqn import IPQNStats, ipqn_statistics
from optim_jax.quasi_newton.memory import LBFGSMemory, clear_memory, init_memory
from optim_jax.quasi_newton.multibatch import (
    MultibatchLBFGSState,
    scale_by_multibatch_lbfgs,
)
from optim_jax.quasi_newton.powell_damping import damp_pair
from optim_jax.quasi_newton.progressive_batching.driver import PBLBFGS
from optim_jax.quasi_newton.progressive_batching.solver import pb_lbfgs

__all__ = [
    # L-BFGS.
    "LBFGSMemory",
    "MultibatchLBFGSState",
    "apply_hessian",
    "apply_inverse_hessian",
    "clear_memory",
    "damp_pair",
    "init_memory",
    "push_pair",
    "scale_by_multibatch_lbfgs",
    # Line search.
    "ArmijoState",
    "scale_by_armijo",
    "with_filtered_args",
    # Progressive batching.
    "IPQNStats",
    "PBLBFGS",
    "ipqn_statistics",
    "pb_lbfgs",
]
