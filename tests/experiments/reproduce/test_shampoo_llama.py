"""The arms of Shampoo's comparison, and its table of seconds."""

import math

import pytest

from experiments.config_fields import with_overrides
from experiments.optimizers import OPTIMIZERS
from experiments.presets import LLAMA, preset_by_name
from experiments.reproduce.claims import Options
from experiments.reproduce.llama_comparison import time_section
from experiments.reproduce.llama_protocol import first_trials, run_of
from experiments.reproduce.shampoo_llama import protocol_of
from experiments.reproduce.tuning import require_equal_budgets


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_every_planned_run_is_a_valid_training_config(scale):
    protocol = protocol_of(Options("shampoo_llama", scale=scale))
    require_equal_budgets(protocol.arms)
    preset = preset_by_name(protocol.preset, LLAMA)
    digests, names = set(), set()
    for trial in first_trials(protocol):
        run = run_of(protocol, trial, seed=3)
        config = with_overrides(
            preset, {name: str(value) for name, value in run.overrides.items()}
        )
        assert config.batch.size * config.data.seq_len == protocol.tokens_per_step
        digests.add(run.digest)
        names.add(config.optimizer.name)
    assert len(digests) == len(first_trials(protocol))
    assert names == {"adamw", "muon", "shampoo", "soap", "kl_shampoo", "gpa+soap"}
    assert {name.removeprefix("gpa+") for name in names} <= set(OPTIMIZERS)


def test_what_is_claimed_names_arms():
    protocol = protocol_of(Options("shampoo_llama"))
    names = {arm.name for arm in protocol.arms}
    assert protocol.arms[0].name == "adamw"
    for subject, against in protocol.comparisons.items():
        assert {subject, *against} <= names and "adamw" in against


def _arm(name, finals, seconds):
    return {
        "name": name,
        "label": name.upper(),
        "loss": [[5.0, final] for final in finals],
        "seconds": [[half, 2 * half] for half in seconds],
    }


def test_seconds_are_counted_to_the_baselines_mean_final_loss():
    document = {
        "baseline": "adamw",
        "total_steps": 100,
        "arms": [
            _arm("adamw", [2.0, 2.2], [10.0, 10.0]),
            # There at the first check of one seed, at the second of the other.
            _arm("soap", [1.5, 1.5], [12.0, 16.0]),
            _arm("muon", [2.0, math.inf], [10.0, math.inf]),
        ],
    }
    document["arms"][1]["loss"][0] = [2.05, 1.5]
    section = time_section(document)
    assert section["rows"] == [
        ["ADAMW", "200.0", "20.0 ± 0.0", "– (1/2)", "–"],
        ["SOAP", "280.0", "28.0 ± 4.0", "22.0 ± 10.0 (2/2)", "1.10"],
        ["MUON", "diverged", "diverged", "– (1/2)", "–"],
    ]
    assert "ADAMW's mean final loss 2.1000" in section["text"]
