"""GPA against its peers on a Llama (arXiv 2512.17131), tuned on equal budgets.

`--scale=cpu`: a byte-level Llama of 131 thousand parameters on standard-library text.
`--scale=gpu`: Llama-160M on C4 at about 20 tokens per parameter, the paper's smallest
setting as far as it is published; batch, length and warm-up are a reconstruction.
"""

from collections.abc import Callable

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

TITLE = "GPA and its peers"
COMPARISONS = {"gpa": ("adamw", "adamw_ema")}


def _cpu_protocol(steps: int) -> Protocol:
    steps = steps or 1500
    return Protocol(
        title=TITLE,
        preset="llama_nano_stdlib",
        overrides=nano_overrides(steps, checks=20),
        steps=steps,
        tokens_per_step=32 * 64,
        # Variants follow the lag rule: an average over 5-15 % of a run this short.
        arms=(
            optimizer_arm("adamw", "AdamW", "adamw", [{"b1": 0.9}, {"b1": 0.95}]),
            optimizer_arm(
                "adamw_ema",
                "AdamW + EMA",
                "adamw_ema",
                [{"ema_decay": averaging_memory(h)} for h in (4, 16)],
            ),
            optimizer_arm(
                "schedule_free",
                "Schedule-Free",
                "schedule_free_adamw",
                [{"b2": 0.95}, {"b2": 0.99}],
                schedule="constant",
            ),
            optimizer_arm(
                "diloco",
                "DiLoCo, one worker",
                "diloco_adamw",
                [{"outer_momentum": 0.5}, {"outer_momentum": 0.9}],
                inner_steps=16,
                outer_learning_rate=0.7,
            ),
            optimizer_arm(
                "gpa",
                "GPA",
                "gpa_adamw",
                [{"mu_x": averaging_memory(h)} for h in (8, 16)],
                mu_y=0.7,
            ),
        ),
        learning_rates=(6e-3, 12e-3, 24e-3),
        factor=2.0,
        comparisons=COMPARISONS,
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
        title=TITLE,
        preset="llama_160m_c4",
        overrides=c4_overrides(steps),
        steps=steps,
        tokens_per_step=128 * 2048,
        arms=(
            optimizer_arm(
                "adamw",
                "AdamW",
                "adamw",
                [{"b1": b1, "b2": b2} for b1 in (0.9, 0.95) for b2 in (0.95, 0.99)],
            ),
            optimizer_arm(
                "adamw_ema",
                "AdamW + EMA",
                "adamw_ema",
                [{"ema_decay": averaging_memory(h)} for h in horizons],
            ),
            optimizer_arm(
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
            optimizer_arm(
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
            optimizer_arm(
                "gpa",
                "GPA",
                "gpa_adamw",
                [{"mu_x": averaging_memory(h)} for h in horizons],
                mu_y=0.7,
            ),
        ),
        learning_rates=(5e-4, 1e-3, 2e-3, 4e-3),
        factor=2.0,
        comparisons=COMPARISONS,
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
