"""Optimizers by name: the only such table.

No optimizer logic lives here, only the mapping from a run's `OptimizerConfig` to
transformations of Optax and of this library. Any name can also be asked for as
`gpa+<name>`: Generalized Primal Averaging around that optimizer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from absl import logging

import optim_jax
from experiments.config import OptimizerConfig
from optim_jax import MatrixAxes

GPA_PREFIX = "gpa+"

# Schedule-Free's own interpolation constant (arXiv 2405.15682, β = 0.9).
SCHEDULE_FREE_MU_Y = 0.9


class Optimizer(NamedTuple):
    """A transformation and what the trainer must know about it."""

    transformation: optax.GradientTransformation
    schedule: optax.Schedule  # step -> learning rate, for the log
    averages: bool  # evaluated at `gpa_eval_params`, not at the training parameters


class _Context(NamedTuple):
    """What a builder may use."""

    config: OptimizerConfig
    schedule: optax.Schedule
    matrix_axes: Callable[[Any], Any]  # params -> tree of MatrixAxes

    def of_kind(self, params: Any, kinds: tuple[str, ...]) -> Any:
        """True for leaves of these kinds."""
        return jax.tree.map(
            lambda axes: axes.kind in kinds,
            self.matrix_axes(params),
            is_leaf=lambda node: isinstance(node, MatrixAxes),
        )

    def decay_mask(self, params: Any) -> Any:
        """True for matrices and embeddings, False for norms and biases."""
        return self.of_kind(params, ("hidden", "embedding", "head"))

    def muon_dimensions(self, params: Any) -> Any:
        """Optax's routing: hidden matrices orthogonalised, the rest left to Adam."""
        return jax.tree.map(
            lambda axes: (
                optax.contrib.MuonDimensionNumbers(
                    reduction_axis=axes.reduction_axes, output_axis=axes.output_axes
                )
                if axes.kind == "hidden"
                else None
            ),
            self.matrix_axes(params),
            is_leaf=lambda node: isinstance(node, MatrixAxes),
        )


def _adamw(context: _Context) -> optax.GradientTransformation:
    config = context.config
    return optax.adamw(
        context.schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=context.decay_mask,
    )


def _gpa_adamw(context: _Context) -> optax.GradientTransformation:
    config = context.config
    return optim_jax.gpa_adamw(
        context.schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        decay_mode=config.decay_mode,
        mask=context.decay_mask,
        mu_x=config.mu_x,
        mu_y=config.mu_y,
    )


def _schedule_free_adamw(context: _Context) -> optax.GradientTransformation:
    config = context.config
    if config.schedule != "constant":
        logging.warning(
            "schedule_free_adamw averages uniformly and is meant for "
            "optimizer.schedule=constant, not %s",
            config.schedule,
        )
    return optim_jax.gpa_adamw(
        context.schedule,
        b1=0.0,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        decay_mode=config.decay_mode,
        mask=context.decay_mask,
        mu_y=SCHEDULE_FREE_MU_Y,
        averaging="schedule_free",
    )


def _diloco_adamw(context: _Context) -> optax.GradientTransformation:
    config = context.config
    return optim_jax.single_worker_diloco(
        _adamw(context),
        inner_steps=config.inner_steps,
        outer_learning_rate=config.outer_learning_rate,
        outer_momentum=config.outer_momentum,
    )


def _adamw_ema(context: _Context) -> optax.GradientTransformation:
    # With mu_y = 0 training follows AdamW exactly and x is its exponential average.
    return optax.chain(
        _adamw(context),
        optim_jax.scale_by_primal_averaging(mu_x=context.config.ema_decay, mu_y=0.0),
    )


def _sgd(context: _Context) -> optax.GradientTransformation:
    config = context.config
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=context.decay_mask),
        optax.sgd(context.schedule, momentum=config.momentum),
    )


def _lion(context: _Context) -> optax.GradientTransformation:
    config = context.config
    return optax.lion(
        context.schedule,
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=context.decay_mask,
    )


def _muon(context: _Context) -> optax.GradientTransformation:
    config = context.config

    def negative_decay(step: jax.Array) -> jax.Array:
        return -config.weight_decay * context.schedule(step)

    def adam_matrices(params: Any) -> Any:
        return context.of_kind(params, ("embedding", "head"))

    # Optax's Muon would decay every leaf that it leaves to Adam, norms included.
    return optax.chain(
        optax.contrib.muon(
            context.schedule,
            beta=config.momentum,
            eps=config.eps,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=0.0,
            muon_weight_dimension_numbers=context.muon_dimensions,
        ),
        optax.add_decayed_weights(negative_decay, mask=adam_matrices),
    )


class _Entry(NamedTuple):
    build: Callable[[_Context], optax.GradientTransformation]
    averages: bool = False


OPTIMIZERS: dict[str, _Entry] = {
    "adamw": _Entry(_adamw),
    "adamw_ema": _Entry(_adamw_ema, averages=True),
    "diloco_adamw": _Entry(_diloco_adamw, averages=True),
    "gpa_adamw": _Entry(_gpa_adamw, averages=True),
    "lion": _Entry(_lion),
    "muon": _Entry(_muon),
    "schedule_free_adamw": _Entry(_schedule_free_adamw, averages=True),
    "sgd": _Entry(_sgd),
}


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then the configured decay over the rest of the run.

    The first step already moves: the rate of step `t` (0-based) during warm-up is
    `(t + 1) / warmup_steps` of the peak.
    """
    warmup = round(config.warmup_fraction * steps)
    peak, last = config.learning_rate, config.learning_rate * config.final_fraction
    decay = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(
            peak, max(1, steps - warmup), alpha=config.final_fraction
        ),
        "linear": optax.linear_schedule(peak, last, max(1, steps - warmup)),
    }[config.schedule]
    if not warmup:
        return decay
    rise = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([rise, decay], [warmup])


def build_optimizer(
    config: OptimizerConfig, *, steps: int, matrix_axes: Callable[[Any], Any]
) -> Optimizer:
    """Builds the optimizer a run asks for.

    Args:
      config: its name and numbers.
      steps: length of the run, for the schedule.
      matrix_axes: `params -> tree of MatrixAxes`, from the model.

    Raises:
      ValueError: for an unknown name; it lists what exists.
    """
    wrapped = config.name.startswith(GPA_PREFIX)
    base_name = config.name.removeprefix(GPA_PREFIX)
    if base_name not in OPTIMIZERS:
        raise ValueError(
            f"optimizer.name must be one of {', '.join(sorted(OPTIMIZERS))}, each also "
            f"as {GPA_PREFIX}<name>; got {config.name!r}"
        )
    entry = OPTIMIZERS[base_name]
    if wrapped and entry.averages:
        raise ValueError(
            f"optimizer.name={config.name!r}: {base_name} already averages; "
            f"{GPA_PREFIX} takes a plain optimizer"
        )
    context = _Context(config, learning_rate_schedule(config, steps), matrix_axes)
    transformation = entry.build(context)
    if wrapped:
        transformation = optim_jax.gpa(
            transformation, mu_x=config.mu_x, mu_y=config.mu_y
        )
    # Clipping comes first: edits after an averaging method would move its implied x.
    if config.clip_norm != float("inf"):
        transformation = optax.chain(
            optax.clip_by_global_norm(config.clip_norm), transformation
        )
    return Optimizer(transformation, context.schedule, wrapped or entry.averages)
