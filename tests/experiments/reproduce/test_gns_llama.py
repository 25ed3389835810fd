"""The whole comparison, with a trainer that only writes what a run would."""

import dataclasses
import json
import sys
import textwrap

import pytest

from experiments.reproduce import batch_comparison
from experiments.reproduce.batch_comparison import (
    compare_batches,
    curve_at,
    run_batch_protocol,
    scale_over_batch,
)
from experiments.reproduce.batch_plan import batch_plan
from experiments.reproduce.claims import Options
from experiments.reproduce.gns_llama import protocol_of
from experiments.reproduce.llama_comparison import compiled_once
from experiments.reproduce.report import arm_named
from experiments.reproduce.sweep import Outcome, Run, Sweep, SweepError

# A run of 100 steps of 8 rows of 32 bytes: it ends at a loss that depends on rate, rule
# and seed; the batch of an adaptive run is 32 / theta after the warm-up of 80 rows.
FAKE = """
    import csv, json, math, pathlib, sys
    flags = dict(a[2:].split("=", 1) for a in sys.argv[1:] if "=" in a)
    get = lambda name, default="": flags.get("config." + name, default)
    folder = pathlib.Path(flags["output_dir"])
    folder.mkdir()
    path, excess = [(0, 8)], 0.0
    if get("batch.path"):
        rows = list(csv.reader(open(get("batch.path"))))[1:]
        path = [(int(a), int(b)) for a, b in rows]
        excess = 0.001 * path[0][1]
    if get("batch.adaptive"):
        theta = float(get("batch.theta"))
        path.append((80, int(8 * round(32 / theta / 8))))
        excess = 0.002 / theta
    if get("batch.seesaw"):
        path.append((400, 16))
    rate = float(get("optimizer.learning_rate"))
    final = 1.0 + 0.1 * math.log2(rate / 0.004) ** 2 + excess
    final += 0.01 * int(get("seed"))
    samples = step = 0
    lines, checked = [], 0
    while samples < 800:
        size = [b for a, b in path if a <= samples][-1]
        samples = min(800, samples + size)
        step += 1
        if samples // 160 > checked or samples == 800:
            checked = samples // 160
            loss = final + (800 - samples) / 800
            lines.append({"step": step, "tokens": 32 * samples, "eval/loss": loss})
            if get("batch.adaptive"):
                row = {"optim/noise_scale": 3.0 * size, "train/batch_size": size}
                lines.append({"step": step, "tokens": 32 * samples, **row})
    text = "".join(json.dumps(line) + "\\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    text = "".join(f"{a},{b}\\n" for a, b in [("samples_seen", "batch_size"), *path])
    (folder / "batch_path.csv").write_text(text)
    (folder / "run_status.json").write_text('{"status": "finished"}')
"""


@pytest.fixture
def request_of(tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(textwrap.dedent(FAKE))
    options = Options(
        "gns_llama",
        seeds=(1, 2),
        steps=100,
        overrides=("evaluation.every=20",),
        output_dir=tmp_path / "runs",
        results_dir=tmp_path / "results",
    )
    protocol = protocol_of(options)
    signum = dataclasses.replace(
        protocol.methods[0],
        learning_rates=(1e-3, 2e-3),
        thetas=dict.fromkeys(protocol.methods[0].thetas, (0.5, 1.0, 2.0)),
    )
    protocol = dataclasses.replace(protocol, methods=(signum,), tolerance=0.003)

    def sweep(options):
        root = options.output_dir / options.run_name
        return Sweep(root, [{}] * 8, (sys.executable, "-S", str(script)))

    return protocol, options, sweep


def test_the_comparison_from_tuning_to_document(request_of):
    protocol, options, sweep = request_of
    document = run_batch_protocol(protocol, options, sweep(options))
    (signum,) = document["optimizers"]
    small = arm_named(signum, "small")
    # The grid ends at 2e-3 and is lowest at 4e-3: two extensions.
    assert small["best"] == {"learning_rate": 4e-3} and small["interior"]
    assert len(small["trials"]) == 4
    # Of thetas 0.5, 1 and 2 the second loses 0.2 %, the first 0.4 %.
    adaptive = arm_named(signum, "adaptive_matched")
    assert adaptive["best"] == {"batch.theta": 1.0, "learning_rate": 4e-3}
    # 80 rows in 10 steps, 720 in 23: the path of the tuning seed, replayed.
    assert [row[-1] for row in adaptive["steps"]] == [33.0, 33.0]
    assert adaptive["scale_over_batch"] == [3.0, 3.0]
    replay = arm_named(signum, "replay")
    assert replay["paths"] == [[[0, 8], [80, 32]]] * 2 == adaptive["paths"]
    assert replay["steps"] == adaptive["steps"] and replay["trials"] == []
    # 800 rows in 33 steps are 24.2 a step.
    mean_matched = arm_named(signum, "mean_matched")
    assert mean_matched["best"]["size"] == 24
    assert mean_matched["paths"] == [[[0, 24]]] * 2
    assert [run["seed"] for run in replay["runs"]] == [1, 2]
    assert replay["scale_over_batch"] == []
    for arm in signum["arms"]:
        assert document["checks"] == [160, 320, 480, 640, 800]
        assert len(arm["loss"][0]) == len(arm["steps"][0]) == 5


def test_files_are_written_and_a_second_call_runs_nothing(
    request_of, monkeypatch, capsys
):
    protocol, options, sweep = request_of
    monkeypatch.setattr(batch_comparison, "sweep_of", sweep)
    compare_batches(protocol, options)
    stem = "gns_llama_cpu_seeds_1_2_steps_100_overridden"
    written = sorted(path.name for path in options.results_dir.iterdir())
    assert written == [f"{stem}.json", f"{stem}.md", f"{stem}.png"]
    stored = (options.results_dir / f"{stem}.json").read_text()
    assert str(options.output_dir) not in stored  # nothing of this machine
    assert capsys.readouterr().out.count("finished") > 20
    compare_batches(protocol, options)
    assert capsys.readouterr().out.count("finished 1.") == 0
    assert (options.results_dir / f"{stem}.json").read_text() == stored


def test_no_path_is_replayed_from_a_diverged_run(request_of):
    protocol, options, sweep = request_of

    class Diverging:
        def run(self, runs):
            outcomes = sweep(options).run(runs)
            return [
                o._replace(status="diverged")
                if "batch.adaptive" in o.run.overrides
                else o
                for o in outcomes
            ]

    with pytest.raises(SweepError, match="diverged: there is no path to replay"):
        run_batch_protocol(protocol, options, Diverging())


def _outcome(folder, rows, status="finished"):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)
    return Outcome(Run("nano", {}), folder, status)


