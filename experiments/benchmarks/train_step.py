"""A whole training step with Shampoo against one with AdamW, and what was predicted.

    python -m experiments.benchmarks.train_step --preset=llama_nano_stdlib

Both run the trainer's own compiled functions on one batch that lies on the device, in
turn. The prediction is the plan's: FLOPs of statistics and direction, and of one
refresh per period, over the 6 FLOPs per parameter and token of the model. It assumes
that both run at the same speed; on small models they do not.
"""

import dataclasses
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
from optim_jax import Plan

BAR = 1.10  # Shampoo over AdamW, at BAR_TOKENS or more per step on an accelerator
BAR_TOKENS = 131_072


class Prediction(NamedTuple):
    """Shampoo's FLOPs over the model's, per step.

    Attributes:
      step: of statistics and direction.
      refresh: of a refresh, spread over its period.
    """

    step: float
    refresh: float

    @property
    def ratio(self) -> float:
        """Predicted time of a Shampoo step over an AdamW step."""
        return 1.0 + self.step + self.refresh


def with_optimizer(
    config: TrainConfig, name: str, period: int, refresh: str
) -> TrainConfig:
    """The same run with another optimizer."""
    optimizer = dataclasses.replace(
        config.optimizer, name=name, precondition_frequency=period, refresh=refresh
    )
    return dataclasses.replace(config, optimizer=optimizer)


def predict(plan: Plan, tokens: float, period: int) -> Prediction:
    """What the plan says about a step of so many tokens."""
    model = 6.0 * plan.num_params * tokens
    return Prediction(plan.step_flops / model, plan.refresh_flops / period / model)


def measure(
    configs: dict[str, TrainConfig], steps: int, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds per step of each run, a round each, in turn."""
    times: dict[str, list[float]] = {name: [] for name in configs}
    for number in range(rounds):
        for name in list(configs)[:: 1 if number % 2 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                prepared = prepare(configs[name], pathlib.Path(folder) / "run")
                with jax.set_mesh(prepared.setup.mesh):
                    seconds = bare_seconds(prepared.setup, steps)
            times[name].append(1e3 * seconds / steps)
    return times


def main(argv: list[str]) -> None:
    """Prints the ratio, its spread and the prediction."""
    del argv
    options = flags.FLAGS
    quiet_by_default(options)
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        base = benchmark_config(preset_by_name(options.preset, LLAMA), options.steps)
        configs = {
            name: with_optimizer(base, name, options.period, options.refresh)
            for name in ("adamw", options.optimizer)
        }
        with tempfile.TemporaryDirectory() as folder:
            run = pathlib.Path(folder) / "run"
            setup = prepare(configs[options.optimizer], run).setup
        times = measure(configs, options.steps, options.rounds)
    plan, tokens = setup.plan, setup.tokens_per_step
    if plan is None:
        raise app.UsageError(f"--optimizer={options.optimizer} cuts no blocks")
    prediction = predict(plan, tokens, options.period)
    pairs = zip(times[options.optimizer], times["adamw"], strict=True)
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    ratio = statistics.median(ratios)
    print(f"{options.preset}: {plan.num_params:,} parameters, {tokens:,} tokens a step")
    for name, values in times.items():
        print(f"{name:10} {statistics.median(values):9.3f} ms per step")
    print(f"measured   {ratio:9.3f} (from {ratios[0]:.3f} to {ratios[-1]:.3f})")
    print(
        f"predicted  {prediction.ratio:9.3f} (statistics and direction "
        f"{100 * prediction.step:.2f} %, refresh {100 * prediction.refresh:.2f} %)"
    )
    accelerator = jax.devices()[0].platform != "cpu"
    if accelerator and tokens >= BAR_TOKENS:
        print(f"bar        {BAR:9.3f}: {'met' if ratio <= BAR else 'NOT met'}")
    else:
        print(f"bar        {BAR} holds on an accelerator from {BAR_TOKENS:,} tokens on")
    if options.json:
        record = {
            "ratio_median": ratio,
            "ratios": ratios,
            "predicted": prediction._asdict() | {"ratio": prediction.ratio},
            "tokens_per_step": tokens,
            "milliseconds": times,
            "provenance": provenance(),
        }
        pathlib.Path(options.json).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("preset", "llama_nano_stdlib", "What is trained.")
    flags.DEFINE_string("optimizer", "shampoo", "Compared with adamw.")
    flags.DEFINE_integer("period", 100, "Steps between refreshes.", lower_bound=1)
    flags.DEFINE_string("refresh", "cond", "cond or staggered.")
    flags.DEFINE_integer("steps", 200, "Steps per round.", lower_bound=2)
    flags.DEFINE_integer("rounds", 5, "Rounds of both.", lower_bound=1)
    flags.DEFINE_string("json", None, "Also written here, as JSON.")
    app.run(main)
