"""Llama configurations by name.

Each preset is a function; keyword arguments replace fields. Parameter counts are
those of the default, untied embeddings. All start from `init="scaled"` and float32:
on an accelerator set `compute_dtype="bfloat16"`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from models.llama import LlamaConfig


def llama_pico(**overrides: Any) -> LlamaConfig:
    """41 120 parameters, for unit tests: a few milliseconds a step on a CPU."""
    base = LlamaConfig(
        d_model=32,
        d_ff=96,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        vocab_size=256,
        max_seq_len=32,
    )
    return dataclasses.replace(base, **overrides)


def llama_nano(**overrides: Any) -> LlamaConfig:
    """131 392 parameters, for runs that someone waits for on a CPU."""
    base = LlamaConfig(
        d_model=64,
        d_ff=192,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        vocab_size=256,
        max_seq_len=64,
    )
    return dataclasses.replace(base, **overrides)


def llama_micro(**overrides: Any) -> LlamaConfig:
    """853 120 parameters, for comparisons on a CPU."""
    base = LlamaConfig(
        d_model=128,
        d_ff=384,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        vocab_size=256,
        max_seq_len=128,
    )
    return dataclasses.replace(base, **overrides)


def llama_debug(**overrides: Any) -> LlamaConfig:
    """6.2 M parameters, the size of torchtitan's debug model."""
    base = LlamaConfig(
        d_model=256,
        d_ff=768,
        num_layers=6,
        num_heads=16,
        num_kv_heads=16,
        vocab_size=2048,
        max_seq_len=2048,
        rope_theta=5e5,
    )
    return dataclasses.replace(base, **overrides)


def llama_small_levanter(**overrides: Any) -> LlamaConfig:
    """134.1 M parameters, the size of Levanter's small Llama."""
    base = LlamaConfig(
        d_model=768,
        d_ff=2048,
        num_layers=12,
        num_heads=12,
        num_kv_heads=12,
        vocab_size=32_000,
        max_seq_len=1024,
    )
    return dataclasses.replace(base, **overrides)


def llama_60m_opendiloco(**overrides: Any) -> LlamaConfig:
    """102.9 M parameters, 37 M without embeddings (OpenDiLoCo, arXiv:2407.07852)."""
    base = LlamaConfig(
        d_model=1024,
        d_ff=2688,
        num_layers=3,
        num_heads=16,
        num_kv_heads=16,
        vocab_size=32_000,
        max_seq_len=1024,
    )
    return dataclasses.replace(base, **overrides)


def llama_150m_opendiloco(**overrides: Any) -> LlamaConfig:
    """215.0 M parameters, 149.4 M without embeddings (OpenDiLoCo, arXiv:2407.07852)."""
    return llama_60m_opendiloco(**{"num_layers": 12, **overrides})


def llama_160m(**overrides: Any) -> LlamaConfig:
    """162 417 408 parameters, the shape of the public JackFram/llama-160m."""
    base = LlamaConfig(
        d_model=768,
        d_ff=3072,
        num_layers=12,
        num_heads=12,
        num_kv_heads=12,
        vocab_size=32_000,
        max_seq_len=2048,
        norm_eps=1e-6,
    )
    return dataclasses.replace(base, **overrides)


LLAMA_PRESETS: dict[str, Callable[..., LlamaConfig]] = {
    preset.__name__: preset
    for preset in (
        llama_pico,
        llama_nano,
        llama_micro,
        llama_debug,
        llama_small_levanter,
        llama_60m_opendiloco,
        llama_150m_opendiloco,
        llama_160m,
    )
}


def llama_preset(name: str, **overrides: Any) -> LlamaConfig:
    """Returns the configuration `name`, with the given fields replaced.

    Raises:
      ValueError: no such preset; the message lists those that exist.
    """
    if name not in LLAMA_PRESETS:
        raise ValueError(
            f"model preset must be one of {', '.join(LLAMA_PRESETS)}, got {name!r}"
        )
    return LLAMA_PRESETS[name](**overrides)
