"""Optimizers by name: the only such table.

No optimizer logic lives here, only the mapping from a run's `OptimizerConfig` to
transformations of Optax and of this library. Any name can also be asked for as
`gpa+<name>`: Generalized Primal Averaging around that optimizer.
"""

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import optax
from absl import logging
from jax.sharding import Mesh

import optim_jax
from experiments.config import OptimizerConfig
from optim_jax import MatrixAxes

GPA_PREFIX = "gpa+"

# Schedule-Free's own interpolation constant (arXiv 2405.15682, β = 0.9).
SCHEDULE_FREE_MU_Y = 0.9


# Fields that mean nothing to a method that finds its step itself.
NOT_OF_SEARCHES = (
    "optimizer.learning_rate",
    "optimizer.schedule",
    "optimizer.warmup_fraction",
    "optimizer.final_fraction",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
)


class RowObjective(NamedTuple):
    """What a run minimises, as a mean over rows: for methods that search along it."""

    losses: Callable[[Any, Any], jax.Array]  # (params, rows) -> (number of rows,)
    rows_at_once: int  # that are evaluated together


class Optimizer(NamedTuple):
    """A transformation and what the trainer must know about it."""

    transformation: optax.GradientTransformation  # follows `schedule` by its own count
    schedule: optax.Schedule  # step -> learning rate
    averages: bool  # evaluated at `gpa_eval_params`, not at the training parameters
    # Learning rate, possibly traced -> the same transformation at this rate; for steps
    # that do not all advance the schedule alike. Its state is that of `transformation`.
    at_rate: Callable[[Any], optax.GradientTransformation]
    uses_matrices: bool = False  # treats hidden matrices as matrices
    # Params or their shapes -> how Shampoo cuts them; None for other optimizers.
    plan: Callable[[Any], optim_jax.Plan] | None = None
    # Finds its step itself: `update` also takes the rows (`batch`) and their mean loss
    # (`value`), and no rate reaches it.
    searches: bool = False


class _Context(NamedTuple):
    """What a builder may use."""

    config: OptimizerConfig
    schedule: optax.Schedule
    matrix_axes: Callable[[Any], Any]  # params -> tree of MatrixAxes
    mesh: Mesh | None  # to spread Shampoo's blocks over
    param_specs: Any  # tree of PartitionSpec like the params; None: replicated
    objective: RowObjective | None  # None: the run does not offer it

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


