import jax
import pytest

from models import LLAMA_PRESETS, build_llama, llama_preset

# name, parameters with untied embeddings, (rope_theta, norm_eps, max_seq_len)
TABLE = {
    "llama_160m": (162_417_408, (1e4, 1e-6, 2048)),
    "llama_60m_opendiloco": (102_898_688, (1e4, 1e-5, 1024)),
    "llama_150m_opendiloco": (214_983_680, (1e4, 1e-5, 1024)),
    "llama_small_levanter": (134_105_856, (1e4, 1e-5, 1024)),
    "llama_debug": (6_163_712, (5e5, 1e-5, 2048)),
    "llama_micro": (853_120, (1e4, 1e-5, 128)),
    "llama_nano": (131_392, (1e4, 1e-5, 64)),
    "llama_pico": (41_120, (1e4, 1e-5, 32)),
}


def count(config):
    shapes = jax.eval_shape(build_llama(config).init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_the_table_lists_every_preset():
    assert set(TABLE) == set(LLAMA_PRESETS)


@pytest.mark.parametrize("name", TABLE)
def test_parameter_counts(name):
    params, numerics = TABLE[name]
    config = llama_preset(name)
    assert count(config) == params
    assert (config.rope_theta, config.norm_eps, config.max_seq_len) == numerics
    tied = llama_preset(name, tie_embeddings=True)
    assert count(tied) == params - config.vocab_size * config.d_model


@pytest.mark.parametrize("name", TABLE)
def test_counts_are_the_same_when_layers_are_scanned(name):
    assert count(llama_preset(name, scan_layers=True)) == TABLE[name][0]


def test_without_embeddings_the_opendiloco_sizes_are_those_of_the_paper():
    for name, expected in (
        ("llama_60m_opendiloco", 37e6),
        ("llama_150m_opendiloco", 149.4e6),
    ):
        config = llama_preset(name)
        inner = count(config) - 2 * config.vocab_size * config.d_model
        assert abs(inner - expected) < 0.01 * expected


def test_overrides_and_unknown_names():
    assert llama_preset("llama_nano", num_layers=5).num_layers == 5
    assert llama_preset("llama_150m_opendiloco", num_layers=2).num_layers == 2
    with pytest.raises(ValueError, match="llama_pico, llama_nano, .* got 'nano'"):
        llama_preset("nano")
