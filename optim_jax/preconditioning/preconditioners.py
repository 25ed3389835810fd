"""Which preconditioner, grafting and momentum Shampoo uses: options, no maths."""

import dataclasses
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from optim_jax.preconditioning.matrix_functions import (
    QR,
    SVD,
    BasisSolver,
    CoupledHigherOrder,
    CoupledNewton,
    Eigh,
    NewtonSchulz,
    PolarSolver,
    RootSolver,
)
from optim_jax.validation import check_choice, check_value

DIAGONAL_KINDS = ("sgd", "adagrad", "rmsprop", "adam")

# Exponents given as floats are read as the nearest fraction with a small denominator,
# so that 0.4 is 2/5 and the matrix iterations know their root.
_MAX_DENOMINATOR = 1000

Exponents = Any  # {order: exponent} or {order: {dim: exponent}}


def _check_method(owner: str, method: Any, allowed: tuple[type, ...]) -> None:
    if not isinstance(method, allowed):
        names = ", ".join(kind.__name__ for kind in allowed)
        raise ValueError(f"method of {owner} must be one of {names}, got {method!r}")


def _check_order(name: str, order: Any) -> None:
    if not isinstance(order, int) or isinstance(order, bool) or order < 0:
        raise ValueError(
            f"{name} has the key {order!r}; keys are orders of blocks, integers >= 0"
        )


def _as_exponent(name: str, value: Any, positive: bool) -> Fraction:
    bound = "> 0" if positive else ">= 0"
    try:
        number = float(value)
    except TypeError:
        number = float("nan")
    # Written so that NaN fails.
    if not (number > 0.0 or (number == 0.0 and not positive)) or number > 1e3:
        raise ValueError(f"{name} must hold finite exponents {bound}, got {value!r}")
    return Fraction(value).limit_denominator(_MAX_DENOMINATOR)


def _items(name: str, table: Any) -> tuple[tuple[Any, Any], ...]:
    if isinstance(table, Mapping):
        return tuple(sorted(table.items()))
    if isinstance(table, tuple):  # already frozen: `dataclasses.replace` passes it
        return table
    raise ValueError(f"{name} must be a dict from order of block, got {table!r}")


def _freeze_exponents(table: Exponents, *, per_dim: bool) -> Any:
    """Checks exponents and makes them hashable: ((order, exponent or items), ...)."""
    name = "inverse_exponent_override"
    if table is None:
        return None
    frozen = []
    for order, entry in _items(name, table):
        _check_order(name, order)
        if isinstance(entry, (Mapping, tuple)):
            if not per_dim:
                raise ValueError(
                    f"{name} of EigenvalueCorrected holds one exponent per order, got "
                    f"{entry!r}"
                )
            dims = []
            for dim, exponent in _items(name, entry):
                if not isinstance(dim, int) or not 0 <= dim < order:
                    raise ValueError(
                        f"{name} names dim {dim!r} of blocks of order {order}; dims "
                        f"are 0 to {order - 1}"
                    )
                dims.append((dim, _as_exponent(name, exponent, positive=False)))
            frozen.append((order, tuple(dims)))
        else:
            frozen.append((order, _as_exponent(name, entry, positive=not per_dim)))
    return tuple(frozen)


def _check_trace_scaling(value: Any) -> None:
    if value is not None:
        check_value(
            "trace_scaling_exponent", value, "in (0, 1]", lambda v: 0.0 < v <= 1.0
        )


@dataclasses.dataclass(frozen=True)
class _Kronecker:
    method: Any = None
    inverse_exponent_override: Exponents = None
    trace_scaling_exponent: float | None = None
    drop_weighting_factor: bool = False

    def __post_init__(self) -> None:
        if self.method is None:
            object.__setattr__(self, "method", Eigh())
        _check_trace_scaling(self.trace_scaling_exponent)
        frozen = _freeze_exponents(self.inverse_exponent_override, per_dim=True)
        object.__setattr__(self, "inverse_exponent_override", frozen)
        self._check_method()

    def _check_method(self) -> None:
        _check_method(type(self).__name__, self.method, (Eigh, QR))