def _adamw(
    context: _Context, *, nesterov: bool = False
) -> optax.GradientTransformation:
    config = context.config
    return optax.adamw(
        context.schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=context.decay_mask,
        nesterov=nesterov,
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


def _adagrad(context: _Context) -> optax.GradientTransformation:
    return optim_jax.row_sparse.dense_adagrad(context.schedule, eps=context.config.eps)


def _row_wise_adagrad(context: _Context) -> optax.GradientTransformation:
    """One statistic a row for embedding tables, one an entry for everything else."""
    eps = context.config.eps
    return optax.partition(
        {
            True: optim_jax.row_wise_adagrad(context.schedule, eps=eps),
            False: _adagrad(context),
        },
        lambda params: context.of_kind(params, ("embedding",)),
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


def _sign_sgd(context: _Context) -> optax.GradientTransformation:
    return optim_jax.sign_sgd(
        context.schedule,
        weight_decay=context.config.weight_decay,
        mask=context.decay_mask,
    )


def _signum(context: _Context) -> optax.GradientTransformation:
    return optim_jax.signum(
        context.schedule,
        b1=context.config.momentum,
        weight_decay=context.config.weight_decay,
        mask=context.decay_mask,
    )


def _specsgd(context: _Context) -> optax.GradientTransformation:
    config = context.config
    return optim_jax.specsgd(
        context.schedule,
        context.matrix_axes,
        b1=config.momentum,
        method=config.spectral_method,
        weight_decay=config.weight_decay,
        other=_adamw(context),
        mesh=context.mesh,
    )


def _muon(context: _Context) -> optax.GradientTransformation:
    config = context.config
    return optim_jax.muon(
        context.schedule,
        context.matrix_axes,
        b1=config.momentum,
        eps=config.eps,
        consistent_rms=config.consistent_rms or None,
        weight_decay=config.weight_decay,
        other=_adamw(context, nesterov=True),
        mesh=context.mesh,
    )


def _block_options(context: _Context) -> dict[str, Any]:
    """What the whole Shampoo family takes from the configuration."""
    config = context.config
    return {
        "b1": config.b1,
        "b2": config.b2,
        "relative_epsilon": config.relative_epsilon,
        "max_preconditioner_dim": config.max_preconditioner_dim,
        "precondition_frequency": config.precondition_frequency,
        "refresh": config.refresh,
        "matrix_axes": context.matrix_axes,
        "mesh": context.mesh,
        "param_specs": context.param_specs,
    }


def _grafting(config: OptimizerConfig) -> optim_jax.Graft | None:
    if config.grafting == "none":
        return None
    if config.grafting == "adam":
        return optim_jax.Graft("adam", b2=config.b2, eps=config.eps)
    return optim_jax.Graft(config.grafting)


def _shampoo_options(context: _Context) -> dict[str, Any]:
    return _block_options(context) | {"grafting": _grafting(context.config)}


def _soap_options(context: _Context) -> dict[str, Any]:
    return _block_options(context) | {
        "preconditioner": optim_jax.EigenvalueCorrected(),
        "eps": context.config.eps,
        "grafting": None,
    }


def _kl_shampoo_options(context: _Context) -> dict[str, Any]:
    # Published without grafting. But its first roots come from factors that no other
    # root has scaled: without a norm from elsewhere its first directions are as large
    # as the gradients are small.
    return _block_options(context) | {
        "preconditioner": optim_jax.KLRootInverse(inverse_exponent_override={2: 0.5}),
        "grafting": _grafting(context.config),
    }


def _pb_lbfgs(context: _Context) -> optax.GradientTransformation:
    config = context.config
    if context.objective is None:
        raise ValueError(
            "optimizer.name=pb_lbfgs searches along the loss of each row, which runs "
            "of this kind do not offer; language models do (experiments.train_llama)"
        )
    return optim_jax.pb_lbfgs(
        context.objective.losses,
        None,  # the run brings the batches
        memory_size=config.memory_size,
        theta=config.theta,
        line_search=config.line_search,
        damping=config.damping,
        chunk_size=context.objective.rows_at_once,
    ).as_optax()


class _Entry(NamedTuple):
    build: Callable[[_Context], optax.GradientTransformation]
    averages: bool = False
    uses_matrices: bool = False
    meant_for: str = ""  # the schedule it was published with; others get a warning
    # Keywords that the plan shares with the transformation; Shampoo's family only.
    plan_options: Callable[[_Context], dict[str, Any]] | None = None
    searches: bool = False


def _shampoo_entry(options: Callable[[_Context], dict[str, Any]]) -> _Entry:
    def build(context: _Context) -> optax.GradientTransformation:
        return optim_jax.shampoo(
            context.schedule,
            weight_decay=context.config.weight_decay,
            mask=context.decay_mask,
            **options(context),
        )

    return _Entry(build, uses_matrices=True, plan_options=options)


OPTIMIZERS: dict[str, _Entry] = {
    "adagrad": _Entry(_adagrad),
    "adamw": _Entry(_adamw),
    "adamw_ema": _Entry(_adamw_ema, averages=True),
    "diloco_adamw": _Entry(_diloco_adamw, averages=True),
    "gpa_adamw": _Entry(_gpa_adamw, averages=True),
    "kl_shampoo": _shampoo_entry(_kl_shampoo_options),
    "lion": _Entry(_lion),
    "muon": _Entry(_muon, uses_matrices=True),
    "pb_lbfgs": _Entry(_pb_lbfgs, searches=True),
    "row_wise_adagrad": _Entry(_row_wise_adagrad),
    "schedule_free_adamw": _Entry(
        _schedule_free_adamw, averages=True, meant_for="constant"
    ),
    "sgd": _Entry(_sgd),
    "shampoo": _shampoo_entry(_shampoo_options),
    "sign_sgd": _Entry(_sign_sgd),
    "signum": _Entry(_signum),
    "soap": _shampoo_entry(_soap_options),
    "specsgd": _Entry(_specsgd, uses_matrices=True),
}


def _plan(options: dict[str, Any], params: Any) -> optim_jax.Plan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the transformation has warned already
        return optim_jax.plan_preconditioners(params, **options)


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
    config: OptimizerConfig,
    *,
    steps: int,
    matrix_axes: Callable[[Any], Any],
    mesh: Mesh | None = None,
    param_specs: Any = None,
    objective: RowObjective | None = None,
) -> Optimizer:
    """Builds the optimizer a run asks for.

    Args:
      config: its name and numbers.
      steps: length of the run, for the schedule.
      matrix_axes: `params -> tree of MatrixAxes`, from the model.
      mesh: the run's mesh: over all of its axes Shampoo's blocks are spread. None
        keeps them on one device; the other optimizers follow their parameters.
      param_specs: tree of `PartitionSpec` like the params, where they lie on it.
      objective: of the run, for methods that evaluate it themselves.

    Raises:
      ValueError: for an unknown name (it lists what exists), or a method that needs an
        `objective` where there is none.
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
    if wrapped and entry.searches:
        raise ValueError(
            f"optimizer.name={config.name!r}: {base_name} searches along the loss at "
            f"the parameters, which an average would move; {GPA_PREFIX} takes an "
            "optimizer with a learning rate"
        )
    if entry.meant_for not in ("", config.schedule):
        logging.warning(
            "%s is meant for optimizer.schedule=%s, not %s",
            base_name,
            entry.meant_for,
            config.schedule,
        )
    schedule = learning_rate_schedule(config, steps)

    def context(schedule: optax.Schedule) -> _Context:
        return _Context(config, schedule, matrix_axes, mesh, param_specs, objective)

    def build(schedule: optax.Schedule) -> optax.GradientTransformation:
        transformation = entry.build(context(schedule))
        if wrapped:
            transformation = optim_jax.gpa(
                transformation, mu_x=config.mu_x, mu_y=config.mu_y
            )
        # Clipping comes first: edits after an averaging method move its implied x.
        # A line search needs the gradient of what it evaluates, so it is not clipped.
        if config.clip_norm != float("inf") and not entry.searches:
            clip = optax.clip_by_global_norm(config.clip_norm)
            transformation = optax.chain(clip, transformation)
        return transformation

    plan = None
    if entry.plan_options is not None:
        plan = functools.partial(_plan, entry.plan_options(context(schedule)))
    return Optimizer(
        transformation=build(schedule),
        schedule=schedule,
        averages=wrapped or entry.averages,
        at_rate=lambda rate: build(lambda count: rate),
        uses_matrices=entry.uses_matrices,
        plan=plan,
        searches=entry.searches,
    )


def require_applicable(name: str, given: Iterable[str]) -> None:
    """Refuses fields that someone asked for and that the optimizer has no use for.

    Args:
      name: of the optimizer.
      given: dotted names of the fields that were asked for, rather than taken from a
        preset.

    Raises:
      ValueError: names the fields.
    """
    entry = OPTIMIZERS.get(name)
    useless = [field for field in NOT_OF_SEARCHES if field in set(given)]
    if entry is not None and entry.searches and useless:
        raise ValueError(
            f"{', '.join(useless)} cannot be given with optimizer.name={name}: its "
            "line search finds the length of every step, on the plain objective; "
            f"leave {'it' if len(useless) == 1 else 'them'} out"
        )
