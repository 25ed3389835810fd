"""The batch of a run: its size, what changes it, and how noise scales are measured."""

import dataclasses
import math

from experiments.config_checks import (
    require,
    require_at_least,
    require_fraction,
    require_one_of,
)

NOISE_GEOMETRIES = ("none", "sign", "spectral", "l2")
ROUNDINGS = ("ceil", "floor")


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """The batch is a number of micro-batches of one fixed size.

    At most one of `adaptive`, `path` and `seesaw` may change it during a run. All of
    them count samples: rows trained on.
    """

    size: int = 16  # rows of the first step, over all devices
    micro_batch: int = 0  # rows per accumulation, over all devices; 0: the whole batch
    adaptive: str = "none"  # noise scale that sets the size: one of NOISE_GEOMETRIES
    theta: float = 0.6  # adaptive: noise to signal asked for; size = scale / theta^2
    max_size: int = 0  # rows a growing batch may reach; adaptive, seesaw
    warmup_fraction: float = 0.15  # adaptive: share of all samples before a change
    ema_noise: float = 0.9  # adaptive: memory of the squared noise, per measurement
    ema_signal: float = 0.9  # adaptive: memory of the squared signal
    rounding: str = "ceil"  # adaptive: ceil | floor, to whole micro-batches
    monotone: bool = True  # adaptive: the batch never shrinks
    hysteresis: float = 0.2  # adaptive, not monotone: shrink only by more than this
    max_growth: float = 0.0  # adaptive: largest factor of one change; 0: any
    momentum: float = 0.0  # adaptive: b1 whose averaging counts as a larger batch
    apply_lag: int = 0  # adaptive: steps between a decision and its effect
    path: str = ""  # CSV of samples_seen,batch_size to follow
    seesaw: bool = False  # double the batch where the schedule would halve the rate
    lr_power: float = 0.5  # adaptive, path: rate times (batch / size) to this power

    def __post_init__(self):
        require_at_least("batch.size", self.size, 1)
        require_at_least("batch.micro_batch", self.micro_batch, 0)
        require(
            self.size % self.micro_size == 0,
            f"batch.size={self.size} is not a multiple of "
            f"batch.micro_batch={self.micro_batch}",
        )
        require_one_of("batch.adaptive", self.adaptive, NOISE_GEOMETRIES)
        require_one_of("batch.rounding", self.rounding, ROUNDINGS)
        for name in ("ema_noise", "ema_signal", "momentum", "warmup_fraction"):
            require_fraction(f"batch.{name}", getattr(self, name))
        for name in ("hysteresis", "lr_power", "apply_lag"):
            require_at_least(f"batch.{name}", getattr(self, name), 0)
        require(
            self.theta > 0 and math.isfinite(self.theta),
            f"batch.theta must be > 0, got {self.theta}",
        )
        require(
            self.max_growth == 0 or self.max_growth > 1,
            f"batch.max_growth must be > 1, or 0 for any, got {self.max_growth}",
        )
        rules = [
            f"batch.{name}={value}"
            for name, value, off in (
                ("adaptive", self.adaptive, "none"),
                ("path", self.path, ""),
                ("seesaw", self.seesaw, False),
            )
            if value != off
        ]
        require(
            len(rules) <= 1,
            f"at most one rule may change the batch, got {' and '.join(rules)}",
        )
        self._check_max_size()

    def _check_max_size(self):
        if not self.grows:
            return
        require(
            self.max_size >= self.size,
            f"batch.max_size must be >= batch.size={self.size} where the batch grows, "
            f"got {self.max_size}",
        )
        require(
            self.max_size % self.micro_size == 0,
            f"batch.max_size={self.max_size} is not a multiple of the micro-batch of "
            f"{self.micro_size} rows",
        )

    @property
    def grows(self) -> bool:
        """Whether a rule of this config enlarges the batch, up to `max_size`."""
        return self.adaptive != "none" or self.seesaw

    @property
    def micro_size(self) -> int:
        """Rows per accumulation, over all devices."""
        return self.micro_batch or self.size


DRAWS = ("microbatches", "ranks")
SIDES = ("min", "row", "col", "tightest")
SIGNALS = ("mean", "debiased", "alignment")
NOISES = ("moments", "direct")
SQRT_BIASES = ("none", "gaussian")
SPECTRAL_METHODS = ("eigh", "matmul")


@dataclasses.dataclass(frozen=True)
class NoiseScaleConfig:
    """How the gradient noise scale of `batch.adaptive` is measured.

    A rank is a part of the mesh that holds rows of its own. Draws are independent
    gradients of equally many rows; at least two are needed.
    """

    every: int = 100  # optimizer steps between measurements, the first at step 0
    draws: str = "microbatches"  # microbatches: every one on every rank is a draw |
    # ranks: a rank's micro-batches together are one
    splits: int = 1  # cut each rank's micro-batch into this many draws when measuring
    side: str = "min"  # spectral: Gram matrix of the one or the other side
    signal: str = "mean"  # mean | debiased (l2) | alignment (draws=ranks)
    noise: str = "moments"  # moments | direct (draws=ranks)
    sqrt_bias: str = "none"  # sign: gaussian divides the deviations by c4(n)
    method: str = "eigh"  # spectral: eigh | matmul

    def __post_init__(self):
        require_at_least("noise_scale.every", self.every, 1)
        require_at_least("noise_scale.splits", self.splits, 1)
        for name, choices in (
            ("draws", DRAWS),
            ("side", SIDES),
            ("signal", SIGNALS),
            ("noise", NOISES),
            ("sqrt_bias", SQRT_BIASES),
            ("method", SPECTRAL_METHODS),
        ):
            require_one_of(f"noise_scale.{name}", getattr(self, name), choices)
        require(
            not self.resamples or self.draws == "ranks",
            "noise_scale.signal=alignment and noise_scale.noise=direct need all draws "
            "at once: set noise_scale.draws=ranks, got "
            f"{self.draws!r}",
        )

        require(
            self.noise != "direct" or self.sqrt_bias == "none",
            "noise_scale.sqrt_bias must be none with noise_scale.noise=direct, which "
            f"takes no root of a variance, got {self.sqrt_bias!r}",
        )

    @property
    def resamples(self) -> bool:
        """Whether the draws themselves are needed, not only their moments."""
        return self.signal == "alignment" or self.noise == "direct"
