"""Roots, eigenbases and polar factors of one matrix or a stack of them."""

from optim_jax.linalg.coupled_newton import coupled_newton_inverse_root
from optim_jax.linalg.eigendecomposition import (
    eigendecomposition,
    inverse_root_eigenvalues,
    off_diagonal_ratio,
)
from optim_jax.linalg.higher_order import coupled_higher_order_inverse_root
from optim_jax.linalg.inverse_root import eigh_inverse_root, matrix_inverse_root
from optim_jax.linalg.nuclear_norm import (
    nuclear_norm,
    polar_factor,
    trace_square_root,
)
from optim_jax.linalg.orthogonalization import MUON_COEFFICIENTS, orthogonalize
from optim_jax.linalg.qr_iteration import (
    qr_eigendecomposition,
    qr_eigendecomposition_with_order,
)
from optim_jax.linalg.solver_info import SolverInfo, frobenius_norm

__all__ = [
    "MUON_COEFFICIENTS",
    "SolverInfo",
    "coupled_higher_order_inverse_root",
    "coupled_newton_inverse_root",
    "eigendecomposition",
    "eigh_inverse_root",
    "frobenius_norm",
    "inverse_root_eigenvalues",
    "matrix_inverse_root",
    "nuclear_norm",
    "off_diagonal_ratio",
    "orthogonalize",
    "polar_factor",
    "qr_eigendecomposition",
    "qr_eigendecomposition_with_order",
    "trace_square_root",
]
