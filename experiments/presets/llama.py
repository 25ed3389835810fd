"""Complete Llama runs, one function per preset.

Times are for the hardware named; losses are nats per token at the evaluated point.
"""

import dataclasses

from experiments.config import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    OptimizerConfig,
    TrainConfig,
)
from models.presets import LLAMA_PRESETS


def llama_pico_stdlib() -> TrainConfig:
    """A run that ends within seconds, for tests and first tries.

    41 thousand parameters, 50 steps of 8 x 32 bytes of standard-library text.
    """
    return TrainConfig(
        model=LLAMA_PRESETS["llama_pico"](),
        steps=50,
        data=DataConfig(seq_len=32),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        batch=BatchConfig(size=8),
        evaluation=EvaluationConfig(every=25, batches=4),
        checkpoint=CheckpointConfig(every=25),
        logging=LoggingConfig(every=5),
    )


def llama_nano_stdlib() -> TrainConfig:
    """The demonstration: bytes of the running Python's standard library.

    131 thousand parameters, 1,500 steps of 32 x 64 bytes; well under a minute on two
    CPU cores.
    """
    return TrainConfig(
        model=LLAMA_PRESETS["llama_nano"](),
        steps=1500,
        data=DataConfig(seq_len=64),
        optimizer=OptimizerConfig(learning_rate=6e-3, mu_x=0.9934),
        batch=BatchConfig(size=32),
        evaluation=EvaluationConfig(every=50, batches=12),
        checkpoint=CheckpointConfig(every=500),
    )


def llama_micro_stdlib() -> TrainConfig:
    """A small but real run on the embedded text.

    853 thousand parameters, 3,000 steps of 16 x 128 bytes; about ten minutes on two
    CPU cores.
    """
    return TrainConfig(
        model=LLAMA_PRESETS["llama_micro"](),
        steps=3000,
        data=DataConfig(seq_len=128),
        optimizer=OptimizerConfig(learning_rate=4e-3, mu_x=0.9967),
        batch=BatchConfig(size=16),
        evaluation=EvaluationConfig(every=100, batches=32),
    )


def _c4(model_name: str, *, seq_len: int, steps: int, **optimizer) -> TrainConfig:
    """C4 on accelerators: 262,144 tokens per step, bf16 compute, Llama tokenizer."""
    model = dataclasses.replace(
        LLAMA_PRESETS[model_name](), compute_dtype="bfloat16", remat="none"
    )
    return TrainConfig(
        model=model,
        steps=steps,
        data=DataConfig(
            source="jsonl",
            path="c4/en/c4-train.*.json.gz",
            validation_path="c4/en/c4-validation.*.json.gz",
            tokenizer="llama/tokenizer.model",
            seq_len=seq_len,
            shuffle_window=65536,
            num_threads=8,
        ),
        optimizer=OptimizerConfig(**{"learning_rate": 1e-3} | optimizer),
        batch=BatchConfig(size=262_144 // seq_len),
        evaluation=EvaluationConfig(every=250, batches=16),
        checkpoint=CheckpointConfig(every=1000),
    )


def llama_160m_c4() -> TrainConfig:
    """Llama-160M on C4 at about 20 tokens per parameter.

    A reconstruction of the protocol of Generalized Primal Averaging
    (arXiv 2512.17131): 12,000 steps of 128 x 2,048 tokens, warm-up then cosine to 0,
    b = (0.9, 0.95), decay 0.1, clipping at 1. Batch, length and warm-up are ours, not
    the paper's. One accelerator with 80 GB or more.
    """
    return _c4("llama_160m", seq_len=2048, steps=12_000)


def llama_60m_opendiloco_c4() -> TrainConfig:
    """The smallest OpenDiLoCo shape on C4, for shorter accelerator runs."""
    return _c4("llama_60m_opendiloco", seq_len=1024, steps=6_000)


def llama_150m_opendiloco_c4() -> TrainConfig:
    """The 150M OpenDiLoCo shape on C4."""
    return _c4("llama_150m_opendiloco", seq_len=1024, steps=12_000)


def llama_debug_c4() -> TrainConfig:
    """Six million parameters on local C4 files with a small tokenizer of one's own."""
    base = _c4("llama_debug", seq_len=256, steps=1_000)
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, tokenizer="tokenizer.json"),
        batch=BatchConfig(size=64),
    )
