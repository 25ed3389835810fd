"""Adaptive batch sizes from gradient noise scales on a Llama (arXiv 2602.03001).

`--scale=cpu`: a byte-level Llama of 41 thousand parameters on standard-library text.
`--scale=gpu`: Llama-160M on C4, the paper's smaller language setting. Signum, Muon and
AdamW, each under eight batch rules at equal samples: what the measured noise scale
saves stands beside what a ramp without measurements saves.
"""

from collections.abc import Callable

from experiments.reproduce.batch_comparison import compare_batches
from experiments.reproduce.batch_protocol import BatchProtocol, Method
from experiments.reproduce.claims import Options
from experiments.reproduce.llama_protocol import with_overrides

TITLE = "adaptive batch sizes and what they save"
CLAIMED = ("signum", "muon")


def _measuring(warmup: float, every: int, max_size: int) -> dict[str, object]:
    """Fields of the adaptive rules; other runs do not read them."""
    return {
        "optimizer.warmup_fraction": warmup,
        "batch.warmup_fraction": warmup,
        "batch.max_size": max_size,
        "noise_scale.every": every,
    }


# Grids of theta at the small scale. Above 1 the theory is silent; noise scales measured
# from few draws of one row are large, and those of the alignment signal larger still.
SIGN = (0.9, 1.0, 1.1, 1.2)
SPECTRAL = (0.6, 0.8, 1.0, 1.1)


def _thetas(matched: tuple[float, ...]) -> dict[str, tuple[float, ...]]:
    return {
        "adaptive_l2": (0.7, 0.8, 0.9, 1.0),
        "adaptive_matched": matched,
        "adaptive_alignment": (2.5, 3.5, 5.0, 7.0),
    }


