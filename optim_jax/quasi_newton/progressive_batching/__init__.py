"""The progressive-batching solver: samples, their test and growth, and the steps."""

from optim_jax.quasi_newton.progressive_batching.driver import PBLBFGS
from optim_jax.quasi_newton.progressive_batching.solver import pb_lbfgs

__all__ = ["PBLBFGS", "pb_lbfgs"]
