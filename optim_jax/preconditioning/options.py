"""What Shampoo is asked to do: static options, and numbers that may be traced."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optim_jax.preconditioning.matrix_functions import Eigh
from optim_jax.preconditioning.merging import check_dimension
from optim_jax.preconditioning.preconditioners import (
    DIAGONAL_KINDS,
    PRECONDITIONERS,
    Eigendecomposed,
    Graft,
    Preconditioner,
    RootInverse,
    Spectral,
)
from optim_jax.validation import (
    as_static,
    check_choice,
    check_decay_rate,
    check_value,
    concrete,
)

REFRESH_MODES = ("cond", "staggered", "external")
PRECISIONS = ("highest", "high", "default")

# Adam's usual epsilon for grafting asked for by name: the table's 1e-10 is for
# accumulators in double precision.
_NAMED_ADAM_EPS = 1e-8


class Hyperparameters(NamedTuple):
    """Numbers that may change between steps: floats, scalar arrays or tracers.

    Attributes:
      b1: decay of the first moment; the float 0 means that there is none.
      b2: decay of the factors; 1 sums them up.
      b3: weight of the old moment in the direction; None means `b1`.
      eps: perturbation of the factors.
      frequency: steps between refreshes.
      start: step of the first refresh, -1 for `frequency`.
      graft_b2: decay of the grafting accumulator.
    """

    b1: Any
    b2: Any
    b3: Any
    eps: Any
    frequency: Any
    start: Any
    graft_b2: Any = 1.0


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything static, except what is stated leaf by leaf.

    The attributes are the arguments of `scale_by_shampoo` of the same names, with
    `grafting` resolved to a `Graft` and the dtypes to numpy ones.
    """

    preconditioner: Preconditioner
    grafting: Graft | None
    relative_epsilon: float
    max_preconditioner_dim: float
    target_dimensionality: float
    precondition_1d: bool
    skip_dims_larger_than: float | None
    bias_correction: bool
    refresh: str
    staggered_period: int | None  # the static frequency of `refresh="staggered"`
    mesh: Any
    axis: tuple[str, ...]
    comm_dtype: Any
    factor_dtype: Any
    inverse_dtype: Any
    mu_dtype: Any
    precision: str
    skip_nonfinite: bool

    @property
    def num_devices(self) -> int:
        """Devices that the blocks are spread over."""
        if self.mesh is None:
            return 1
        return math.prod(self.mesh.shape[name] for name in self.axis)


def make_hyperparameters(
    *,
    b1: Any,
    b2: Any,
    b3: Any,
    eps: Any,
    precondition_frequency: Any,
    start_preconditioning_step: Any,
    preconditioner: Any,
    grafting: Any,
) -> Hyperparameters:
    """Checks the numbers whose values are known.

    Raises:
      ValueError: a number is out of its range.
    """
    check_decay_rate("b1", b1)
    check_value("b2", b2, "in [0, 1]", lambda v: 0.0 <= v <= 1.0)
    if b3 is not None:
        check_decay_rate("b3", b3)
    method = getattr(preconditioner, "method", None)
    if isinstance(method, Eigh) and method.pseudo_inverse:
        check_value("eps", eps, "0 with a pseudo-inverse", lambda v: v == 0.0)
    else:
        check_value("eps", eps, "finite and > 0", lambda v: 0.0 < v < math.inf)
    frequency = _whole("precondition_frequency", precondition_frequency)
    check_value(
        "precondition_frequency",
        precondition_frequency,
        "an integer >= 1",
        lambda v: v >= 1 and v == math.floor(v),
    )
    start = _whole("start_preconditioning_step", start_preconditioning_step)
    least = concrete("precondition_frequency", precondition_frequency) or 1
    check_value(
        "start_preconditioning_step",
        start_preconditioning_step,
        f"-1 or an integer >= precondition_frequency = {least:g}",
        lambda v: v == -1 or (v >= least and v == math.floor(v)),
    )
    return Hyperparameters(
        as_static("b1", b1),
        as_static("b2", b2),
        None if b3 is None else as_static("b3", b3),
        as_static("eps", eps),
        frequency,
        start,
        _grafting_b2(grafting, b2),
    )


def _whole(name: str, value: Any) -> Any:
    """An integer of the host as int; arrays and tracers, which may change, as int32."""
    if isinstance(value, jax.Array):
        return jnp.round(value).astype(jnp.int32)
    number = concrete(name, value)
    if number is None or number != number or math.isinf(number):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    return int(number) if number == int(number) else number


def resolve_grafting(grafting: Any) -> Graft | None:
    """Turns the name of a grafting method into its options, `b2` apart.

    Args:
      grafting: None, a name, or a `Graft`.

    Returns:
      None or a hashable `Graft`; its `b2` is not looked at any more, since the one in
      use may be traced (`Hyperparameters.graft_b2`).

    Raises:
      ValueError: the argument is none of these.
    """
    if grafting is None:
        return None
    if isinstance(grafting, Graft):
        return dataclasses.replace(grafting, b2=None)
    if not isinstance(grafting, str):
        raise ValueError(
            "grafting must be None, a Graft or one of adagrad, adam, rmsprop, sgd, "
            f"got {grafting!r}"
        )
    check_choice("grafting", grafting, DIAGONAL_KINDS)
    return (
        Graft(grafting, eps=_NAMED_ADAM_EPS) if grafting == "adam" else Graft(grafting)
    )