@dataclasses.dataclass(frozen=True)
class RootInverse(_Kronecker):
    r"""Classic Shampoo: each mode is multiplied by a stored root :math:`F_k^{-e_k}`.

    Attributes:
      method: `Eigh`, `CoupledNewton` or `CoupledHigherOrder`; None means `Eigh()`.
      inverse_exponent_override: exponents e >= 0 by order of the block,
        `{order: e}` or `{order: {dim: e}}`, instead of 1 / (2 * order). With 0 a mode
        is not preconditioned and has no factor.
      trace_scaling_exponent: in (0, 1]; factors are divided by this power of their
        trace before the root. None means no scaling.
      drop_weighting_factor: add outer products with weight 1 instead of 1 - b2, and
        correct no bias.
    """

    method: RootSolver | None = None

    def _check_method(self) -> None:
        _check_method(
            type(self).__name__, self.method, (Eigh, CoupledNewton, CoupledHigherOrder)
        )
        if isinstance(self.method, Eigh) and self.method.tolerance != 0.0:
            raise ValueError(
                f"{type(self).__name__} stores no eigenbasis that a tolerance could "
                f"keep: tolerance must be 0, got {self.method.tolerance}"
            )


@dataclasses.dataclass(frozen=True)
class Eigendecomposed(_Kronecker):
    """Shampoo that stores eigenvalues and eigenvectors instead of roots.

    Attributes:
      method: `Eigh` or `QR`; None means `Eigh()`.
      inverse_exponent_override: as in `RootInverse`.
      trace_scaling_exponent: as in `RootInverse`.
      drop_weighting_factor: as in `RootInverse`.
      correct_eigenvalues: between refreshes take the eigenvalues from the diagonal of
        the current factor in the stored basis.
    """

    method: BasisSolver | None = None
    correct_eigenvalues: bool = False


@dataclasses.dataclass(frozen=True)
class KLRootInverse(RootInverse):
    """Root inverse whose statistics are preconditioned on all other modes.

    The attributes are those of `RootInverse`. The rule of KL-Shampoo
    (arXiv 2509.03378) has the exponents `inverse_exponent_override={2: 0.5}`.
    """


@dataclasses.dataclass(frozen=True)
class KLEigendecomposed(Eigendecomposed):
    """`Eigendecomposed` with the statistics of `KLRootInverse`."""


@dataclasses.dataclass(frozen=True)
class EigenvalueCorrected:
    r"""SOAP: Adam in the eigenbasis of Shampoo's factors (arXiv 2409.11321).

    Attributes:
      method: `Eigh` or `QR`; None means `Eigh()`.
      inverse_exponent_override: exponents e > 0 on the second moment by order of the
        block, instead of 1/2.
      ignored_basis_change_dims: `{order: [dims]}` that are not rotated and have no
        factor.
      drop_weighting_factor: as in `RootInverse`, for factors and second moment.
      permute_second_moment: sort the second moment as the columns of the basis are
        sorted at a `QR` refresh. False leaves it in the old order.
    """

    method: BasisSolver | None = None
    inverse_exponent_override: Exponents = None
    ignored_basis_change_dims: Any = None
    drop_weighting_factor: bool = False
    permute_second_moment: bool = False

    def __post_init__(self) -> None:
        if self.method is None:
            object.__setattr__(self, "method", Eigh())
        _check_method("EigenvalueCorrected", self.method, (Eigh, QR))
        if isinstance(self.method, Eigh) and self.method.pseudo_inverse:
            raise ValueError(
                "EigenvalueCorrected takes no inverse of the factors: pseudo_inverse "
                "must be False"
            )
        frozen = _freeze_exponents(self.inverse_exponent_override, per_dim=False)
        object.__setattr__(self, "inverse_exponent_override", frozen)
        object.__setattr__(self, "ignored_basis_change_dims", self._ignored())

    def _ignored(self) -> Any:
        name, table = "ignored_basis_change_dims", self.ignored_basis_change_dims
        if table is None:
            return None
        frozen = []
        for order, dims in _items(name, table):
            _check_order(name, order)
            dims = tuple(dims)
            if len(set(dims)) != len(dims):
                raise ValueError(f"{name} repeats a dim of order {order}: {dims}")
            if any(not isinstance(d, int) or not 0 <= d < order for d in dims):
                raise ValueError(
                    f"{name} names the dims {dims} of blocks of order {order}; dims "
                    f"are 0 to {order - 1}"
                )
            frozen.append((order, tuple(sorted(dims))))
        return tuple(frozen)


