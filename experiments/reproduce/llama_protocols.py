"""What is trained and tuned to compare GPA with its peers on a Llama.

Protocols, the arms with their hyperparameters, and the training run that one
configuration and seed stand for.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from experiments.reproduce.claims import Options
from experiments.reproduce.sweep import Run
from experiments.reproduce.tuning import Arm, Trial


def _mu_x(inner_steps: int) -> float:
    """Smoothing whose memory after H steps is DiLoCo's outer momentum 0.9."""
    return 0.9 ** (1.0 / inner_steps)


def _arm(name: str, label: str, optimizer: str, variants, **fixed: Any) -> Arm:
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
      preset: of the trainer.
      overrides: fields that all runs share.
      steps: length of every run.
      tokens_per_step: for the plan.
      arms: the methods, with equally many variants.
      learning_rates: first grid of every arm.
      factor: ratio of neighbouring learning rates.
      sentences: the protocol in words.
    """

    preset: str
    overrides: Mapping[str, Any]
    steps: int
    tokens_per_step: int
    arms: tuple[Arm, ...]
    learning_rates: tuple[float, ...]
    factor: float
    sentences: tuple[str, ...]


def _cpu_protocol(steps: int) -> Protocol:
    steps = steps or 1500
    return Protocol(
        preset="llama_nano_stdlib",
        overrides={
            "batch.size": 32,
            "evaluation.every": max(1, steps // 20),
            "evaluation.batches": 12,
            "checkpoint.every": max(1, steps // 2),
            "checkpoint.keep": 1,
            "logging.every": max(1, steps // 50),
            "logging.tensorboard": False,
            "logging.progress": False,
        },
        steps=steps,
        tokens_per_step=32 * 64,
        # Variants follow the lag rule: an average over 5-15 % of a run this short.
        arms=(
            _arm("adamw", "AdamW", "adamw", [{"b1": 0.9}, {"b1": 0.95}]),
            _arm(
                "adamw_ema",
                "AdamW + EMA",
                "adamw_ema",
                [{"ema_decay": _mu_x(h)} for h in (4, 16)],
            ),
            _arm(
                "schedule_free",
                "Schedule-Free",
                "schedule_free_adamw",
                [{"b2": 0.95}, {"b2": 0.99}],
                schedule="constant",
            ),
            _arm(
                "diloco",
                "DiLoCo, one worker",
                "diloco_adamw",
                [{"outer_momentum": 0.5}, {"outer_momentum": 0.9}],
                inner_steps=16,
                outer_learning_rate=0.7,
            ),
            _arm(
                "gpa",
                "GPA",
                "gpa_adamw",
                [{"mu_x": _mu_x(h)} for h in (8, 16)],
                mu_y=0.7,
            ),
        ),
        learning_rates=(6e-3, 12e-3, 24e-3),
        factor=2.0,
        sentences=(
            "Byte-level Llama with 131 thousand parameters on standard-library text, "
            f"{steps} steps of 32 x 64 bytes; warm-up over 5 %, then cosine to zero "
            "(Schedule-Free: constant); b2 = 0.95 unless varied, decay 0.1 on "
            "matrices, gradients clipped at norm 1; validated on 384 fixed windows.",
            "GPA and AdamW + EMA: mu_x = 0.9^(1/H), varied are H = 8, 16 and "
            "H = 4, 16.",
        ),
    )


def _gpu_protocol(steps: int) -> Protocol:
    steps = steps or 12_000
    horizons = (8, 16, 32, 64)
    return Protocol(
        preset="llama_160m_c4",
        overrides={
            "batch.size": 128,
            "data.seq_len": 2048,
            "evaluation.every": max(1, steps // 60),
            "checkpoint.keep": 1,
            "optimizer.warmup_fraction": 0.05,
            "logging.progress": False,
        },
        steps=steps,
        tokens_per_step=128 * 2048,
        arms=(
            _arm(
                "adamw",
                "AdamW",
                "adamw",
                [{"b1": b1, "b2": b2} for b1 in (0.9, 0.95) for b2 in (0.95, 0.99)],
            ),
            _arm(
                "adamw_ema",
                "AdamW + EMA",
                "adamw_ema",
                [{"ema_decay": _mu_x(h)} for h in horizons],
            ),
            _arm(
                "schedule_free",
                "Schedule-Free",
                "schedule_free_adamw",
                [
                    {"b2": b2, "warmup_fraction": share}
                    for b2 in (0.95, 0.99)
                    for share in (0.05, 0.1)
                ],
                schedule="constant",
            ),
            _arm(
                "diloco",
                "DiLoCo, one worker",
                "diloco_adamw",
                [
                    {"inner_steps": steps_, "outer_momentum": momentum}
                    for steps_ in (16, 64)
                    for momentum in (0.5, 0.9)
                ],
                outer_learning_rate=0.7,
            ),
            _arm(
                "gpa",
                "GPA",
                "gpa_adamw",
                [{"mu_x": _mu_x(h)} for h in horizons],
                mu_y=0.7,
            ),
        ),
        learning_rates=(5e-4, 1e-3, 2e-3, 4e-3),
        factor=2.0,
        sentences=(
            f"Llama-160M on C4, {steps} steps of 128 x 2,048 tokens "
            f"({steps * 128 * 2048 / 1e9:.2f} billion tokens); warm-up over 5 %, then "
            "cosine to zero (Schedule-Free: constant); b = (0.9, 0.95) unless varied, "
            "decay 0.1 on matrices, gradients clipped at norm 1. Batch, length, "
            "warm-up and learning-rate grid are a reconstruction.",
            "GPA and AdamW + EMA: mu_x = 0.9^(1/H), H = 8, 16, 32, 64; GPA's "
            "mu_y = 0.7.",
        ),
    )


_PROTOCOLS: dict[str, Callable[[int], Protocol]] = {
    "cpu": _cpu_protocol,
    "gpu": _gpu_protocol,
}


def protocol_of(options: Options) -> Protocol:
    """The protocol of a scale, with the overrides of the command line."""
    protocol = _PROTOCOLS[options.scale](options.steps)
    extra = dict(override.split("=", 1) for override in options.overrides)
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
