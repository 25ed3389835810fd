"""Tiny runs that the trainer's tests share."""

import dataclasses

import pytest

from experiments.config import CheckpointConfig, EvaluationConfig, LoggingConfig
from experiments.presets import LLAMA


@pytest.fixture
def tiny_config(tmp_path):
    """`tiny_config(**changes) -> TrainConfig`: ten steps of the pico preset.

    Its text is a small local file, so that starting takes no time. Changes are fields
    of `TrainConfig` or, with a double underscore, of its groups:
    `optimizer__name="gpa_adamw"`.
    """
    text = tmp_path / "text"
    text.mkdir(exist_ok=True)
    for number in range(24):
        words = " ".join(f"word{(number * 7 + i * i) % 97}" for i in range(120))
        (text / f"{number:02}.txt").write_text(words)

    def make(**changes):
        config = dataclasses.replace(
            LLAMA["llama_pico_stdlib"](),
            steps=10,
            evaluation=EvaluationConfig(every=5, batches=2),
            checkpoint=CheckpointConfig(every=0),
            logging=LoggingConfig(every=1, tensorboard=False),
        )
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(
                config.data, source="text", path=str(text), validation_fraction=0.2
            ),
        )
        groups = {}
        for name, value in changes.items():
            group, _, field = name.partition("__")
            if field:
                groups.setdefault(group, {})[field] = value
            else:
                config = dataclasses.replace(config, **{group: value})
        replaced = {
            group: dataclasses.replace(getattr(config, group), **fields)
            for group, fields in groups.items()
        }
        # All at once: a group may be refused beside the old value of another.
        config = dataclasses.replace(config, **replaced)
        return config

    return make