@dataclasses.dataclass(frozen=True)
class Spectral:
    """Spectral descent: the polar factor of each matrix block; no statistics.

    Attributes:
      method: `NewtonSchulz` or `SVD`; None means `NewtonSchulz()`.
      scale_by_dims: function (d_in, d_out) -> factor of the update, where rows are
        outputs; None means 1. Muon's is `max(1, d_out / d_in) ** 0.5`.
    """

    method: PolarSolver | None = None
    scale_by_dims: Callable[[int, int], float] | None = None

    def __post_init__(self) -> None:
        if self.method is None:
            object.__setattr__(self, "method", NewtonSchulz())
        _check_method("Spectral", self.method, (NewtonSchulz, SVD))


@dataclasses.dataclass(frozen=True)
class Sign:
    """Sign descent: the sign of each entry; no statistics.

    Attributes:
      scale: function of one block of the filtered gradient -> factor of its update;
        None means 1. The sum of absolute values gives steepest descent in the largest
        absolute entry.
    """

    scale: Callable[[Any], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Diagonal:
    """A diagonal method as the preconditioner: `sgd`, `adagrad`, `rmsprop`, `adam`.

    Attributes:
      kind: one of the four.
      b2: decay of the second moment in (0, 1]; None means 1 for adagrad, 0.99 for
        rmsprop and 0.999 for adam.
      eps: added to the root of the second moment, > 0.
      drop_weighting_factor: add squares with weight 1 instead of 1 - b2, and correct
        no bias.
    """

    kind: str
    b2: Any = None
    eps: float = 1e-10
    drop_weighting_factor: bool = False

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, DIAGONAL_KINDS)
        if self.b2 is None:
            default = {"rmsprop": 0.99, "adam": 0.999}.get(self.kind, 1.0)
            object.__setattr__(self, "b2", default)
        check_value(f"b2 of {self.kind}", self.b2, "in (0, 1]", lambda v: 0.0 < v <= 1)
        check_value(f"eps of {self.kind}", self.eps, "> 0", lambda v: v > 0.0)


@dataclasses.dataclass(frozen=True)
class Graft(Diagonal):
    """A diagonal method that lends each block the norm of its update.

    The attributes are those of `Diagonal`.
    """


@dataclasses.dataclass(frozen=True)
class Momentum:
    """Momentum on the finished direction, decay included.

    Attributes:
      momentum: in (0, 1).
      dampening: in [0, 1); the direction enters with weight 1 - dampening.
      nesterov: look one step ahead.
    """

    momentum: Any = 0.5
    dampening: Any = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        check_value("momentum", self.momentum, "in (0, 1)", lambda v: 0.0 < v < 1.0)
        check_value("dampening", self.dampening, "in [0, 1)", lambda v: 0.0 <= v < 1.0)


KroneckerPreconditioner = RootInverse | Eigendecomposed | EigenvalueCorrected
Preconditioner = KroneckerPreconditioner | Spectral | Sign | Diagonal
PRECONDITIONERS = (
    RootInverse,
    Eigendecomposed,
    EigenvalueCorrected,
    Spectral,
    Sign,
    Diagonal,
)
