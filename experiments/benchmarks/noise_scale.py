"""What it costs to measure the gradient noise scale of a training run.

    python -m experiments.benchmarks.noise_scale --json=noise_scale.json

Runs of the trainer's own compiled functions on one device, on a batch in two
micro-batches, which are the two draws. In rounds of random order: a step of a run that
measures nothing, a step between two measurements, and one that measures. The price of
a measurement is a measuring step over a plain one of the same round, less one; spread
over `every` steps it is the overhead. A shared machine cannot tell half a percent from
whole windows of steps; they are timed beside it all the same.

Then the estimator alone on stacks of square matrices; what a measurement leaves in
memory; and what it reduces over eight ranks.
"""

import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

from experiments.benchmarks.interleaved import Ratio, interleave, ratio
from experiments.benchmarks.measuring_step import (
    MICRO_BATCHES,
    MeasurementMemory,
    Reductions,
    TrainingRun,
    measuring_config,
)
from experiments.config import TrainConfig
from experiments.flags import quiet_by_default
from experiments.presets import LLAMA, preset_by_name
from experiments.provenance import provenance
from experiments.tables import markdown_table
from optim_jax import MatrixAxes
from optim_jax.noise_scale import moments_from_stacked, noise_scale

RANKS = 8
_DRAWS = 8  # of the estimator alone
_LEFT_LIMIT = 0.01  # of the parameters: scalars are left, no gradient
_REDUCED_LIMIT = 2.01  # twice the parameters, and scalars


class Case(NamedTuple):
    """A noise scale, on the optimizer it is meant for."""

    name: str
    optimizer: str
    geometry: str
    method: str
    limit: float  # overhead of a measurement every 100 steps


CASES = (
    Case("l1", "signum", "sign", "eigh", 0.005),
    Case("S1, eigh", "muon", "spectral", "eigh", 0.03),
    Case("S1, matmul", "muon", "spectral", "matmul", 0.03),
)


@dataclasses.dataclass(frozen=True)
class CaseFigures:
    """What one case costs.

    Attributes:
      plain_ms: a step of the run that measures nothing, median.
      between: a step between two measurements over it.
      measuring: a step that measures over it.
      window: a window of `every` steps, one of them measuring, over one without.
      memory: of a measurement.
      reductions: of a measurement over `RANKS` ranks.
    """

    plain_ms: float
    between: Ratio
    measuring: Ratio
    window: Ratio
    memory: MeasurementMemory
    reductions: Reductions

    @property
    def price(self) -> float:
        """Time of a measurement in plain steps."""
        return self.measuring.median - 1.0

    def overhead(self, every: int) -> float:
        """Share of a run's time that measurements take."""
        return self.price / every


def measure_cases(
    preset: TrainConfig, *, every: int, rounds: int, windows: int
) -> dict[str, CaseFigures]:
    """Times steps and windows of all cases against runs that measure nothing.

    Args:
      preset: what is trained.
      every: steps between measurements, and in a window.
      rounds: of single steps.
      windows: rounds of windows.
    """

    def start(optimizer: str, geometry: str, method: str) -> TrainingRun:
        names = {"optimizer": optimizer, "geometry": geometry, "method": method}
        return TrainingRun(measuring_config(preset, every=every, **names))

    optimizers = dict.fromkeys(case.optimizer for case in CASES)
    plain_runs = {name: start(name, "none", "eigh") for name in optimizers}
    runs = {case: start(*case[1:4]) for case in CASES}
    steps = {name: run.plain for name, run in plain_runs.items()}
    steps |= {(case, "between"): run.plain for case, run in runs.items()}
    steps |= {(case, "measuring"): run.measuring for case, run in runs.items()}
    seconds = interleave(steps, rounds=rounds)
    all_runs = plain_runs | runs
    in_windows = interleave(
        {key: lambda run=run: run.window(every) for key, run in all_runs.items()},
        rounds=windows,
        warmup=0,
    )
    return {
        case.name: CaseFigures(
            plain_ms=1e3 * float(np.median(seconds[case.optimizer])),
            between=ratio(seconds[case, "between"], seconds[case.optimizer]),
            measuring=ratio(seconds[case, "measuring"], seconds[case.optimizer]),
            window=ratio(in_windows[case], in_windows[case.optimizer]),
            memory=runs[case].memory(),
            reductions=runs[case].reductions(RANKS),
        )
        for case in CASES
    }


