"""Models handed out as plain functions over plain dicts of arrays.

The functions that build the click models are `models.dlrm.dlrm` and `models.dcn.dcn`:
here they would hide their modules.
"""

from models.categorical import join_tables, split_tables
from models.click_batch import BatchRules
from models.click_losses import ClickLoss
from models.dcn import DCNConfig
from models.dlrm import DLRMConfig, interact, make_batch
from models.dlrm_reference import (
    from_reference_state,
    reference_params,
    to_reference_state,
)
from models.embeddings import TableConfig
from models.flops import llama_flops_per_token, llama_matmul_params
from models.generation import generate
from models.llama import LlamaConfig, build_llama
from models.losses import token_cross_entropy
from models.model import Batch, Model, Params
from models.presets import LLAMA_PRESETS, llama_preset

__all__ = [
    # Of every model.
    "Batch",
    "Model",
    "Params",
    # Click models: DLRM and DCN.
    "BatchRules",
    "ClickLoss",
    "DCNConfig",
    "DLRMConfig",
    "TableConfig",
    "from_reference_state",
    "interact",
    "join_tables",
    "make_batch",
    "reference_params",
    "split_tables",
    "to_reference_state",
    # Llama.
    "LLAMA_PRESETS",
    "LlamaConfig",
    "build_llama",
    "generate",
    "llama_flops_per_token",
    "llama_matmul_params",
    "llama_preset",
    "token_cross_entropy",
]
