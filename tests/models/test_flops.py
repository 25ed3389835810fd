import dataclasses

import jax
import jax.numpy as jnp
import pytest

from models import (
    build_llama,
    llama_flops_per_token,
    llama_matmul_params,
    llama_preset,
)


def test_matmul_params_are_all_but_the_lookup_and_the_norms():
    config = llama_preset("llama_nano")
    norms = (2 * config.num_layers + 1) * config.d_model
    lookup = config.vocab_size * config.d_model
    assert llama_matmul_params(config) == 131_392 - norms - lookup
    tied = dataclasses.replace(config, tie_embeddings=True)
    assert llama_matmul_params(tied) == llama_matmul_params(config)


def test_the_formula_and_its_causal_saving():
    config = llama_preset("llama_nano")  # 2 layers, width 64
    base = 6 * llama_matmul_params(config)
    assert llama_flops_per_token(config, 32) == base + 6 * 2 * 32 * 64
    assert llama_flops_per_token(config, 32, causal=False) == base + 12 * 2 * 32 * 64
    assert build_llama(config).flops_per_example == 64 * llama_flops_per_token(
        config, 64
    )


@pytest.mark.parametrize("heads", [(4, 4), (4, 1)])
def test_agrees_with_the_compiler_on_an_unrolled_model(heads):
    # Wide enough that elementwise work is a small share; the compiler computes the
    # scores that the causal mask hides.
    config = llama_preset(
        "llama_nano",
        d_model=128,
        d_ff=512,
        num_heads=heads[0],
        num_kv_heads=heads[1],
    )
    model = build_llama(config)
    rows, length = 2, 64
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    step = jax.jit(jax.value_and_grad(model.loss, has_aux=True))
    compiled = step.lower(params, {"tokens": tokens, "targets": tokens}).compile()
    counted = compiled.cost_analysis()["flops"]
    expected = rows * length * llama_flops_per_token(config, length, causal=False)
    assert 0.97 * expected < counted < 1.12 * expected
