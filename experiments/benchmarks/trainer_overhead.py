"""What the trainer costs: `python -m experiments.benchmarks.trainer_overhead`.

The bare loop calls the same two compiled functions on one batch that already lies on
the device and looks at nothing. The trainer reads and places data, reads every step's
metrics one step late, logs, counts and watches for signals. Both run in turn in one
process; evaluation, checkpoints and compilation are left out of both times.
"""

import json
import pathlib
import statistics
import tempfile
from typing import NamedTuple

import jax
from absl import app, flags

from experiments.benchmarks.bare_loop import bare_seconds, benchmark_config
from experiments.config import TrainConfig
from experiments.flags import quiet_by_default
from experiments.presets import LLAMA, preset_by_name
from experiments.provenance import provenance
from experiments.training import prepare

BAR = 1.03  # trainer over bare loop

_PRESET = flags.DEFINE_string("preset", "llama_nano_stdlib", "What is trained.")
_STEPS = flags.DEFINE_integer("steps", 200, "Steps per round.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds of both.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "Also written here, as JSON.")


class Round(NamedTuple):
    """Milliseconds per step of one round."""

    bare: float
    trainer: float


def measure(config: TrainConfig, rounds: int) -> list[Round]:
    """Times both, in turn, in an order that alternates."""
    measured = []
    for number in range(rounds):
        times = {}
        for which in ("bare", "trainer")[:: 1 if number % 2 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                prepared = prepare(config, pathlib.Path(folder) / "run")
                if which == "bare":
                    with jax.set_mesh(prepared.setup.mesh):
                        seconds = bare_seconds(prepared.setup, config.steps)
                else:
                    seconds = prepared.run().summary["wall_s"]
            times[which] = 1e3 * seconds / config.steps
        measured.append(Round(**times))
    return measured


def main(argv: list[str]) -> None:
    """Prints the ratio, its spread and whether the bar is met."""
    del argv
    quiet_by_default(flags.FLAGS)
    with tempfile.TemporaryDirectory() as cache:
        # Every round compiles the same two programs; only the first one has to.
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        config = benchmark_config(preset_by_name(_PRESET.value, LLAMA), _STEPS.value)
        rounds = measure(config, _ROUNDS.value)
    ratios = sorted(r.trainer / r.bare for r in rounds)
    ratio = statistics.median(ratios)
    print(f"{_PRESET.value}, {_STEPS.value} steps, {len(rounds)} rounds")
    print(f"bare loop {statistics.median(r.bare for r in rounds):7.3f} ms per step")
    print(f"trainer   {statistics.median(r.trainer for r in rounds):7.3f} ms per step")
    print(
        f"ratio     {ratio:7.3f} (from {ratios[0]:.3f} to {ratios[-1]:.3f}); bar "
        f"{BAR}: {'met' if ratio <= BAR else 'NOT met'}"
    )
    if _JSON.value:
        record = {
            "ratio_median": ratio,
            "ratios": ratios,
            "rounds": [r._asdict() for r in rounds],
            "provenance": provenance(),
        }
        pathlib.Path(_JSON.value).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
