"""Which matrix function computes a root, an eigenbasis or a polar factor.

These constructors hold options only; `optim_jax.linalg` holds the maths.
"""

import dataclasses
import math
from typing import Any

from optim_jax.validation import check_value

# Muon's quintic (Jordan et al., 2024): five steps take singular values near one.
MUON_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def _check_tolerance(value: Any) -> None:
    check_value("tolerance", value, "in [0, 1]", lambda v: 0.0 <= v <= 1.0)


def _check_iterations(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


def _check_nonnegative(name: str, value: Any) -> None:
    check_value(name, value, "finite and >= 0", lambda v: v >= 0.0 and math.isfinite(v))


@dataclasses.dataclass(frozen=True)
class Eigh:
    """Symmetric eigendecomposition.

    Attributes:
      perturb_before: add epsilon to the matrix before it is decomposed; otherwise to
        the eigenvalues, after negative ones were lifted to zero.
      tolerance: in [0, 1]. Above 0, a basis of the last refresh whose relative
        off-diagonal norm is at most this is kept. Not for roots without a stored
        basis.
      pseudo_inverse: drop small eigenvalues instead of adding epsilon, which must
        then be 0.
      rank_rtol: eigenvalues up to this multiple of the largest are dropped; None
        means d times the machine epsilon.
      rank_atol: eigenvalues up to this are dropped.
    """

    perturb_before: bool = True
    tolerance: float = 0.0
    pseudo_inverse: bool = False
    rank_rtol: float | None = 0.0
    rank_atol: float = 0.0

    def __post_init__(self) -> None:
        _check_tolerance(self.tolerance)
        if self.rank_rtol is not None:
            _check_nonnegative("rank_rtol", self.rank_rtol)
        _check_nonnegative("rank_atol", self.rank_atol)


@dataclasses.dataclass(frozen=True)
class QR:
    """QR iterations started from the eigenbasis of the last refresh.

    Attributes:
      perturb_before: add epsilon to the matrix.
      tolerance: in [0, 1]. Above 0, iterations end when the relative off-diagonal
        norm is at most this.
      max_iterations: QR iterations per refresh.
    """

    perturb_before: bool = True
    tolerance: float = 0.0
    max_iterations: int = 1

    def __post_init__(self) -> None:
        _check_tolerance(self.tolerance)
        _check_iterations("max_iterations", self.max_iterations)


@dataclasses.dataclass(frozen=True)
class CoupledNewton:
    """Coupled inverse Newton iteration; matrix products only, roots 1/p only.

    Attributes:
      max_iterations: upper bound of the iterations.
      tolerance: the largest entry of |M - I| at which a matrix is done.
      scaling: `"frobenius"`, or `"power"` for a tighter bound of the largest
        eigenvalue by power iteration, which saves iterations.
    """

    max_iterations: int = 100
    tolerance: float = 1e-6
    scaling: str = "frobenius"

    def __post_init__(self) -> None:
        _check_iterations("max_iterations", self.max_iterations)
        _check_tolerance(self.tolerance)
        if self.scaling not in ("frobenius", "power"):
            raise ValueError(
                f"scaling must be one of frobenius, power, got {self.scaling!r}"
            )


@dataclasses.dataclass(frozen=True)
class CoupledHigherOrder:
    """Coupled higher-order iteration; matrix products only, any rational root.

    Attributes:
      rel_eps: ridge relative to the largest absolute row sum.
      abs_eps: absolute ridge; the larger of the two is used.
      order: order of the iteration; 2 is Newton's.
      max_iterations: upper bound of the iterations.
      tolerance: the largest entry of |M - I| at which a matrix is done.
    """

    rel_eps: float
    abs_eps: float
    order: int = 3
    max_iterations: int = 100
    tolerance: float = 1e-8

    def __post_init__(self) -> None:
        _check_nonnegative("rel_eps", self.rel_eps)
        _check_nonnegative("abs_eps", self.abs_eps)
        _check_iterations("max_iterations", self.max_iterations)
        _check_tolerance(self.tolerance)
        if not isinstance(self.order, int) or self.order < 2:
            raise ValueError(f"order must be an integer >= 2, got {self.order!r}")


@dataclasses.dataclass(frozen=True)
class NewtonSchulz:
    """Quintic Newton-Schulz iteration towards the polar factor.

    Attributes:
      num_iterations: number of steps.
      coefficients: (a, b, c) of every step, or one such triple per step.
    """

    num_iterations: int = 5
    coefficients: Any = MUON_COEFFICIENTS

    def __post_init__(self) -> None:
        _check_iterations("num_iterations", self.num_iterations)
        try:
            rows = tuple(self.coefficients)
            nested = any(isinstance(row, (tuple, list)) for row in rows)
            triples = tuple(map(tuple, rows)) if nested else (rows,)
            fits = all(len(triple) == 3 for triple in triples) and (
                not nested or len(triples) == self.num_iterations
            )
            frozen = tuple(tuple(map(float, triple)) for triple in triples)
        except TypeError:
            fits, nested, frozen = False, False, ()
        if not fits:
            raise ValueError(
                "coefficients must be one triple (a, b, c), or num_iterations="
                f"{self.num_iterations} of them, got {self.coefficients!r}"
            )
        object.__setattr__(self, "coefficients", frozen if nested else sum(frozen, ()))


@dataclasses.dataclass(frozen=True)
class SVD:
    """Exact polar factor by singular value decomposition.

    Attributes:
      scale_by_nuclear_norm: multiply by the sum of the singular values.
    """

    scale_by_nuclear_norm: bool = False


RootSolver = Eigh | CoupledNewton | CoupledHigherOrder
BasisSolver = Eigh | QR
PolarSolver = NewtonSchulz | SVD