def estimator_seconds(
    sizes: Sequence[int], *, matrices: int, rounds: int
) -> dict[tuple[int, str], np.ndarray]:
    """Seconds of `noise_scale` alone, by size and method.

    Args:
      sizes: sides of the square matrices.
      matrices: how many of each size, stacked in one leaf.
      rounds: of timing.
    """
    layout = {
        "geometry": "spectral",
        "matrix_axes": MatrixAxes("hidden", (0,), (1,), (2,)),
    }
    contenders = {}
    for size in sizes:
        shape = (_DRAWS, matrices, size, size)
        draws = jax.random.normal(jax.random.key(size), shape)
        moments = jax.jit(lambda draws: moments_from_stacked(draws, **layout))(draws)
        for method in ("eigh", "matmul"):

            def estimate(moments: Any, method: str = method) -> Any:
                return noise_scale(moments, method=method, **layout)

            program = jax.jit(estimate).lower(moments).compile()
            contenders[size, method] = lambda program=program, moments=moments: program(
                moments
            )
    return interleave(contenders, rounds=rounds, warmup=1)


def judge(figures: Mapping[str, CaseFigures], every: int) -> list[dict[str, Any]]:
    """The bars and whether they are met."""
    bars = []

    def bar(name: str, figure: float, limit: float) -> None:
        met = figure <= limit
        bars.append({"name": name, "figure": figure, "limit": limit, "met": met})

    for case in CASES:
        overhead = figures[case.name].overhead(every)
        bar(f"{case.name}: overhead, measured every {every}", overhead, case.limit)
    for name, case in figures.items():
        bar(f"{name}: bytes left / bytes of params", case.memory.left, _LEFT_LIMIT)
    for name, case in figures.items():
        reduced = case.reductions.finish
        bar(f"{name}: elements reduced over ranks / params", reduced, _REDUCED_LIMIT)
    return bars


def _percent(value: float) -> str:
    return f"{100 * value:+.2f} %"


def _spread(of: Ratio) -> str:
    values = (of.median, of.lower_quartile, of.upper_quartile)
    return "{} [{}, {}]".format(*(_percent(value - 1.0) for value in values))


def cases_table(figures: Mapping[str, CaseFigures], every: int) -> str:
    """Times of the cases as text."""
    header = ["noise scale", "plain ms", "price, plain steps [quartiles]"]
    header += [f"overhead every {every}", "a step between", f"window of {every}"]
    rows = [
        [
            name,
            case.plain_ms,
            f"{case.price:.2f} [{case.measuring.lower_quartile - 1:.2f}, "
            f"{case.measuring.upper_quartile - 1:.2f}]",
            _percent(case.overhead(every)),
            _spread(case.between),
            _spread(case.window),
        ]
        for name, case in figures.items()
    ]
    return markdown_table(header, rows)


def memory_table(figures: Mapping[str, CaseFigures]) -> str:
    """Memory and reductions of the cases as text, in units of the parameters."""
    header = ["noise scale", "left", "held", "temporary", "of a plain step"]
    header += [f"reduced over {RANKS} ranks", "in each micro-batch"]
    rows = [
        [
            name,
            f"{case.memory.left:.5f}",
            f"{case.memory.held:.2f}",
            f"{case.memory.temporary:.2f}",
            f"{case.memory.plain_temporary:.2f}",
            f"{case.reductions.finish:.3f}",
            f"{case.reductions.accumulate:.3f}",
        ]
        for name, case in figures.items()
    ]
    return markdown_table(header, rows)


