import math

import pytest

from experiments.config_fields import with_overrides
from experiments.presets import LLAMA, preset_by_name
from experiments.reproduce.batch_protocol import (
    RULES,
    constant_path,
    mean_matched_size,
    open_loop_arms,
    path_file,
    path_text,
    rate_arms,
    theta_arms,
    training_protocol,
)
from experiments.reproduce.claims import Options
from experiments.reproduce.gns_llama import protocol_of
from experiments.reproduce.llama_protocol import run_of
from experiments.reproduce.sweep import Run
from experiments.reproduce.tuning import Trial
from experiments.training.batch_path import Change, read_batch_path

PATH = (Change(0, 64), Change(4096, 128), Change(9000, 512))


def every_arm(protocol, method, folder):
    return (
        *rate_arms(protocol, method, folder),
        *theta_arms(method),
        *open_loop_arms(method, PATH, 192, folder),
    )


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_every_run_is_a_valid_config_of_equally_many_rows(scale, tmp_path):
    protocol = protocol_of(Options("gns_llama", scale=scale))
    preset = preset_by_name(protocol.preset, LLAMA)
    digests, rules = set(), set()
    for method in protocol.methods:
        arms = every_arm(protocol, method, tmp_path)
        assert {arm.name: arm.label for arm in arms} == RULES
        training = training_protocol(protocol, arms)
        for arm in arms:
            for variant in range(len(arm.variants)):
                run = run_of(training, Trial(arm.name, variant, 0.01), seed=3)
                config = with_overrides(
                    preset, {name: str(value) for name, value in run.overrides.items()}
                )
                assert config.total_samples == protocol.checks[-1]
                assert config.batch.size == protocol.small_size
                assert config.batch.warmup_fraction == config.optimizer.warmup_fraction
                rules.add((config.batch.adaptive, bool(config.batch.path)))
                digests.add(run.digest)
    thetas = sum(len(grid) for m in protocol.methods for grid in m.thetas.values())
    assert len(digests) == 5 * len(protocol.methods) + thetas
    assert rules == {
        ("none", False),
        ("none", True),
        ("l2", False),
        ("sign", False),
        ("spectral", False),
    }


def test_the_noise_scale_belongs_to_the_optimizer():
    protocol = protocol_of(Options("gns_llama"))
    found = {
        method.name: {arm.name: arm.fixed for arm in theta_arms(method)}
        for method in protocol.methods
    }
    matched = {
        name: (arms["adaptive_matched"], arms["adaptive_alignment"])
        for name, arms in found.items()
    }
    for name, geometry in (("signum", "sign"), ("muon", "spectral"), ("adamw", "sign")):
        assert [arm["batch.adaptive"] for arm in matched[name]] == [geometry] * 2
        assert matched[name][1]["noise_scale.signal"] == "alignment"
        assert found[name]["adaptive_l2"]["batch.adaptive"] == "l2"


def test_runs_are_told_apart_by_what_a_path_holds_not_by_where_it_lies(tmp_path):
    def digest(path, folder):
        return Run("nano", {"batch.path": path_file(path, folder)}).digest

    one = digest(PATH, tmp_path / "here")
    assert one == digest(PATH, tmp_path / "there")
    assert one != digest(PATH[:2], tmp_path / "here")
    assert one != digest(constant_path(64), tmp_path / "here")


def test_the_trainer_reads_the_path_back(tmp_path):
    file = path_file(PATH, tmp_path)
    run = Run("nano", {"batch.path": file})
    assert run.flags[1] == f"--config.batch.path={file.path}"
    run.write_inputs()
    assert read_batch_path(file.path, quantum=64) == PATH
    assert path_text(constant_path(32)) == "samples_seen,batch_size\n0,32\n"


@pytest.mark.parametrize(
    ("samples", "steps", "size"),
    [(1000, 125, 8), (1000, 100, 8), (1000, 80, 16), (1000, 999, 8), (960, 20, 48)],
)
def test_the_mean_matched_batch_is_whole_micro_batches(samples, steps, size):
    assert mean_matched_size(samples, steps, 8) == size


def test_checks_are_rows_and_end_with_the_run():
    protocol = protocol_of(
        Options("gns_llama", steps=100, overrides=("evaluation.every=30",))
    )
    assert protocol.checks == [240, 480, 720, 800]
    assert math.isclose(protocol.config.batch.warmup_fraction, 0.15)


def test_a_bad_override_is_refused_before_anything_runs():
    options = Options("gns_llama", overrides=("batch.micro_batch=3",))
    with pytest.raises(ValueError, match="batch.size=8 is not a multiple"):
        _ = protocol_of(options).config
