"""The decoder-only transformer as Flax NNX modules; used only inside `models/`.

Shapes: B rows, T positions, S cached positions, L layers.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from models.layers.activation_sharding import BATCH, MODEL, shard_activation
from models.layers.attention import (
    GroupedQueryAttention,
    KeyValueCache,
    cache_mask,
    causal_mask,
)
from models.layers.embedding import TokenEmbedding
from models.layers.feed_forward import SwiGLU
from models.layers.norms import RMSNorm
from models.layers.projection import Projection
from models.layers.rotary import Rotation, rotation_at

if TYPE_CHECKING:
    from models.llama import LlamaConfig
    from models.model import Params

INIT_STDDEV = 0.02


def _kernel_init(config: LlamaConfig, scale: float = 1.0) -> nnx.Initializer:
    """Normal(0.02), cut at three deviations under `init="scaled"`.

    Drawn in float32 whatever the parameters' type, so that a seed means the same
    model in every type. The barrier keeps the draw from being compiled into what
    follows it, which differs between meshes and with it the last bit of a draw. (On
    CPUs and jax 0.12 the bit can still differ where a device holds rows of fewer than
    eight numbers, too short for the vector form of the logarithm.)
    """
    stddev = INIT_STDDEV * scale

    def init(key, shape, dtype):
        if config.init == "scaled":
            unit = jax.random.truncated_normal(key, -3.0, 3.0, shape, jnp.float32)
        else:
            unit = jax.random.normal(key, shape, jnp.float32)
        return (stddev * jax.lax.optimization_barrier(unit)).astype(dtype)

    return init


def _output_init(config: LlamaConfig) -> nnx.Initializer:
    """Kernels that write to the residual stream: variance 1/(2L) under `scaled`."""
    scaled = config.init == "scaled"
    return _kernel_init(config, (2 * config.num_layers) ** -0.5 if scaled else 1.0)


class DecoderBlock(nnx.Module):
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))`."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        types = dict(dtype=config.compute_dtype, param_dtype=config.param_dtype)
        init = dict(
            kernel_init=_kernel_init(config),
            output_init=_output_init(config),
            rngs=rngs,
        )
        self.attention_norm = RMSNorm(config.d_model, eps=config.norm_eps, **types)
        self.attention = GroupedQueryAttention(
            config.d_model, config.num_heads, config.num_kv_heads, **types, **init
        )
        self.feed_forward_norm = RMSNorm(config.d_model, eps=config.norm_eps, **types)
        self.feed_forward = SwiGLU(config.d_model, config.d_ff, **types, **init)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation,
        mask: jax.Array,
        key: jax.Array | None,
    ) -> jax.Array:
        """Maps `[B, T, d_model]` to the same; `key=None` switches dropout off."""
        keys = (None, None) if key is None else jax.random.split(key)
        mixed = self.attention(self.attention_norm(x), rotation, mask)
        x = self._residual(x, mixed, keys[0])
        return self._residual(x, self.feed_forward(self.feed_forward_norm(x)), keys[1])

    def extend(
        self,
        x: jax.Array,
        rotation: Rotation,
        cache: KeyValueCache,
        start: jax.Array,
        mask: jax.Array,
    ) -> tuple[jax.Array, KeyValueCache]:
        """The same for new positions behind a cache, without dropout."""
        mixed, cache = self.attention.extend(
            self.attention_norm(x), rotation, cache, start, mask
        )
        x = x + mixed
        return x + self.feed_forward(self.feed_forward_norm(x)), cache

    def _residual(self, x, branch, key):
        branch = self.dropout(branch, deterministic=key is None, rngs=key)
        return shard_activation(x + branch, BATCH, None, None)


def _blocks(config: LlamaConfig, key: jax.Array) -> nnx.Module:
    """All blocks: one module with stacked leaves, or one module per layer.

    Both are drawn as one stack: jitting the initialisation of an unrolled model
    layer by layer takes longer than compiling its training step.
    """
    graphdef = nnx.split(
        nnx.eval_shape(lambda: DecoderBlock(config, rngs=nnx.Rngs(params=0)))
    )[0]

    def draw(layer_key):
        return nnx.split(DecoderBlock(config, rngs=nnx.Rngs(params=layer_key)))[1]

    stacked = jax.vmap(draw)(jax.random.split(key, config.num_layers))
    if config.scan_layers:
        return nnx.merge(graphdef, stacked)
    return nnx.Dict(
        {
            str(i): nnx.merge(
                graphdef, jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
            )
            for i in range(config.num_layers)
        }
    )


def unrolled(config: LlamaConfig, params: Params) -> tuple[LlamaConfig, Params]:
    """The same model with one entry per layer; unchanged if it is so already."""
    if not config.scan_layers:
        return config, params
    layers = {
        str(i): jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        for i in range(config.num_layers)
    }
    return dataclasses.replace(config, scan_layers=False), {**params, "layers": layers}


class Decoder(nnx.Module):
    """Embedding, blocks, final norm and head."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        types = dict(dtype=config.compute_dtype, param_dtype=config.param_dtype)
        self.config = config
        self.token_embedding = TokenEmbedding(
            config.vocab_size,
            config.d_model,
            embedding_init=_kernel_init(config),
            rngs=rngs,
            **types,
        )
        self.layers = _blocks(config, rngs.params())
        self.final_norm = RMSNorm(config.d_model, eps=config.norm_eps, **types)
        if not config.tie_embeddings:
            self.head = Projection(
                config.d_model,
                config.vocab_size,
                kernel_init=_kernel_init(config),
                preferred_element_type=jnp.float32,
                rngs=rngs,
                **types,
            )

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns float32 logits `[B, T, vocab_size]`; `key=None` means no dropout."""
        config = self.config
        if positions is None:
            positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
        rotation = rotation_at(positions, config.head_dim, config.rope_theta)
        mask = causal_mask(tokens.shape[1], segment_ids)
        x = shard_activation(self.token_embedding(tokens), BATCH, None, None)
        x = self._run_blocks(x, rotation, mask, key)
        return self._logits(x)

    def extend(
        self,
        tokens: jax.Array,
        caches: tuple[KeyValueCache, ...],
        start: jax.Array,
    ) -> tuple[jax.Array, tuple[KeyValueCache, ...]]:
        """Reads `tokens` `[B, T]` at positions `start ..` behind the caches.

        Returns the float32 logits `[B, vocab_size]` of the last position and the
        caches with the new positions. Needs unrolled layers.
        """
        config, count = self.config, tokens.shape[1]
        positions = (start + jnp.arange(count, dtype=jnp.int32))[None, :]
        rotation = rotation_at(positions, config.head_dim, config.rope_theta)
        mask = cache_mask(start, count, caches[0].key.shape[1], config.max_seq_len)
        x = self.token_embedding(tokens)
        extended = []
        for i, cache in enumerate(caches):
            x, cache = self.layers[str(i)].extend(x, rotation, cache, start, mask)
            extended.append(cache)
        return self._logits(x[:, -1:])[:, 0], tuple(extended)

    def _logits(self, x):
        x = self.final_norm(x)
        logits = (
            self.token_embedding.attend(x)
            if self.config.tie_embeddings
            else self.head(x)
        )
        return shard_activation(logits, BATCH, None, MODEL)

    def _run_blocks(self, x, rotation, mask, key):
        config = self.config
        keys = None if key is None else jax.random.split(key, config.num_layers)
        block = self.layers if config.scan_layers else self.layers["0"]
        graphdef = nnx.split(block)[0]

        def run(x, layer):
            params, layer_key = layer
            return nnx.merge(graphdef, params)(x, rotation, mask, layer_key), None

        if config.remat != "none":
            policy = getattr(jax.checkpoint_policies, config.remat, None)
            # Inside a scan nothing can be merged with the forward pass anyway.
            run = jax.checkpoint(run, policy=policy, prevent_cse=not config.scan_layers)
        if config.scan_layers:
            return jax.lax.scan(run, x, (nnx.state(self.layers), keys))[0]
        for i in range(config.num_layers):
            params = nnx.state(self.layers[str(i)])
            x, _ = run(x, (params, None if keys is None else keys[i]))
        return x


@functools.lru_cache
def _graphdef(config: LlamaConfig) -> nnx.GraphDef:
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))[0]


def bind(config: LlamaConfig, params: Params) -> Decoder:
    """The decoder that computes with `params`; made anew in every trace."""
    return nnx.merge(_graphdef(config), params)