def estimator_rows(
    seconds: Mapping[tuple[int, str], np.ndarray],
) -> list[dict[str, float]]:
    """Medians by size, with the growth since the size before."""
    rows: list[dict[str, float]] = []
    for size in dict.fromkeys(size for size, _ in seconds):
        row: dict[str, float] = {"size": size}
        for method in ("eigh", "matmul"):
            row[f"{method}_ms"] = 1e3 * float(np.median(seconds[size, method]))
            if rows:
                before = rows[-1][f"{method}_ms"]
                row[f"{method}_growth"] = row[f"{method}_ms"] / before
        row["eigh_over_matmul"] = ratio(
            seconds[size, "eigh"], seconds[size, "matmul"]
        ).median
        rows.append(row)
    return rows


def estimator_table(rows: Sequence[Mapping[str, float]]) -> str:
    """The estimator alone as text."""
    header = ["size", "eigh ms", "x before", "matmul ms", "x before", "eigh / matmul"]
    names = ("eigh_ms", "eigh_growth", "matmul_ms", "matmul_growth", "eigh_over_matmul")
    return markdown_table(
        header,
        [[row["size"], *(row.get(name, "") for name in names)] for row in rows],
    )


def run(
    preset: str,
    *,
    every: int,
    rounds: int,
    windows: int,
    sizes: Sequence[int],
    matrices: int,
    estimator_rounds: int,
) -> dict[str, Any]:
    """Measures everything, prints the tables and the bars, returns all figures."""
    config = preset_by_name(preset, LLAMA)
    figures = measure_cases(config, every=every, rounds=rounds, windows=windows)
    bars = judge(figures, every)
    print(f"{preset}, {MICRO_BATCHES} micro-batches, {rounds} rounds of steps\n")
    print(cases_table(figures, every) + "\n")
    print("Memory and reductions over ranks, in units of the parameters\n")
    print(memory_table(figures) + "\n", flush=True)
    rows = estimator_rows(
        estimator_seconds(sizes, matrices=matrices, rounds=estimator_rounds)
    )
    print(
        f"noise_scale() alone, {matrices} square matrices, {estimator_rounds} rounds\n"
    )
    print(estimator_table(rows) + "\n")
    for bar in bars:
        met = "met    " if bar["met"] else "NOT met"
        print(f"{met}  {bar['name']}: {bar['figure']:.5f} <= {bar['limit']}")
    return {
        "preset": preset,
        "micro_batches": MICRO_BATCHES,
        "every": every,
        "rounds": rounds,
        "windows": windows,
        "ranks": RANKS,
        "cases": {
            name: {
                **dataclasses.asdict(case),
                "price": case.price,
                "overhead": case.overhead(every),
            }
            for name, case in figures.items()
        },
        "matrices": matrices,
        "estimator_rounds": estimator_rounds,
        "estimator": rows,
        "bars": bars,
        "load_average": os.getloadavg()[0],
        "provenance": provenance(),
    }


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark from the command line."""
    del argv
    options = flags.FLAGS
    quiet_by_default(options)
    with tempfile.TemporaryDirectory() as cache:
        # The runs share many programs; only the first one has to compile them.
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        report = run(
            options.preset,
            every=options.every,
            rounds=options.rounds,
            windows=options.windows,
            sizes=[int(size) for size in options.sizes],
            matrices=options.matrices,
            estimator_rounds=options.estimator_rounds,
        )
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    flags.DEFINE_string("preset", "llama_micro_stdlib", "What is trained.")
    flags.DEFINE_integer("every", 100, "Steps between measurements.", lower_bound=1)
    flags.DEFINE_integer("rounds", 30, "Rounds of single steps.", lower_bound=1)
    flags.DEFINE_integer("windows", 2, "Rounds of windows.", lower_bound=1)
    flags.DEFINE_list("sizes", ["128", "256", "512", "1024"], "Sides of the matrices.")
    flags.DEFINE_integer("matrices", 2, "Matrices of each size.", lower_bound=1)
    flags.DEFINE_integer("estimator_rounds", 3, "Rounds of it alone.", lower_bound=1)
    flags.DEFINE_string("json", None, "Also written here, as JSON.")
    app.run(main)
