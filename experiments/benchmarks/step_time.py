"""Time and memory of one optimizer update, against `optax.adamw` in the same run.

    python -m experiments.benchmarks.step_time --sizes=5M,25M --rounds=30

No model is involved: fixed gradients, a fixed tree of Llama-like float32 leaves. The
step is update + `apply_updates` with params and state donated, as a trainer runs it;
`update only` leaves the parameters alone and returns the updates. "x floor" is the
step's time over the time that the memory needs for the bytes the method must move.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments.benchmarks.contenders import CONTENDERS
from experiments.benchmarks.interleaved import interleave, ratio, restrict_threads
from experiments.benchmarks.trees import (
    TREES,
    TreeShape,
    make_grads,
    make_params,
    matrix_axes,
    parameter_count,
)
from experiments.benchmarks.update_step import InPlaceStream, Memory, UpdateStep
from experiments.provenance import provenance
from experiments.tables import markdown_table

REFERENCE = "adamw"
_STREAM = "stream"
# Four parameter trees: large enough not to stay in a cache between two rounds.
_STREAM_TREES = 4


@dataclasses.dataclass(frozen=True)
class Measured:
    """All rounds of one tree.

    Attributes:
      seconds: contender to the seconds of its steps, a round each.
      update_seconds: the same for the update alone.
      memory: contender to its bytes per parameter.
      bandwidth: bytes per second of the fastest in-place stream.
      parameters: size of the tree.
      leaves: number of arrays in the tree.
    """

    seconds: dict[str, np.ndarray]
    update_seconds: dict[str, np.ndarray]
    memory: dict[str, Memory]
    bandwidth: float
    parameters: int
    leaves: int


@dataclasses.dataclass(frozen=True)
class Bar:
    """A limit that a figure shall not exceed."""

    name: str
    limit: float
    figure: Callable[[Measured], float]
    needs: tuple[str, ...]


def _median_ratio(name: str, reference: str) -> Callable[[Measured], float]:
    return lambda measured: (
        ratio(measured.seconds[name], measured.seconds[reference]).median
    )


BARS = (
    Bar(
        "gpa_adamw step / adamw step",
        1.20,
        _median_ratio("gpa_adamw", "adamw"),
        ("gpa_adamw", "adamw"),
    ),
    Bar(
        "gpa_adamw step / schedule_free_adamw step",
        0.90,
        _median_ratio("gpa_adamw", "schedule_free_adamw"),
        ("gpa_adamw", "schedule_free_adamw"),
    ),
    Bar(
        "gpa_adamw state bytes per parameter",
        12.0,
        lambda measured: measured.memory["gpa_adamw"].state,
        ("gpa_adamw",),
    ),
    # The update itself is 4 bytes; what lies above would be a second params-sized one.
    Bar(
        "gpa_adamw temporary bytes per parameter",
        4.1,
        lambda measured: measured.memory["gpa_adamw"].temporary,
        ("gpa_adamw",),
    ),
)


def measure(
    tree: TreeShape, names: Sequence[str], *, rounds: int, warmup: int
) -> Measured:
    """Times the named contenders, interleaved, on one tree."""
    params, grads, axes = make_params(tree), make_grads(tree), matrix_axes(tree)
    parameters = parameter_count(params)
    stream = InPlaceStream(_STREAM_TREES * parameters)
    steps = {
        name: UpdateStep(CONTENDERS[name].build(axes), params, grads) for name in names
    }
    runs = {(_STREAM, "step"): stream.run}
    for name, step in steps.items():
        runs[name, "step"] = step.step
        runs[name, "update"] = step.update
    seconds = interleave(runs, rounds=rounds, warmup=warmup)
    return Measured(
        seconds={name: seconds[name, "step"] for name in names},
        update_seconds={name: seconds[name, "update"] for name in names},
        memory={name: step.memory() for name, step in steps.items()},
        bandwidth=stream.traffic / float(seconds[_STREAM, "step"].min()),
        parameters=parameters,
        leaves=len(jax.tree.leaves(params)),
    )


def _row(measured: Measured, name: str) -> dict[str, Any]:
    seconds, memory = measured.seconds[name], measured.memory[name]
    floor = memory.traffic * measured.parameters / measured.bandwidth
    updates = measured.update_seconds
    return {
        "name": name,
        "origin": CONTENDERS[name].origin,
        "step_ms": 1e3 * float(np.median(seconds)),
        "step_min_ms": 1e3 * float(seconds.min()),
        "ratio": dataclasses.asdict(ratio(seconds, measured.seconds[REFERENCE])),
        "update_ms": 1e3 * float(np.median(updates[name])),
        "update_ratio": dataclasses.asdict(ratio(updates[name], updates[REFERENCE])),
        "bytes_per_parameter": dataclasses.asdict(memory),
        "floor_ms": 1e3 * floor,
        "min_over_floor": float(seconds.min()) / floor,
    }


def _judged(measured: Measured) -> list[dict[str, Any]]:
    present = [bar for bar in BARS if set(bar.needs) <= set(measured.seconds)]
    results = []
    for bar in present:
        figure = bar.figure(measured)
        results.append(
            {
                "name": bar.name,
                "figure": figure,
                "limit": bar.limit,
                "met": figure <= bar.limit,
            }
        )
    return results


def summarize(measured: Measured) -> dict[str, Any]:
    """Turns the rounds of one tree into rows and judged bars, ready for JSON."""
    return {
        "parameters": measured.parameters,
        "leaves": measured.leaves,
        "bandwidth_gb_per_s": 1e-9 * measured.bandwidth,
        "rows": [_row(measured, name) for name in measured.seconds],
        "bars": _judged(measured),
    }


def format_summary(size: str, summary: Mapping[str, Any]) -> str:
    """The table and the bars of one tree as text."""
    header = ["transformation", "step ms", "x adamw [quartiles]", "of minima"]
    header += ["update only x", "state B", "temp B", "traffic B", "x floor"]
    table = [
        [
            row["name"],
            row["step_ms"],
            "{median:.2f} [{lower_quartile:.2f}, {upper_quartile:.2f}]".format(
                **row["ratio"]
            ),
            f"{row['ratio']['minimum']:.2f}",
            f"{row['update_ratio']['median']:.2f}",
            f"{row['bytes_per_parameter']['state']:.2f}",
            f"{row['bytes_per_parameter']['temporary']:.2f}",
            f"{row['bytes_per_parameter']['traffic']:.1f}",
            f"{row['min_over_floor']:.2f}",
        ]
        for row in summary["rows"]
    ]
    title = (
        f"{size}: {summary['parameters']:,} float32 parameters in "
        f"{summary['leaves']} leaves; memory streams at "
        f"{summary['bandwidth_gb_per_s']:.1f} GB/s; B = bytes per parameter"
    )
    bars = [
        f"{'met    ' if bar['met'] else 'NOT met'}  {bar['name']}: "
        f"{bar['figure']:.3f} <= {bar['limit']}"
        for bar in summary["bars"]
    ]
    return "\n".join([title, "", markdown_table(header, table), "", *bars])


def contender_names(only: Sequence[str]) -> list[str]:
    """The contenders to run, the reference first; all of them if `only` is empty."""
    unknown = sorted(set(only) - set(CONTENDERS))
    if unknown:
        raise ValueError(
            f"only must name contenders among {', '.join(CONTENDERS)}, "
            f"got {', '.join(unknown)}"
        )
    return [name for name in CONTENDERS if not only or name in {REFERENCE, *only}]


def run(
    sizes: Sequence[str], only: Sequence[str] = (), *, rounds: int, warmup: int = 3
) -> dict[str, Any]:
    """Measures every tree, prints a table for each and returns all figures."""
    unknown = sorted(set(sizes) - set(TREES))
    if unknown or not sizes:
        raise ValueError(
            f"sizes must be among {', '.join(TREES)}, got {', '.join(unknown) or '[]'}"
        )
    names = contender_names(only)
    report: dict[str, Any] = {"provenance": provenance(), "sizes": {}}
    # One tree must not pay for another's contenders: they are dropped in between.
    for size in sizes:
        measured = measure(TREES[size], names, rounds=rounds, warmup=warmup)
        report["sizes"][size] = summary = summarize(measured)
        print(format_summary(size, summary) + "\n", flush=True)
    report |= {
        "rounds": rounds,
        "cores_used": len(os.sched_getaffinity(0)),
        # Above cores_used, other processes wanted the same cores.
        "load_average": os.getloadavg()[0],
    }
    return report


_SIZES = flags.DEFINE_list("sizes", ["5M", "25M"], f"Trees among {', '.join(TREES)}.")
_ONLY = flags.DEFINE_list("only", [], "Contenders beside adamw; empty: all.")
_ROUNDS = flags.DEFINE_integer("rounds", 30, "Timed rounds.", lower_bound=1)
_WARMUP = flags.DEFINE_integer("warmup", 3, "Rounds run first.", lower_bound=0)
_THREADS = flags.DEFINE_integer("threads", 0, "Cores to bind to; 0: all of them.")
_JSON = flags.DEFINE_string("json", "", "File to write all figures to.")


def main(_: Sequence[str]) -> None:
    """Runs the benchmark from the command line."""
    try:
        if _THREADS.value:
            restrict_threads(_THREADS.value)
        report = run(
            _SIZES.value, _ONLY.value, rounds=_ROUNDS.value, warmup=_WARMUP.value
        )
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    machine, versions = (report["provenance"][key] for key in ("machine", "versions"))
    print(
        f"{machine['cpu']}, {report['cores_used']} cores used, load "
        f"{report['load_average']:.1f}; {machine['devices']}; "
        f"jax {versions['jax']}, optax {versions['optax']}; {report['rounds']} rounds"
    )
    if _JSON.value:
        path = pathlib.Path(_JSON.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
