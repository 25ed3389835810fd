import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import build_llama, generate, llama_preset
from models.decoder import bind, unrolled
from models.generation import _continue, _read_prompt, restrict_logits
from models.layers.attention import KeyValueCache

PICO = llama_preset("llama_pico", num_heads=4, num_kv_heads=2)
PROMPT = jax.random.randint(jax.random.key(7), (3, 5), 0, PICO.vocab_size)


def make_params(config=PICO):
    params = build_llama(config).init(jax.random.key(0))
    return jax.tree.map(lambda leaf: 4 * leaf, params)


@pytest.mark.parametrize(
    "changes",
    [{}, {"scan_layers": True}, {"tie_embeddings": True}],
    ids=["unrolled", "scanned", "tied"],
)
def test_cached_logits_equal_the_forward_pass(changes):
    config = dataclasses.replace(PICO, **changes)
    params = make_params(config)
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, config.vocab_size)
    expected = jax.jit(build_llama(config).apply)(params, {"tokens": tokens})

    @jax.jit
    def extend(tokens, caches, start):
        return bind(*unrolled(config, params)).extend(tokens, caches, start)

    empty = jnp.zeros((2, 12, config.num_kv_heads, config.head_dim))
    caches = (KeyValueCache(empty, empty),) * config.num_layers
    logits, caches = extend(tokens[:, :4], caches, jnp.int32(0))
    np.testing.assert_allclose(logits, expected[:, 3], atol=2e-5)
    for t in range(4, 9):
        logits, caches = extend(tokens[:, t : t + 1], caches, jnp.int32(t))
        np.testing.assert_allclose(logits, expected[:, t], atol=2e-5)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_greedy_tokens_are_those_of_the_forward_pass(scan_layers):
    config = dataclasses.replace(PICO, scan_layers=scan_layers)
    params = make_params(config)
    new = generate(config, params, PROMPT, max_new_tokens=12, temperature=0)
    assert new.shape == (3, 12) and new.dtype == jnp.int32
    text = jnp.concatenate([PROMPT, new], axis=1)
    logits = jax.jit(build_llama(config).apply)(params, {"tokens": text})
    np.testing.assert_array_equal(jnp.argmax(logits[:, 4:-1], axis=-1), new)


def test_text_longer_than_the_training_length_sees_a_window():
    # One layer, so that a token depends on its window and nothing before it.
    config = dataclasses.replace(PICO, num_layers=1, max_seq_len=8)
    params = make_params(config)
    new = generate(config, params, PROMPT, max_new_tokens=20, temperature=0)
    text = jnp.concatenate([PROMPT, new], axis=1)
    apply = build_llama(config).apply
    windows = jnp.stack([text[:, i : i + 8] for i in range(text.shape[1] - 8)])
    read = jax.jit(jax.vmap(lambda tokens: apply(params, {"tokens": tokens})))
    logits = read(windows)
    expected = jnp.argmax(logits[:, :, -1], axis=-1).T
    np.testing.assert_array_equal(expected, text[:, 8:])


def test_two_compilations_serve_all_temperatures_and_seeds():
    params = make_params()
    _read_prompt.clear_cache()
    _continue.clear_cache()
    results = [
        generate(
            PICO,
            params,
            PROMPT,
            max_new_tokens=6,
            temperature=temperature,
            top_p=top_p,
            key=jax.random.key(seed),
        )
        for temperature, top_p, seed in ((0.5, 0.9, 0), (2.0, 0.8, 0), (2.0, 0.8, 1))
    ]
    assert _read_prompt._cache_size() == 1 and _continue._cache_size() == 1
    assert not np.array_equal(results[1], results[2])


def test_a_seed_repeats_and_top_k_of_one_is_greedy():
    params = make_params()

    def sample(**kwargs):
        return generate(PICO, params, PROMPT, max_new_tokens=6, **kwargs)

    key = jax.random.key(3)
    np.testing.assert_array_equal(sample(key=key), sample(key=key))
    greedy = sample(temperature=0)
    np.testing.assert_array_equal(sample(top_k=1, key=key), greedy)
    np.testing.assert_array_equal(sample(top_p=1e-6, key=key), greedy)


def test_samples_follow_the_distribution_of_the_logits():
    params = make_params()
    prompt = jnp.broadcast_to(PROMPT[:1], (4000, 5))
    tokens = generate(
        PICO,
        params,
        prompt,
        max_new_tokens=1,
        temperature=1.5,
        top_k=4,
        key=jax.random.key(0),
    )[:, 0]
    logits = jax.jit(build_llama(PICO).apply)(params, {"tokens": PROMPT[:1]})[0, -1]
    top = jax.lax.top_k(logits, 4)
    probs = jax.nn.softmax(top[0] / 1.5)
    shares = np.array([(tokens == token).mean() for token in top[1]])
    assert shares.sum() == pytest.approx(1.0)
    # Four standard deviations of a share among 4000 draws.
    np.testing.assert_allclose(shares, probs, atol=4 * 0.5 / np.sqrt(4000))


def test_restrict_logits_keeps_the_nucleus():
    probs = jnp.array([[0.1, 0.5, 0.05, 0.3, 0.05], [0.2, 0.2, 0.2, 0.2, 0.2]])
    logits = jnp.log(probs)

    def kept(**kwargs):
        return np.isfinite(restrict_logits(logits, **kwargs)).astype(int)[0].tolist()

    assert kept() == [1, 1, 1, 1, 1]
    assert kept(top_k=2) == [0, 1, 0, 1, 0]
    assert kept(top_p=0.5 - 1e-3) == [0, 1, 0, 0, 0]
    assert kept(top_p=0.5 + 1e-3) == [0, 1, 0, 1, 0]
    assert kept(top_p=0.85) == [1, 1, 0, 1, 0]
    assert kept(top_k=2, top_p=0.6) == [0, 1, 0, 0, 0]  # of 0.5/0.8
    ties = restrict_logits(logits, top_k=1)[1]
    assert np.isfinite(ties).all()


def test_bfloat16_compute_generates():
    config = dataclasses.replace(PICO, compute_dtype="bfloat16")
    new = generate(config, make_params(), PROMPT, max_new_tokens=4, temperature=0)
    assert new.shape == (3, 4)
    assert 0 <= int(new.min()) and int(new.max()) < config.vocab_size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be >= 1, got 0"),
        ({"temperature": -1.0}, "temperature must be >= 0 and finite, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be >= 0"),
        ({"top_k": -1}, "top_k must be >= 0"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], got 0.0"),
        ({"top_p": float("nan")}, "top_p must lie in"),
        ({"key": None}, "key must be given at temperature 1.0"),
        ({"prompt_tokens": PROMPT[0]}, "prompt_tokens must have shape"),
        ({"prompt_tokens": PROMPT[:, :0]}, "prompt_tokens must have shape"),
        ({"prompt_tokens": PROMPT + 256}, r"must lie in \[0, 256\), got"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = {
        "prompt_tokens": PROMPT,
        "max_new_tokens": 2,
        "temperature": 1.0,
        "key": jax.random.key(0),
    }
    with pytest.raises(ValueError, match=message):
        generate(PICO, {}, **{**arguments, **changes})