def _cpu_protocol(steps: int) -> BatchProtocol:
    steps = steps or 5120
    every = max(1, steps // 256)
    return BatchProtocol(
        title=TITLE,
        preset="llama_pico_stdlib",
        overrides={
            "batch.size": 8,
            "batch.micro_batch": 8,
            **_measuring(0.15, every, 64),
            "noise_scale.splits": 8,
            "evaluation.every": max(1, steps // 40),
            "evaluation.batches": 32,
            "checkpoint.every": 0,
            "checkpoint.keep": 1,
            "logging.every": max(1, steps // 40),
            "logging.tensorboard": False,
            "logging.progress": False,
        },
        steps=steps,
        large_size=32,
        methods=(
            Method(
                "signum",
                "Signum",
                "sign",
                {"optimizer.momentum": 0.9},
                learning_rates=(1e-3, 2e-3, 4e-3),
                thetas=_thetas(SIGN),
            ),
            Method(
                "muon",
                "Muon",
                "spectral",
                {"optimizer.momentum": 0.95, "optimizer.b1": 0.9},
                learning_rates=(5e-3, 10e-3, 20e-3),
                thetas=_thetas(SPECTRAL),
            ),
            Method(
                "adamw",
                "AdamW",
                "sign",
                {"optimizer.b1": 0.9, "optimizer.b2": 0.95},
                learning_rates=(5e-3, 10e-3, 20e-3),
                thetas=_thetas(SIGN),
            ),
        ),
        claimed=CLAIMED,
        factor=2.0,
        tolerance=0.005,
        required_saving=0.5,
        sentences=(
            "Byte-level Llama with 41 thousand parameters on standard-library text, "
            "rows of 32 bytes, micro-batches of 8 rows; warm-up over 15 %, then cosine "
            "to zero; momentum 0.9 (Muon 0.95), AdamW's b = (0.9, 0.95), decay 0.1 on "
            "matrices, gradients clipped at norm 1; validated on 256 fixed windows.",
            f"Noise scales: every {every} steps, one row to a draw, averages over 0.9 "
            "and 0.9; the batch may grow after the warm-up, to 64 rows. Alignment: the "
            "signal of 8 draws left out in turn.",
            "Where a gradient is mostly noise, the plain estimate reads about pi/2 "
            "(sign) or 1 (l2) times the batch whatever the noise is; theta alone then "
            "decides how fast the batch grows. The alignment signal has no such bound.",
            "The tolerance of theta was raised from 0.25 % to 0.5 % after tuning: on "
            "seed 0 a Signum run that differs from the small batch's in rounding alone "
            "ends 0.32 % away from it. Runs on reporting seeds had begun and some "
            "of their losses had been seen; the value rests on seed 0 alone.",
        ),
    )


def _gpu_protocol(steps: int) -> BatchProtocol:
    steps = steps or 24_415
    thetas = {
        "adaptive_l2": (0.15, 0.3, 0.45, 0.6),
        "adaptive_matched": (0.5, 0.6, 0.7, 0.8),
        "adaptive_alignment": (0.6, 0.75, 0.9, 1.1),
    }
    return BatchProtocol(
        title=TITLE,
        preset="llama_160m_c4",
        overrides={
            "data.seq_len": 2048,
            "batch.size": 64,
            "batch.micro_batch": 16,
            **_measuring(0.15, 100, 1024),
            "noise_scale.splits": 8,
            "evaluation.every": max(1, steps // 60),
            "evaluation.batches": 64,
            "checkpoint.keep": 1,
            "logging.progress": False,
        },
        steps=steps,
        large_size=256,
        methods=(
            Method(
                "signum",
                "Signum",
                "sign",
                {"optimizer.momentum": 0.95},
                learning_rates=(1e-4, 2e-4, 4e-4, 8e-4),
                thetas=thetas,
            ),
            Method(
                "muon",
                "Muon",
                "spectral",
                {
                    "optimizer.momentum": 0.95,
                    "optimizer.consistent_rms": 0.2,
                    "optimizer.b1": 0.9,
                    "optimizer.b2": 0.95,
                },
                learning_rates=(5e-4, 1e-3, 2e-3, 4e-3),
                thetas=thetas,
            ),
            Method(
                "adamw",
                "AdamW",
                "sign",
                {"optimizer.b1": 0.9, "optimizer.b2": 0.95},
                learning_rates=(5e-4, 1e-3, 2e-3, 4e-3),
                thetas=thetas,
            ),
        ),
        claimed=CLAIMED,
        factor=2.0,
        tolerance=0.005,
        required_saving=0.5,
        sentences=(
            f"Llama-160M on C4, {steps} small steps of 64 x 2,048 tokens "
            f"({steps * 64 * 2048 / 1e9:.2f} billion tokens); warm-up over 15 %, then "
            "cosine to zero; momentum 0.95, AdamW's b = (0.9, 0.95), decay 0.1 on "
            "matrices, gradients clipped at norm 1. Muon's updates are scaled to an "
            "RMS of 0.2, so that its matrices and AdamW's other leaves share a rate. "
            "Momenta, clipping and that scale are ours.",
            "Noise scales: every 100 steps, averages over 0.9 and 0.9; the batch may "
            "grow after the warm-up, to 1,024 rows; the paper's theta is 0.6 (l2: "
            "0.3). One device cuts its micro-batches of 16 rows into 8 draws, where "
            "the paper has 8 ranks; on 8 devices give --override=noise_scale.splits=1.",
        ),
    )


PROTOCOLS: dict[str, Callable[[int], BatchProtocol]] = {
    "cpu": _cpu_protocol,
    "gpu": _gpu_protocol,
}


def protocol_of(options: Options) -> BatchProtocol:
    """The protocol of a scale, with the overrides of the command line."""
    protocol = PROTOCOLS[options.scale](options.steps)
    return with_overrides(protocol, options.overrides)


def reproduce(options: Options) -> None:
    """Runs the sweep and writes its table, figure and JSON."""
    compare_batches(protocol_of(options), options)
