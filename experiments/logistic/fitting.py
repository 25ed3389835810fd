"""One fit from a configuration: data, reference optimum, method, files."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from experiments.config_checks import require, require_one_of
from experiments.config_fields import to_dict
from experiments.logistic.baselines import (
    STOCHASTIC,
    check_batch_size,
    run_lbfgs,
    run_stochastic,
)
from experiments.logistic.datasets import DatasetConfig, load_problem
from experiments.logistic.figures import plot_batch_sizes, plot_gaps
from experiments.logistic.fit_records import Fit, OnRecord, Record
from experiments.logistic.pb_lbfgs_fit import make_solver, run_pb_lbfgs
from experiments.logistic.problem import LogisticProblem
from experiments.logistic.reference_optimum import Optimum, reference_optimum
from experiments.logistic.tuning import TUNING_SEEDS, tune_learning_rate
from experiments.provenance import provenance
from experiments.training.metrics import MetricsWriter
from experiments.training.progress import Progress
from experiments.training.run_directory import RunDirectory

METHODS = ("pb_lbfgs", "lbfgs", *STOCHASTIC)

# Which methods take which of the options that not all of them have.
_TAKEN_BY = {
    "batch_size": ("pb_lbfgs", *STOCHASTIC),
    "memory_size": ("pb_lbfgs", "lbfgs"),
    "learning_rate": STOCHASTIC,
    "tuning_epochs": STOCHASTIC,
}


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """What to fit, and how.

    Attributes:
      dataset: the problem.
      method: one of `METHODS`.
      seed: of the samples drawn.
      max_epochs: budget, in gradients over N.
      tol: on the largest entry of the gradient of F.
      batch_size: of the stochastic methods, initial one of `pb_lbfgs`; None for the
        method's own.
      memory_size: pairs of `lbfgs` and `pb_lbfgs`; None for 10.
      learning_rate: of the stochastic methods; None searches it (`tuning`).
      tuning_epochs: of that search; None for 10, or `max_epochs` if it is less.
      solver: other options of `optim_jax.pb_lbfgs`, by name.
    """

    dataset: DatasetConfig = DatasetConfig()
    method: str = "pb_lbfgs"
    seed: int = 0
    max_epochs: float = 100.0
    tol: float = 1e-8
    batch_size: int | None = None
    memory_size: int | None = None
    learning_rate: float | None = None
    tuning_epochs: float | None = None
    solver: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        require_one_of("method", self.method, METHODS)
        for name, methods in _TAKEN_BY.items():
            value = getattr(self, name)
            require(
                value is None or self.method in methods,
                f"{name}={value} is for {', '.join(methods)}, not for {self.method}",
            )
        if self.solver and self.method != "pb_lbfgs":
            name, value = next(iter(self.solver.items()))
            raise ValueError(f"{name}={value} is for pb_lbfgs, not for {self.method}")
        # Written so that NaN fails.
        require(
            0 < self.max_epochs < math.inf,
            f"max_epochs must be > 0 and finite, got {self.max_epochs}",
        )
        require(self.tol >= 0, f"tol must be >= 0, got {self.tol}")
        for name in ("learning_rate", "tuning_epochs"):
            value = getattr(self, name)
            require(
                value is None or 0 < value < math.inf,
                f"{name} must be > 0 and finite, got {value}",
            )
        require(
            self.memory_size is None or self.memory_size >= 1,
            f"memory_size must be >= 1, got {self.memory_size}",
        )
        require(
            not self.tunes or self.seed not in TUNING_SEEDS,
            f"seed={self.seed} is a seed of the learning rate's search; take another, "
            "or give learning_rate",
        )

    @property
    def tunes(self) -> bool:
        """Whether the learning rate is searched first."""
        return self.method in STOCHASTIC and self.learning_rate is None


class FitOutcome(NamedTuple):
    """A fit and what it is measured against.

    Attributes:
      fit: the fit.
      optimum: of its problem.
      summary: the row of summary.json.
      message: lines for a person.
    """

    fit: Fit
    optimum: Optimum
    summary: dict[str, Any]
    message: str


def fit_problem(
    problem: LogisticProblem,
    config: FitConfig,
    *,
    optimum: float | None = None,
    on_record: OnRecord | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Fit:
    """Fits as configured; the data of the configuration are not looked at.

    Args:
      problem: to solve; 64-bit types must be enabled if its data have them.
      config: method and options.
      optimum: F*, for the gaps.
      on_record: called with each new record.
      say: called with a line about the learning rate found.

    Raises:
      ValueError: for an option out of its range.
    """
    shared = {
        "max_epochs": config.max_epochs,
        "tol": config.tol,
        "optimum": optimum,
        "on_record": on_record,
    }
    sizes = _sizes(config)
    if config.method == "lbfgs":
        return run_lbfgs(problem, **sizes, **shared)
    if config.method == "pb_lbfgs":
        return run_pb_lbfgs(
            problem, seed=config.seed, **sizes, **shared, **config.solver
        )
    rate = config.learning_rate
    if config.tunes:
        tuning = tune_learning_rate(
            problem,
            config.method,
            epochs=config.tuning_epochs or min(10.0, config.max_epochs),
            reporting_seeds=(config.seed,),
            **sizes,
        )
        rate = tuning.learning_rate
        edge = "" if tuning.interior else ", at the edge of the grid"
        say(f"learning rate {rate:g}: the best of {len(tuning.values)}{edge}")
    return run_stochastic(
        problem, config.method, rate, seed=config.seed, **sizes, **shared
    )


def run(
    config: FitConfig, output_dir: str | pathlib.Path, *, progress: bool = True
) -> FitOutcome:
    """Fits as configured and writes all about it into a folder.

    `metrics.jsonl` and `metrics.csv` have a row per iteration, in which `tokens` are
    gradients of single samples; `gap.png` and `batch_size.png` show them.

    Args:
      config: the fit.
      output_dir: must not hold another run.
      progress: whether to show a bar.

    Returns:
      The fit; its message says where it ended.

    Raises:
      ValueError, OSError, ImportError: one sentence that names what to change.
    """
    directory = RunDirectory(output_dir)
    with jax.enable_x64(config.dataset.dtype == "float64"):
        problem = load_problem(config.dataset)
        _check_sizes(problem, config)
        directory.start(to_dict(config), provenance())
        try:
            optimum = reference_optimum(problem)
            fit, summary = _recorded_fit(problem, config, optimum, directory, progress)
        except BaseException as error:
            directory.write_status("failed", reason=f"{type(error).__name__}: {error}")
            raise
    title = f"{config.method} on {problem.name}"
    plot_gaps({config.method: [fit]}, directory.path / "gap.png", title=title)
    plot_batch_sizes(
        {config.method: [fit]},
        directory.path / "batch_size.png",
        title=title,
        num_samples=problem.num_samples,
    )
    status = "diverged" if fit.reason == "diverged" else "finished"
    directory.write_status(status, step=fit.final.iteration, reason=fit.reason)
    return FitOutcome(fit, optimum, summary, _message(summary, optimum, directory.path))


def _check_sizes(problem: LogisticProblem, config: FitConfig) -> None:
    """Refuses options that do not fit the data, before anything is written."""
    if config.method == "pb_lbfgs":
        make_solver(problem, **_sizes(config), **config.solver)
    elif config.batch_size is not None:
        check_batch_size(problem, config.batch_size)


def _sizes(config: FitConfig) -> dict[str, int]:
    """The sizes that were asked for."""
    names = ("batch_size", "memory_size")
    given = {name: getattr(config, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _recorded_fit(
    problem: LogisticProblem,
    config: FitConfig,
    optimum: Optimum,
    directory: RunDirectory,
    progress: bool,
) -> tuple[Fit, dict[str, Any]]:
    """The fit and its summary; records go to the folder and the bar as they come."""
    total = math.ceil(config.max_epochs)
    writer = MetricsWriter(directory.path, tensorboard=False)
    bar = Progress(total, enabled=progress, unit="gradients")

    def on_record(record: Record) -> None:
        row = record.as_row()
        iteration, seconds = row.pop("iteration"), row.pop("seconds")
        gradients = round(record.epochs * problem.num_samples)
        writer.write(iteration, "train", row, wall_s=seconds, tokens=gradients)
        per_s = gradients / seconds if seconds else None
        bar.update(min(int(record.epochs), total), loss=record.value, per_s=per_s)

    with contextlib.closing(writer), bar:
        fit = fit_problem(
            problem, config, optimum=optimum.value, on_record=on_record, say=print
        )
        summary = _summary(fit, optimum, problem)
        writer.write_summary(summary)
    return fit, summary


def _summary(fit: Fit, optimum: Optimum, problem: LogisticProblem) -> dict[str, Any]:
    final = fit.final
    return {
        "dataset": problem.name,
        "samples": problem.num_samples,
        "features": problem.num_features,
        "l2": problem.l2,
        "method": fit.method,
        "reason": fit.reason,
        "iterations": final.iteration,
        "epochs": final.epochs,
        "value": final.value,
        "gap": final.gap,
        "grad_norm": final.grad_norm,
        "seconds": final.seconds,
        "optimum": optimum.value,
        "optimum_grad_norm": optimum.grad_norm,
    }


def _message(summary: dict[str, Any], optimum: Optimum, path: pathlib.Path) -> str:
    lines = [
        "{method} on {dataset} ({samples:,} x {features:,}, l2={l2:.4g}): {reason} "
        "after {iterations} iterations, {epochs:.2f} epochs, {seconds:.3g} s",
        "F = {value:.15g}, F - F* = {gap:.3g}, max |gradient| = {grad_norm:.3g}",
        str(path),
    ]
    if not optimum.converged:
        lines.insert(2, "F* is known to max |gradient| = {optimum_grad_norm:.3g} only")
    return "\n".join(lines[:-1]).format(**summary) + f"\n{lines[-1]}"
