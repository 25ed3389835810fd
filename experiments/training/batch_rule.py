"""What sets batch and rate of each step: a constant, a path or a controller."""

from collections.abc import Callable
from typing import NamedTuple

import optax

from experiments.config import BatchConfig, NoiseScaleConfig, TrainConfig
from experiments.training.batch_path import Change, read_batch_path, size_along
from experiments.training.seesaw import seesaw
from experiments.training.step import Rate, by_schedule
from optim_jax.noise_scale import (
    BatchSizeConfig,
    BatchSizeController,
    batch_size_controller,
)


class BatchRule(NamedTuple):
    """How large the steps are and how far they go, by the rows trained on.

    Attributes:
      path: the sizes known in advance; of a closed loop the first one only.
      rate: (rows trained on, batch size) -> learning rate, in graph.
      controller: of the closed loop; None where the path tells all.
    """

    path: tuple[Change, ...]
    rate: Rate
    controller: BatchSizeController | None = None

    @property
    def size_at(self) -> Callable[[int], int]:
        """Batch size by rows trained on, where the path tells it."""
        return size_along(self.path)


def build_batch_rule(config: TrainConfig, schedule: optax.Schedule) -> BatchRule:
    """The rule that a run asks for.

    Args:
      config: of the run.
      schedule: learning rate as a function of steps of `batch.size` rows.

    Raises:
      ValueError, OSError: a path that cannot be followed; names file and line.
    """
    batch = config.batch
    if batch.seesaw:
        return _seesaw_rule(config, schedule)
    start = (Change(0, batch.size),)
    rate = by_schedule(schedule, batch.size, batch.lr_power)
    if batch.path:
        path = read_batch_path(batch.path, quantum=batch.micro_size)
        return BatchRule(path, rate)
    if batch.adaptive == "none":
        return BatchRule(start, rate)
    settings = controller_config(batch, config.noise_scale, config.total_samples)
    return BatchRule(start, rate, batch_size_controller(settings))


def _seesaw_rule(config: TrainConfig, schedule: optax.Schedule) -> BatchRule:
    batch = config.batch
    if config.optimizer.schedule == "constant":
        raise ValueError(
            "batch.seesaw=true grows the batch where the schedule would halve the "
            "rate, and optimizer.schedule=constant never does"
        )
    plan = seesaw(
        schedule, steps=config.steps, size=batch.size, max_size=batch.max_size
    )
    before = by_schedule(schedule, batch.size, lr_power=0.0)
    return BatchRule(
        plan.path,
        lambda samples, size: plan.rate(before(samples, size), samples),
    )


def controller_config(
    batch: BatchConfig, noise_scale: NoiseScaleConfig, total_samples: int
) -> BatchSizeConfig:
    """The controller's settings, in rows."""
    return BatchSizeConfig(
        theta=batch.theta,
        init_batch=batch.size,
        max_batch=batch.max_size,
        ema_noise=batch.ema_noise,
        ema_signal=batch.ema_signal,
        every=noise_scale.every,
        warmup_samples=round(batch.warmup_fraction * total_samples),
        quantum=batch.micro_size,
        rounding=batch.rounding,
        monotone=batch.monotone,
        hysteresis=batch.hysteresis,
        max_growth=batch.max_growth or None,
        lr_power=batch.lr_power,
        apply_lag=batch.apply_lag,
        momentum=batch.momentum,
    )
