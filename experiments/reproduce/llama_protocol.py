"""What is trained and tuned to compare optimizers on a Llama.

A protocol holds the arms with their hyperparameters; a configuration of an arm and a
seed stand for one training run.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from experiments.reproduce.sweep import Run
from experiments.reproduce.tuning import Arm, Trial


def averaging_memory(inner_steps: int) -> float:
    """Smoothing whose memory after H steps is DiLoCo's outer momentum 0.9."""
    return 0.9 ** (1.0 / inner_steps)


def optimizer_arm(
    name: str,
    label: str,
    optimizer: str,
    variants: Sequence[Mapping[str, Any]],
    **fixed: Any,
) -> Arm:
    """An arm with the config fields of `optimizer` spelled out."""
    return Arm(
        name,
        label,
        tuple(
            {f"optimizer.{k}": v for k, v in variant.items()} for variant in variants
        ),
        {"optimizer.name": optimizer} | {f"optimizer.{k}": v for k, v in fixed.items()},
    )


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is trained and tuned at one scale.

    Attributes:
      title: of the report.
      preset: of the trainer.
      overrides: fields that all runs share.
      steps: length of every run.
      tokens_per_step: for the plan.
      arms: the methods, with equally many variants; the first is the baseline.
      learning_rates: first grid of every arm.
      factor: ratio of neighbouring learning rates.
      comparisons: arms that a claim is about, and the arms it must hold against.
      sentences: the protocol in words.
    """

    title: str
    preset: str
    overrides: Mapping[str, Any]
    steps: int
    tokens_per_step: int
    arms: tuple[Arm, ...]
    learning_rates: tuple[float, ...]
    factor: float
    comparisons: Mapping[str, tuple[str, ...]]
    sentences: tuple[str, ...]


# A frozen dataclass with a field `overrides`.
AnyProtocol = TypeVar("AnyProtocol", bound=Any)


def nano_overrides(steps: int, checks: int) -> dict[str, Any]:
    """Fields of runs of the nano Llama: 32 rows a step, `checks` evaluations."""
    return {
        "batch.size": 32,
        "evaluation.every": max(1, steps // checks),
        "evaluation.batches": 12,
        "checkpoint.every": max(1, steps // 2),
        "checkpoint.keep": 1,
        "logging.every": max(1, steps // 50),
        "logging.tensorboard": False,
        "logging.progress": False,
    }


def c4_overrides(steps: int) -> dict[str, Any]:
    """Fields of runs of Llama-160M on C4: 128 rows of 2,048 tokens a step."""
    return {
        "batch.size": 128,
        "data.seq_len": 2048,
        "evaluation.every": max(1, steps // 60),
        "checkpoint.keep": 1,
        "optimizer.warmup_fraction": 0.05,
        "logging.progress": False,
    }


def with_overrides(protocol: AnyProtocol, overrides: Sequence[str]) -> AnyProtocol:
    """The protocol with `field=value` of the training config changed for all runs."""
    extra = dict(override.split("=", 1) for override in overrides)
    return dataclasses.replace(protocol, overrides={**protocol.overrides, **extra})


def run_of(protocol: Protocol, trial: Trial, seed: int) -> Run:
    """The training run of one configuration and seed."""
    arm = next(arm for arm in protocol.arms if arm.name == trial.arm)
    overrides = {
        **protocol.overrides,
        "steps": protocol.steps,
        **arm.fixed,
        **arm.variants[trial.variant],
        "optimizer.learning_rate": trial.learning_rate,
        "seed": seed,
    }
    label = f"{arm.name} lr={trial.learning_rate:.3g} seed={seed}"
    return Run(protocol.preset, overrides, label)


def first_trials(protocol: Protocol) -> list[Trial]:
    """The configurations tried before any extension."""
    return [
        Trial(arm.name, variant, rate)
        for arm in protocol.arms
        for variant in range(len(arm.variants))
        for rate in protocol.learning_rates
    ]


def checked_steps(protocol: Protocol) -> list[int]:
    """The steps after which the trainer evaluates; the last one always."""
    every = int(protocol.overrides["evaluation.every"])
    steps = set(range(every, protocol.steps + 1, every)) | {protocol.steps}
    return sorted(steps)
