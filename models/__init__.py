"""Models handed out as plain functions over plain dicts of arrays."""

from models.flops import llama_flops_per_token, llama_matmul_params
from models.generation import generate
from models.llama import LlamaConfig, build_llama
from models.losses import token_cross_entropy
from models.model import Batch, Model, Params
from models.presets import LLAMA_PRESETS, llama_preset

__all__ = [
    "LLAMA_PRESETS",
    "Batch",
    "LlamaConfig",
    "Model",
    "Params",
    "build_llama",
    "generate",
    "llama_flops_per_token",
    "llama_matmul_params",
    "llama_preset",
    "token_cross_entropy",
]
