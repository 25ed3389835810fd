"""Sampling text from a Llama with a key-value cache.

Two compiled functions: one reads the whole prompt, one is the loop over new tokens.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from models.decoder import Decoder, bind, unrolled
from models.layers.attention import KeyValueCache
from models.llama import LlamaConfig
from models.model import Params


def generate(
    model_config: LlamaConfig,
    params: Params,
    prompt_tokens: jax.Array,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Continues prompts.

    As long as prompt and continuation fit in `max_seq_len`, logits are those of the
    forward pass without a cache. Beyond it every token sees the `max_seq_len` newest
    tokens, itself included, at the distances that were trained.

    Args:
      model_config: of the model that `params` belong to.
      params: parameters; stacked layers (`scan_layers`) are unstacked for decoding.
      prompt_tokens: int32 `[B, P]`, P >= 1; all rows have the same length.
      max_new_tokens: tokens to add to each row, >= 1.
      temperature: divides the logits, >= 0; 0 takes the most likely token.
      top_k: sample among the k most likely tokens; 0 means all.
      top_p: sample among the fewest most likely tokens whose probabilities (after
        `temperature` and `top_k`) reach `top_p`, in (0, 1]; 1 means all.
      key: random key; may be None at temperature 0.

    Returns:
      The new tokens, int32 `[B, max_new_tokens]`.

    Raises:
      ValueError: an argument is outside its range.
    """
    prompt_tokens = jnp.asarray(prompt_tokens, jnp.int32)
    _check(model_config, prompt_tokens, max_new_tokens, temperature, top_k, top_p)
    greedy = temperature == 0
    if key is None:
        if not greedy:
            raise ValueError(f"key must be given at temperature {temperature}")
        key = jax.random.key(0)
    length = prompt_tokens.shape[1] + max_new_tokens
    logits, caches = _read_prompt(model_config, params, prompt_tokens, length)
    return _continue(
        model_config,
        params,
        logits,
        caches,
        jnp.int32(prompt_tokens.shape[1]),
        key,
        jnp.float32(1.0 if greedy else temperature),
        jnp.float32(top_p),
        max_new_tokens=max_new_tokens,
        greedy=greedy,
        top_k=min(top_k, model_config.vocab_size),
        nucleus=top_p < 1,
    )


def restrict_logits(
    logits: jax.Array, *, top_k: int = 0, top_p: jax.Array | float | None = None
) -> jax.Array:
    """Sets logits `[B, V]` outside the k most likely / the nucleus to -inf.

    Tokens that tie with the last one kept are kept. The most likely token always is.

    Args:
      logits: float32 `[B, V]`.
      top_k: how many to keep; 0 keeps all.
      top_p: probability to reach (arXiv:1904.09751, eq. 2-3); None keeps all.

    Returns:
      Logits `[B, V]`.
    """
    if top_k:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probs = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs
        kept = (before < top_p).at[:, 0].set(True)
        least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def _check(config, prompt_tokens, max_new_tokens, temperature, top_k, top_p):
    shape = prompt_tokens.shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"prompt_tokens must have shape [rows >= 1, length >= 1], got {shape}"
        )
    low, high = int(prompt_tokens.min()), int(prompt_tokens.max())
    if low < 0 or high >= config.vocab_size:
        raise ValueError(
            f"prompt_tokens must lie in [0, {config.vocab_size}), got "
            f"{low if low < 0 else high}"
        )
    if not max_new_tokens >= 1:
        raise ValueError(f"max_new_tokens must be >= 1, got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be >= 0 and finite, got {temperature}")
    if not top_k >= 0:
        raise ValueError(f"top_k must be >= 0 (0 means all), got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")


@functools.partial(jax.jit, static_argnums=(0, 3))
def _read_prompt(config, params, tokens, length):
    decoder = _decoder(config, params)
    shape = (tokens.shape[0], length, config.num_kv_heads, config.head_dim)
    empty = jnp.zeros(shape, config.compute_dtype)
    caches = (KeyValueCache(empty, empty),) * config.num_layers
    return decoder.extend(tokens, caches, jnp.int32(0))


@functools.partial(
    jax.jit,
    static_argnums=0,
    static_argnames=("max_new_tokens", "greedy", "top_k", "nucleus"),
)
def _continue(
    config,
    params,
    logits,
    caches,
    start,
    key,
    temperature,
    top_p,
    *,
    max_new_tokens,
    greedy,
    top_k,
    nucleus,
):
    def choose(logits, step):
        if greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = restrict_logits(
            logits / temperature, top_k=top_k, top_p=top_p if nucleus else None
        )
        step_key = jax.random.fold_in(key, step)
        return jax.random.categorical(step_key, logits, axis=-1).astype(jnp.int32)

    graphdef, state = nnx.split(_decoder(config, params))

    def advance(carry, step):
        token, caches = carry
        decoder = nnx.merge(graphdef, state)
        logits, caches = decoder.extend(token[:, None], caches, start + step)
        following = choose(logits, step + 1)
        return (following, caches), following

    first = choose(logits, 0)
    steps = jnp.arange(max_new_tokens - 1, dtype=jnp.int32)
    _, rest = jax.lax.scan(advance, (first, caches), steps)
    return jnp.concatenate([first[:, None], rest.T], axis=1)


def _decoder(config: LlamaConfig, params: Params) -> Decoder:
    """The module with unrolled layers, so that caches are written in place."""
    return bind(*unrolled(config, params))