def test_a_check_takes_the_first_evaluation_that_is_not_earlier(tmp_path):
    rows = [
        {"step": step, "tokens": 4 * samples, "eval/loss": loss}
        for step, samples, loss in ((3, 24, 3.0), (5, 56, 2.0), (6, 64, 1.0))
    ]
    outcome = _outcome(tmp_path, rows)
    # The step from 24 to 56 rows passed two checks.
    losses, steps = curve_at(outcome, [16, 32, 48, 64], seq_len=4)
    assert losses == [3.0, 2.0, 2.0, 1.0] and steps == [3.0, 5.0, 5.0, 6.0]
    with pytest.raises(SweepError, match="trained on 64 rows, not 72"):
        curve_at(outcome, [16, 72], seq_len=4)
    losses, steps = curve_at(_outcome(tmp_path, rows, "diverged"), [16, 64, 80], 4)
    assert losses == [3.0, 1.0, float("inf")] and str(steps[-1]) == "nan"


def test_readings_count_after_the_warm_up_and_may_be_infinite(tmp_path):
    def row(samples, scale):
        found = {"optim/noise_scale": scale, "train/batch_size": 8}
        return {"step": 1, "tokens": 4 * samples, **found}

    outcome = _outcome(tmp_path, [row(8, 800.0), row(16, 16.0), row(24, 24.0)])
    assert scale_over_batch(outcome, 8, seq_len=4) == 2.5
    outcome = _outcome(tmp_path, [row(16, None), row(24, 16.0), row(32, None)])
    assert scale_over_batch(outcome, 8, seq_len=4) == float("inf")
    assert scale_over_batch(outcome, 32, seq_len=4) is None


def test_runs_of_a_sweep_share_what_they_compile(tmp_path):
    folder = compiled_once(tmp_path)["JAX_COMPILATION_CACHE_DIR"]
    assert folder == str(tmp_path / "compiled")


def test_the_plan_counts_runs_and_names_rules(tmp_path):
    options = Options("gns_llama", output_dir=tmp_path)
    text = batch_plan(protocol_of(options), options)
    assert "63 tuning runs, at most 27 extensions, 120 reporting runs" in text
    assert text.count("python -m experiments.train_llama --preset=llama_pico") == 27
    assert text.count("adaptive, matched: adaptive=sign") == 2
    assert "adaptive, alignment: adaptive=spectral, signal=alignment" in text
    assert "Every run trains on the same " in text
    assert list(tmp_path.iterdir()) == []  # a plan writes nothing


def test_the_gpu_plan_follows_the_paper(tmp_path):
    options = Options("gns_llama", scale="gpu", overrides=("data.path=c4/*.gz",))
    protocol = protocol_of(options)
    assert protocol.small_size == 64 and protocol.large_size == 256
    assert protocol.steps * 64 * 2048 == pytest.approx(3.2e9, rel=1e-3)
    config = protocol.config
    assert config.noise_scale.every == 100 and config.batch.warmup_fraction == 0.15
    assert (config.batch.ema_noise, config.batch.ema_signal) == (0.9, 0.9)
    assert all(0.6 in method.thetas["adaptive_matched"] for method in protocol.methods)
    text = batch_plan(protocol, options)
    assert text.count("--config.data.path=c4/*.gz") == 36
    assert "Changed for all runs: data.path=c4/*.gz." in text
