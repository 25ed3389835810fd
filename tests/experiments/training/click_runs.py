"""Tiny runs on planted clicks that the tests of click models share."""

import dataclasses

from experiments.config import CheckpointConfig, EvaluationConfig, LoggingConfig
from experiments.presets import DLRM


def tiny_clicks(**changes):
    """Twelve steps of the nano preset; changes as for `tiny_config`."""
    config = dataclasses.replace(
        DLRM["dlrm_nano"](),
        steps=12,
        evaluation=EvaluationConfig(every=6, batches=4),
        checkpoint=CheckpointConfig(every=0),
        logging=LoggingConfig(every=1, tensorboard=False, progress=False),
    )
    groups = {
        "data": {"train_rows": 500, "test_rows": 150},
        "batch": {"size": 64},
        "model": {"bottom": "8-16", "top": "8-1"},
    }
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
    return dataclasses.replace(config, **replaced)
