"""The main job in a few minutes: AdamW against GPA-AdamW on real text.

`python -m experiments.demo` trains a nano Llama on the text of the running Python's
standard library with both optimizers, equal in everything but the optimizer and its
learning rate, and writes a table, a figure and a text sample. Runs that have finished
are shown again, an interrupted one goes on.
"""

import dataclasses
import json
import pathlib
from typing import NamedTuple

from absl import app, flags

from experiments.config import TrainConfig
from experiments.config_fields import to_dict
from experiments.curves import plot_curves, read_curve, steps_to_reach
from experiments.flags import quiet_by_default
from experiments.presets import LLAMA, preset_by_name
from experiments.tables import markdown_table, write_table
from experiments.training import read_summary, run
from experiments.training.inference import sample_text

_OUTPUT_DIR = flags.DEFINE_string("output_dir", "runs/demo", "Where all of it goes.")
_PRESET = flags.DEFINE_string("preset", "llama_nano_stdlib", "The common set-up.")
_STEPS = flags.DEFINE_integer("steps", 0, "Length of each run; 0: the preset's.")

PROMPT = "def __init__(self"

# AdamW's learning rate is the best of `experiments.reproduce gpa_llama`; GPA takes
# twice that, and a memory of x of about a tenth of the run (H = 16).
ARMS = {
    "adamw": {"learning_rate": 6e-3},
    "gpa_adamw": {"learning_rate": 1.2e-2, "mu_x": 0.9934, "mu_y": 0.7},
}


class Outcome(NamedTuple):
    """One optimizer's row, in the order of the table's columns."""

    optimizer: str
    final_validation_loss: float  # nats per token, at x
    steps_to_adamw_final_loss: int | None
    tokens_per_s: float
    optimizer_state_in_model_copies: float


def arm_config(name: str, preset: TrainConfig) -> TrainConfig:
    """The preset with one arm's optimizer."""
    optimizer = dataclasses.replace(preset.optimizer, name=name, **ARMS[name])
    return dataclasses.replace(preset, optimizer=optimizer)


def run_arms(preset: TrainConfig, output_dir: pathlib.Path) -> dict[str, pathlib.Path]:
    """Trains every arm that has not finished; returns the run folders."""
    folders = {}
    for name in ARMS:
        config = arm_config(name, preset)
        folders[name] = output_dir / name
        if _is_finished(folders[name], config):
            print(f"{name}: already trained in {folders[name]}", flush=True)
            continue
        print(f"{name}: training {config.steps} steps …", flush=True)
        result = run(config, str(folders[name]), resume=folders[name].exists())
        print(f"{name}: {result.message}", flush=True)
        if result.status != "finished":
            raise SystemExit(f"{name} ended as {result.status}; run again to go on")
    return folders


def _is_finished(folder: pathlib.Path, config: TrainConfig) -> bool:
    """Whether the folder holds this very run, ended well."""
    summary, written = read_summary(folder), folder / "config.json"
    if not summary or summary["status"] != "finished" or not written.exists():
        return False
    return json.loads(written.read_text()) == to_dict(config)


def outcomes(folders: dict[str, pathlib.Path]) -> list[Outcome]:
    """One row per finished run."""
    curves = {name: read_curve(folder) for name, folder in folders.items()}
    target = float(curves["adamw"].values[-1])
    rows = []
    for name, folder in folders.items():
        summary = read_summary(folder)
        rows.append(
            Outcome(
                optimizer=name,
                final_validation_loss=float(curves[name].values[-1]),
                steps_to_adamw_final_loss=steps_to_reach(curves[name], target),
                tokens_per_s=float(summary["perf/tokens_per_s"]),
                optimizer_state_in_model_copies=float(summary["optim/state_copies"]),
            )
        )
    return rows


def draw(folders: dict[str, pathlib.Path], path: pathlib.Path) -> None:
    """Validation loss at x over steps, one line per optimizer."""
    curves = {name: [read_curve(folder)] for name, folder in folders.items()}
    plot_curves(
        curves,
        path,
        title="Nano Llama on the standard library's text",
        ylabel="validation loss at x (nats per byte)",
        target=float(curves["adamw"][0].values[-1]),
    )


def report(folders: dict[str, pathlib.Path], output_dir: pathlib.Path) -> None:
    """Prints the table, writes it and the figure, and samples from the GPA run."""
    header, rows = Outcome._fields, outcomes(folders)
    written = [*write_table(output_dir / "table", header, rows)]
    figure = output_dir / "loss.png"
    draw(folders, figure)
    sample = output_dir / "sample.txt"
    sample.write_text(sample_text(str(folders["gpa_adamw"]), PROMPT) + "\n")
    print("\n" + markdown_table(header, rows))
    print(f"\nA sample of gpa_adamw, evaluated at x:\n\n{sample.read_text()}")
    print("Written:")
    for path in [*written, figure, sample, *folders.values()]:
        print(f"  {path}")


def main(argv: list[str]) -> None:
    """Trains what is missing, then reports."""
    del argv
    quiet_by_default(flags.FLAGS)
    preset = preset_by_name(_PRESET.value, LLAMA)
    if _STEPS.value:
        preset = dataclasses.replace(preset, steps=_STEPS.value)
    output_dir = pathlib.Path(_OUTPUT_DIR.value)
    output_dir.mkdir(parents=True, exist_ok=True)
    report(run_arms(preset, output_dir), output_dir)


if __name__ == "__main__":
    app.run(main)
