"""Shampoo, SOAP and KL-Shampoo against AdamW and Muon on a Llama, on equal budgets.

`--scale=cpu`: a byte-level Llama of 131 thousand parameters on standard-library text.
`--scale=gpu`: Llama-160M on C4. The papers (Shampoo, arXiv 2309.06497; SOAP, arXiv
2409.11321; KL-Shampoo, arXiv 2509.03378) train larger models on larger batches: what is
compared here is their claim that fewer steps reach AdamW's loss, not their figures.
"""

from collections.abc import Callable, Mapping
from typing import Any

from experiments.reproduce.claims import Options
from experiments.reproduce.llama_comparison import compare_optimizers
from experiments.reproduce.llama_protocol import (
    Protocol,
    averaging_memory,
    c4_overrides,
    nano_overrides,
    optimizer_arm,
    with_overrides,
)
from experiments.reproduce.tuning import Arm

TITLE = "Shampoo, SOAP, KL-Shampoo and their peers"
COMPARISONS = {
    "shampoo": ("adamw",),
    "soap": ("adamw",),
    "kl_shampoo": ("adamw",),
    "gpa_soap": ("adamw", "soap"),
}

Variants = list[Mapping[str, Any]]


def _arms(
    first_moments: Variants, momenta: Variants, averages: Variants, period: int
) -> tuple[Arm, ...]:
    """The six arms: Muon's variant is its momentum, GPA's its smoothing."""
    blocks = {"precondition_frequency": period}
    return (
        optimizer_arm("adamw", "AdamW", "adamw", first_moments),
        optimizer_arm("muon", "Muon", "muon", momenta),
        optimizer_arm(
            "shampoo", "Shampoo, Adam grafting", "shampoo", first_moments, **blocks
        ),
        optimizer_arm("soap", "SOAP", "soap", first_moments, **blocks),
        optimizer_arm(
            "kl_shampoo",
            "KL-Shampoo, Adam grafting",
            "kl_shampoo",
            first_moments,
            **blocks,
        ),
        optimizer_arm("gpa_soap", "GPA + SOAP", "gpa+soap", averages, **blocks),
    )


def _cpu_protocol(steps: int) -> Protocol:
    steps = steps or 1000
    return Protocol(
        title=TITLE,
        preset="llama_nano_stdlib",
        overrides=nano_overrides(steps, checks=40),
        steps=steps,
        tokens_per_step=32 * 64,
        arms=_arms(
            [{"b1": 0.9}, {"b1": 0.95}],
            [{"momentum": 0.9}, {"momentum": 0.95}],
            [{"mu_x": averaging_memory(h)} for h in (8, 16)],
            period=10,
        ),
        learning_rates=(6e-3, 12e-3, 24e-3),
        factor=2.0,
        comparisons=COMPARISONS,
        sentences=(
            "Byte-level Llama with 131 thousand parameters on standard-library text, "
            f"{steps} steps of 32 x 64 bytes; warm-up over 5 %, then cosine to zero; "
            "b1 = 0.9 and b2 = 0.95 unless varied, decay 0.1 on matrices, gradients "
            "clipped at norm 1; validated on 384 fixed windows.",
            "Shampoo, SOAP and KL-Shampoo: two-sided on every matrix, one factor for a "
            "norm's vector, refreshed every 10 steps. GPA: mu_x = 0.9^(1/H), H = 8, "
            "16, mu_y = 0.7.",
        ),
    )


def _gpu_protocol(steps: int) -> Protocol:
    steps = steps or 12_000
    return Protocol(
        title=TITLE,
        preset="llama_160m_c4",
        overrides=c4_overrides(steps),
        steps=steps,
        tokens_per_step=128 * 2048,
        arms=_arms(
            [{"b1": b1, "b2": b2} for b1 in (0.9, 0.95) for b2 in (0.95, 0.99)],
            [{"momentum": m, "b2": b2} for m in (0.9, 0.95) for b2 in (0.95, 0.99)],
            [{"mu_x": averaging_memory(h)} for h in (8, 16, 32, 64)],
            period=10,
        ),
        learning_rates=(5e-4, 1e-3, 2e-3, 4e-3),
        factor=2.0,
        comparisons=COMPARISONS,
        sentences=(
            f"Llama-160M on C4, {steps} steps of 128 x 2,048 tokens "
            f"({steps * 128 * 2048 / 1e9:.2f} billion tokens); warm-up over 5 %, then "
            "cosine to zero; b = (0.9, 0.95) unless varied, decay 0.1 on matrices, "
            "gradients clipped at norm 1. Batch, length, warm-up and learning-rate "
            "grid are a reconstruction.",
            "Shampoo, SOAP and KL-Shampoo: blocks of at most 1024, refreshed every 10 "
            "steps. GPA: mu_x = 0.9^(1/H), H = 8, 16, 32, 64, mu_y = 0.7.",
        ),
    )


PROTOCOLS: dict[str, Callable[[int], Protocol]] = {
    "cpu": _cpu_protocol,
    "gpu": _gpu_protocol,
}


def protocol_of(options: Options) -> Protocol:
    """The protocol of a scale, with the overrides of the command line."""
    protocol = PROTOCOLS[options.scale](options.steps)
    return with_overrides(protocol, options.overrides)


def reproduce(options: Options) -> None:
    """Runs the sweep and writes its table, figure and JSON."""
    compare_optimizers(protocol_of(options), options)
