import json
import math

import pytest

from experiments.config import TrainConfig
from experiments.config_fields import with_overrides
from experiments.presets import LLAMA, preset_by_name
from experiments.reproduce.claims import Options
from experiments.reproduce.gpa_llama import protocol_of
from experiments.reproduce.llama_comparison import curve_of, plan, run_protocol
from experiments.reproduce.llama_protocol import checked_steps, first_trials, run_of
from experiments.reproduce.report import arm_named, encode, markdown
from experiments.reproduce.sweep import Outcome, Run
from experiments.reproduce.tuning import require_equal_budgets


class FakeSweep:
    """Answers every run with a curve made from its overrides, and counts them."""

    def __init__(self, root):
        self.root = root
        self.runs = []

    def run(self, runs):
        return [self._finish(run) for run in runs]

    def _finish(self, run):
        folder = self.root / run.digest
        if not folder.exists():
            self.runs.append(run)
            folder.mkdir(parents=True)
            rate = run.overrides["optimizer.learning_rate"]
            averages = run.overrides["optimizer.name"] != "adamw"
            # Lowest at 0.012, except for GPA, which wants four times more.
            gpa = run.overrides["optimizer.name"] == "gpa_adamw"
            optimum = 0.048 if gpa else 0.012
            final = 1.0 + 0.1 * math.log2(rate / optimum) ** 2 - 0.3 * gpa
            final += 0.01 * run.overrides["seed"]
            every, last = run.overrides["evaluation.every"], run.overrides["steps"]
            rows = []
            for step in range(every, last + 1, every):
                loss = final + (last - step) / last
                row = {"step": step, "eval/loss": loss, "wall_s": 0.5 * step}
                rows.append(row | ({"eval/loss_y": loss + 0.5} if averages else {}))
                rows.append({"step": step, "perf/tokens_per_s": 100.0})
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "metrics.jsonl").write_text(text)
        return Outcome(run, folder, "finished")


@pytest.fixture
def reproduced(tmp_path):
    options = Options("gpa_llama", seeds=(1, 2), steps=100)
    protocol = protocol_of(options)
    sweep = FakeSweep(tmp_path)
    return protocol, sweep, run_protocol(protocol, options, sweep)


def test_tuning_and_reporting_use_their_own_seeds(reproduced):
    protocol, sweep, document = reproduced
    tuned = [run for run in sweep.runs if run.overrides["seed"] == 0]
    reported = [run for run in sweep.runs if run.overrides["seed"] != 0]
    first = len(first_trials(protocol))
    assert sweep.runs[: len(tuned)] == tuned and len(reported) == 5 * 2
    # Only GPA's best lies at the edge of the first grid (24e-3): two extensions.
    assert len(tuned) == first + 2
    assert arm_named(document, "gpa")["extensions"] == 2
    assert arm_named(document, "gpa")["best"]["learning_rate"] == 0.048
    assert arm_named(document, "adamw")["best"]["learning_rate"] == 0.012
    assert all(arm["interior"] for arm in document["arms"])
    assert len(arm_named(document, "adamw")["trials"]) == first // 5


def test_the_document_holds_what_the_runs_wrote(reproduced):
    _, _, document = reproduced
    gpa, adamw = arm_named(document, "gpa"), arm_named(document, "adamw")
    assert gpa["loss"][1][-1] == pytest.approx(0.72)
    assert gpa["loss_y"][1][-1] == pytest.approx(1.22)
    assert adamw["loss_y"] == adamw["loss"]
    assert gpa["tokens_per_s"] == [100.0, 100.0]
    assert gpa["seconds"][0][-1] == 50.0
    assert document["checks"][-1] == document["total_steps"] == 100
    assert [run["seed"] for run in gpa["runs"]] == [1, 2]
    assert "| GPA |" in markdown(encode(document))


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_every_planned_run_is_a_valid_training_config(scale):
    protocol = protocol_of(Options("gpa_llama", scale=scale))
    require_equal_budgets(protocol.arms)
    preset = preset_by_name(protocol.preset, LLAMA)
    seen = set()
    for trial in first_trials(protocol):
        run = run_of(protocol, trial, seed=3)
        config = with_overrides(
            preset, {name: str(value) for name, value in run.overrides.items()}
        )
        assert isinstance(config, TrainConfig)
        assert config.seed == 3 and config.steps == protocol.steps
        assert config.optimizer.learning_rate == trial.learning_rate
        assert config.batch.size * config.data.seq_len == protocol.tokens_per_step
        seen.add(run.digest)
    assert len(seen) == len(first_trials(protocol))


def test_the_plan_names_arms_configurations_and_commands(tmp_path):
    options = Options("gpa_llama", scale="gpu", overrides=("data.path=c4/*.gz",))
    text = plan(protocol_of(options), options, tmp_path)
    assert text.count("python -m experiments.train_llama --preset=llama_160m_c4") == 80
    assert "80 tuning runs, at most 15 extensions, 25 reporting runs" in text
    assert "3.15 billion tokens each" in text
    assert text.count("--config.data.path=c4/*.gz") == 80
    assert "Changed for all runs: data.path=c4/*.gz." in text


def test_the_last_step_is_always_a_check():
    protocol = protocol_of(
        Options("gpa_llama", steps=100, overrides=("evaluation.every=30",))
    )
    assert checked_steps(protocol) == [30, 60, 90, 100]


def test_curves_of_diverged_and_incomplete_runs(tmp_path):
    run = Run("nano", {})
    rows = [{"step": 10, "eval/loss": 3.0}, {"step": 20, "eval/loss": None}]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    diverged = Outcome(run, tmp_path, "diverged")
    checks = (10, 20, 30)
    assert curve_of(diverged, checks, "eval/loss") == [3.0, math.inf, math.inf]
    finished = Outcome(run, tmp_path, "finished")
    with pytest.raises(ValueError, match="no eval/loss at step 30; it has"):
        curve_of(finished, checks, "eval/loss")
