"""What the batch-size controller may do: its options and their limits."""

import dataclasses
import math
import numbers
import warnings
from collections.abc import Callable
from typing import Any, Literal

from optim_jax.noise_scale.batch_grid import (
    INT32_MAX,
    ROUNDINGS,
    Quantum,
    grid_segments,
    is_int,
    is_on_grid,
)
from optim_jax.validation import check_choice

_DECAY = ("in [0, 1)", lambda v: 0.0 <= v < 1.0)
_REALS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "theta": ("finite and > 0", lambda v: 0.0 < v < math.inf),
    "ema_noise": _DECAY,
    "ema_signal": _DECAY,
    "hysteresis": _DECAY,
    "lr_power": ("finite and >= 0", lambda v: 0.0 <= v < math.inf),
    "momentum": _DECAY,
}
_INTEGERS = {"init_batch": 1, "every": 1, "warmup_samples": 0, "apply_lag": 0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSizeConfig:
    r"""Options of `batch_size_controller`. Sizes are counted in samples.

    Attributes:
      theta: :math:`\theta > 0`, tolerated ratio of noise to signal; the theory needs
        a value below 1, larger ones warn.
      init_batch: :math:`B_0`, a grid point.
      max_batch: a grid point >= `init_batch`; None for no limit but that of int32.
      ema_noise: decay :math:`\beta^N` of the noise average, in [0, 1); 0 averages
        nothing.
      ema_signal: decay :math:`\beta^M` of the signal average, in [0, 1).
      every: F >= 1, optimizer steps between two measurements.
      warmup_samples: samples consumed before the first step whose measurement may
        change the batch.
      quantum: step of the grid of batch sizes (ranks times micro-batch), or
        (from, step) pairs: `((1, 32), (128, 128))` are the multiples of 32 below 128
        and of 128 from there.
      rounding: `"ceil"` as in the paper's text, or `"floor"` as in its runs: the real
        number asked for goes to the next grid point in that direction.
      monotone: whether the batch never shrinks.
      hysteresis: where it may shrink, it does when the real number asked for is below
        (1 - hysteresis) B, and not below `init_batch`; in [0, 1).
      max_growth: factor > 1 that the batch may grow by at once, rounded down to the
        grid; None for any. A factor that reaches no grid point stops all growth.
      lr_power: p >= 0 of the learning-rate factor :math:`(B/B_0)^p`.
      apply_lag: steps by which a decision is put off; a decision at step k is in force
        from step k + 1 + `apply_lag`; below `every`.
      momentum: :math:`\beta` in [0, 1) of an optimizer that follows an average of the
        gradients; the noise of the average is that of the batch
        :math:`B (1 + \beta) / (1 - \beta)`, and it is this batch that is asked to
        reach the noise scale over :math:`\theta^2`. 0 is the paper's rule; the option
        is derived here, not read.

    Raises:
      ValueError: a value is not allowed; the message names the field.
    """

    theta: float
    init_batch: int
    max_batch: int | None = None
    ema_noise: float = 0.9
    ema_signal: float = 0.9
    every: int = 100
    warmup_samples: int = 0
    quantum: Quantum = 1
    rounding: Literal["ceil", "floor"] = "ceil"
    monotone: bool = True
    hysteresis: float = 0.2
    max_growth: float | None = None
    lr_power: float = 0.5
    apply_lag: int = 0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        for name, (allowed, accept) in _REALS.items():
            _check_real(name, getattr(self, name), allowed, accept)
        for name, least in _INTEGERS.items():
            _check_integer(name, getattr(self, name), least)
        if self.max_growth is not None:
            _check_real(
                "max_growth",
                self.max_growth,
                "None or finite and > 1",
                lambda v: 1.0 < v < math.inf,
            )
        check_choice("rounding", self.rounding, ROUNDINGS)
        if not isinstance(self.monotone, bool):
            raise ValueError(f"monotone must be a bool, got {self.monotone!r}")
        self._check_sizes()
        if self.apply_lag >= self.every:
            raise ValueError(
                f"apply_lag must be below every={self.every}, got {self.apply_lag}"
            )
        if self.theta >= 1.0:
            warnings.warn(
                f"theta={self.theta} asks for batches up to the noise scale only; the "
                "theory needs theta < 1",
                stacklevel=3,
            )

    def _check_sizes(self) -> None:
        grid_segments(self.quantum)
        if not is_int(self.quantum):
            # Lists, as a JSON file gives them, would make the config unhashable.
            pairs = tuple((start, step) for start, step in self.quantum)  # type: ignore
            object.__setattr__(self, "quantum", pairs)
        on_grid = f"on the grid of quantum={self.quantum}"
        if not is_on_grid(self.init_batch, self.quantum):
            raise ValueError(f"init_batch must be {on_grid}, got {self.init_batch}")
        if self.max_batch is None:
            return
        _check_integer("max_batch", self.max_batch, 1)
        if self.max_batch < self.init_batch or not is_on_grid(
            self.max_batch, self.quantum
        ):
            raise ValueError(
                f"max_batch must be None or >= init_batch={self.init_batch} and "
                f"{on_grid}, got {self.max_batch}"
            )


def _check_real(
    name: str, value: Any, allowed: str, accept: Callable[[float], bool]
) -> None:
    """Checks a number; a tracer, an array or a boolean is none."""
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_real or not accept(float(value)):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def _check_integer(name: str, value: Any, least: int) -> None:
    if not is_int(value) or not least <= value <= INT32_MAX:
        raise ValueError(
            f"{name} must be an int from {least} to {INT32_MAX}, got {value!r}"
        )
