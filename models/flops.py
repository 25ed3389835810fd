"""Floating-point operations of a training step, counted from the configuration.

Compilers count the body of a scan once and attention without its causal half, so a
utilisation figure needs a count of its own. A multiply-add is two operations; the
backward pass costs twice the forward pass. Norms, softmax, rotary embedding and the
optimizer are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.llama import LlamaConfig


def llama_matmul_params(config: LlamaConfig) -> int:
    """Parameters every token is multiplied with: kernels and head, not the lookup."""
    kv_width = config.num_kv_heads * config.head_dim
    attention = 2 * config.d_model**2 + 2 * config.d_model * kv_width
    feed_forward = 3 * config.d_model * config.d_ff
    head = config.d_model * config.vocab_size  # a product also when tied
    return config.num_layers * (attention + feed_forward) + head


def llama_flops_per_token(
    config: LlamaConfig, seq_len: int, *, causal: bool = True
) -> float:
    """Forward + backward operations per token in rows of `seq_len` tokens.

    `6 * N_matmul + 6 * L * T * d_model` with the causal saving (a query sees half of
    the row on average); `12` in place of the second `6` without it, which is what
    an implementation that masks after the product computes.

    Args:
      config: the model.
      seq_len: tokens of a row, T.
      causal: count only the pairs that the causal mask leaves.

    Returns:
      Operations per token.
    """
    attention = (6 if causal else 12) * config.num_layers * seq_len * config.d_model
    return float(6 * llama_matmul_params(config) + attention)
