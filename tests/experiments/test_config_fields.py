"""Overrides of config fields, and the JSON form of a config."""

import json
import math

import pytest

from experiments.config import FREE_ON_RESUME, TrainConfig
from experiments.config_fields import (
    from_dict,
    leaf_fields,
    to_dict,
    with_overrides,
)
from experiments.presets import LLAMA, preset_by_name

PRESET = LLAMA["llama_pico_stdlib"]()


def test_overrides_reach_nested_fields_and_convert_text():
    config = with_overrides(
        PRESET,
        {
            "optimizer.learning_rate": "3e-4",
            "steps": "7",
            "model.tie_embeddings": "true",
            "data.tokenizer": "byte_special",
            "stopping.max_seconds": "inf",
            "model.vocab_size": 320,
        },
    )
    assert config.optimizer.learning_rate == 3e-4
    assert config.steps == 7 and config.model.tie_embeddings is True
    assert config.data.tokenizer == "byte_special"
    assert config.stopping.max_seconds == math.inf and config.model.vocab_size == 320
    assert config.batch == PRESET.batch


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optimizer.nope", "1", "no config field named optimizer.nope.*optimizer.b1"),
        ("steps", "many", "config.steps must be of type int, got 'many'"),
        ("model.tie_embeddings", "maybe", "must be true or false, got 'maybe'"),
        ("steps", "0", "steps must be >= 1, got 0"),
        ("optimizer.learning_rate", "nan", "learning_rate must be >= 0.0, got nan"),
        ("optimizer.b1", "1.0", r"optimizer.b1 must lie in \[0, 1\), got 1.0"),
        ("optimizer.schedule", "step", "one of cosine, linear, constant, got 'step'"),
        ("batch.micro_batch", "3", "batch.size=8 is not a multiple"),
        ("data.seq_len", "64", "data.seq_len=64 exceeds model.max_seq_len=32"),
        ("data.source", "web", "data.source must be one of stdlib, text"),
        ("data.source", "text", "data.path must be given for data.source='text'"),
        ("mesh.model", "-1", "at most one -1"),
        ("checkpoint.keep", "0", "checkpoint.keep must be >= 1"),
        ("stopping.on_nonfinite", "hope", "must be one of stop, skip"),
    ],
)
def test_override_that_cannot_be_is_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        with_overrides(PRESET, {name: value})


@pytest.mark.parametrize("name", sorted(LLAMA))
def test_every_preset_survives_json(name):
    config = preset_by_name(name, LLAMA)
    restored = from_dict(TrainConfig, json.loads(json.dumps(to_dict(config))))
    assert restored == config


def test_fields_free_on_resume_exist():
    names = list(leaf_fields(TrainConfig))
    for free in FREE_ON_RESUME:
        assert any(name == free or name.startswith(free + ".") for name in names), free