def _grafting_b2(grafting: Any, b2: Any) -> Any:
    """Decay of the grafting accumulator; Adam by name shares that of the factors."""
    if isinstance(grafting, Graft):
        return as_static("b2 of grafting", grafting.b2)
    if grafting != "adam":
        return 1.0 if not isinstance(grafting, str) else Graft(grafting).b2
    known = None if isinstance(b2, jax.Array) else concrete("b2", b2)
    if known is None:
        return jnp.where((b2 > 0.0) & (b2 < 1.0), b2, 0.999)
    return known if 0.0 < known < 1.0 else 0.999


def _as_dtype(name: str, dtype: Any) -> Any:
    if dtype is None:
        return None
    try:
        resolved = jnp.dtype(dtype)
    except TypeError:
        resolved = None
    if resolved is None or not jnp.issubdtype(resolved, jnp.floating):
        raise ValueError(f"{name} must be a floating-point dtype, got {dtype!r}")
    return resolved


def _dimension(name: str, value: Any) -> float:
    check_dimension(name, value)
    return value if value == math.inf else int(value)


def _mesh_axes(mesh: Any, axis: Any) -> tuple[str, ...]:
    if mesh is None:
        if axis is not None:
            raise ValueError(f"axis={axis!r} needs the mesh it belongs to: give mesh")
        return ()
    if axis is None:
        return tuple(mesh.axis_names)
    names = (axis,) if isinstance(axis, str) else tuple(axis)
    for name in names:
        if name not in mesh.axis_names:
            raise ValueError(
                f"axis names {name!r}, but the mesh has the axes "
                f"{', '.join(map(repr, mesh.axis_names))}"
            )
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"axis must name different axes of the mesh, got {axis!r}")
    return names


def make_options(
    *,
    preconditioner: Any,
    grafting: Any,
    relative_epsilon: Any,
    max_preconditioner_dim: Any,
    target_dimensionality: Any,
    precondition_1d: bool,
    skip_dims_larger_than: Any,
    precondition_frequency: Any,
    bias_correction: bool,
    refresh: str,
    mesh: Any,
    axis: Any,
    comm_dtype: Any,
    factor_dtype: Any,
    inverse_dtype: Any,
    mu_dtype: Any,
    precision: str,
    skip_nonfinite: bool,
) -> Options:
    """Checks and resolves the static options.

    Raises:
      ValueError: an option is unknown, out of range, or does not go with another.
    """
    if not isinstance(preconditioner, PRECONDITIONERS):
        raise ValueError(
            "preconditioner must be RootInverse(), Eigendecomposed(), "
            "EigenvalueCorrected(), KLRootInverse(), KLEigendecomposed(), Spectral(), "
            f"Sign() or Diagonal(kind), got {preconditioner!r}"
        )
    check_value(
        "relative_epsilon", relative_epsilon, "in [0, 1)", lambda v: 0.0 <= v < 1.0
    )
    check_choice("refresh", refresh, REFRESH_MODES)
    check_choice("precision", precision, PRECISIONS)
    period = None
    if refresh == "staggered":
        if not isinstance(precondition_frequency, int):
            raise ValueError(
                "refresh='staggered' needs a precondition_frequency known when the "
                f"transformation is built, an int, got {precondition_frequency!r}"
            )
        period = precondition_frequency
    method = getattr(preconditioner, "method", None)
    if isinstance(method, Eigh) and method.pseudo_inverse and relative_epsilon != 0.0:
        raise ValueError(
            "a pseudo-inverse adds no epsilon: relative_epsilon must be 0, got "
            f"{relative_epsilon}"
        )
    target = _dimension("target_dimensionality", target_dimensionality)
    if isinstance(preconditioner, Spectral):
        target = 2  # it is defined for matrices only
    limit = skip_dims_larger_than
    return Options(
        preconditioner=preconditioner,
        grafting=resolve_grafting(grafting),
        relative_epsilon=float(relative_epsilon),
        max_preconditioner_dim=_dimension(
            "max_preconditioner_dim", max_preconditioner_dim
        ),
        target_dimensionality=target,
        precondition_1d=bool(precondition_1d),
        skip_dims_larger_than=None
        if limit is None
        else _dimension("skip_dims_larger_than", limit),
        bias_correction=bool(bias_correction),
        refresh=refresh,
        staggered_period=period,
        mesh=mesh,
        axis=_mesh_axes(mesh, axis),
        comm_dtype=_as_dtype("comm_dtype", comm_dtype),
        factor_dtype=_as_dtype("factor_dtype", factor_dtype),
        inverse_dtype=_as_dtype("inverse_dtype", inverse_dtype),
        mu_dtype=_as_dtype("mu_dtype", mu_dtype),
        precision=precision,
        skip_nonfinite=bool(skip_nonfinite),
    )


def warn_of_ungrafted_start(
    options: Options, hyperparameters: Hyperparameters
) -> str | None:
    """Says why a delayed start without grafting is a trap; None where it is none."""
    if options.grafting is not None or options.refresh == "external":
        return None
    if not isinstance(options.preconditioner, (RootInverse, Eigendecomposed)):
        return None
    start, frequency = hyperparameters.start, hyperparameters.frequency
    start = frequency if isinstance(start, int) and start == -1 else start
    if not isinstance(start, int) or start <= 1:
        return None
    return (
        f"without grafting the steps before the first refresh (step {start}) are plain "
        "filtered gradient descent, usually far too large at Shampoo's learning rate; "
        'use grafting="adam" or start_preconditioning_step=1 with '
        "precondition_frequency=1"
    )
