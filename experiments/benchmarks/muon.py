"""What a step of Muon costs, against Optax's Muon and against its own products.

    python -m experiments.benchmarks.muon --threads=1 --json=muon.json

No model is involved: the fixed gradients and trees of `step_time`, and the same step.
All contenders run in rounds of random order. The floor of ours is the FLOPs of the
iteration at the speed of products of the same shapes and dtype, (m, m) by (m, n) for
the matrices of each stack, measured in the same rounds.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
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
from experiments.benchmarks.update_step import UpdateStep
from experiments.provenance import provenance
from experiments.tables import markdown_table
from optim_jax.linalg import MUON_COEFFICIENTS
from optim_jax.linalg.batching import one_by_one_on_cpu
from optim_jax.linalg.newton_schulz import newton_schulz

PEER = "optax_muon"
# Ours, with the dtype of the products.
DTYPES = {"muon": "float32", "muon_bfloat16": "bfloat16"}
NAMES = ("adamw", PEER, *DTYPES)
LIMITS = {"muon": 0.75, "muon_bfloat16": 0.45}
_STEPS = (MUON_COEFFICIENTS,) * 5
# Without one of these a CPU multiplies bfloat16 no faster than float32.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")


@dataclasses.dataclass(frozen=True)
class Stack:
    """Matrices of one shape; m <= n."""

    count: int
    m: int
    n: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """All rounds of one tree.

    Attributes:
      seconds: contender to the seconds of its steps, a round each.
      floors: ours to the least seconds that its products need.
      flops: ours to the FLOPs of its iteration.
      temporary: contender to its temporary bytes per parameter.
      stacks: the hidden matrices.
      parameters: size of the tree.
    """

    seconds: dict[str, np.ndarray]
    floors: dict[str, float]
    flops: dict[str, float]
    temporary: dict[str, float]
    stacks: tuple[Stack, ...]
    parameters: int


def stacks_of(tree: TreeShape) -> tuple[Stack, ...]:
    """The hidden matrices of a tree by shape, tall ones turned over."""
    params, axes = make_params(tree), matrix_axes(tree)
    leaves, structure = jax.tree.flatten(params)
    counts = collections.Counter(
        tuple(sorted(leaf.shape))
        for leaf, of_leaf in zip(leaves, structure.flatten_up_to(axes), strict=True)
        if of_leaf.kind == "hidden"
    )
    return tuple(Stack(count, m, n) for (m, n), count in sorted(counts.items()))


def iteration_flops(stack: Stack, dtype: str) -> float:
    """FLOPs of five Newton-Schulz steps on all matrices of a stack."""
    shape = jax.ShapeDtypeStruct((stack.m, stack.n), jnp.float32)
    lowered = jax.jit(lambda x: newton_schulz(x, _STEPS, dtype=dtype)).lower(shape)
    return stack.count * float(lowered.cost_analysis()["flops"])


class Products:
    """One product (m, m) by (m, n) for each matrix of a stack."""

    def __init__(self, stack: Stack, dtype: str):
        self.flops = 2.0 * stack.count * stack.m * stack.m * stack.n
        self._stack = jnp.ones((stack.count, stack.m, stack.n), dtype)
        left = jnp.ones((stack.m, stack.m), dtype)

        def product(x: jax.Array) -> jax.Array:
            return jnp.matmul(
                left, x, precision="highest", preferred_element_type=jnp.float32
            )

        jitted = jax.jit(lambda stack: one_by_one_on_cpu(product, stack))
        self._run = jitted.lower(self._stack).compile()

    def run(self) -> jax.Array:
        """Multiplies once."""
        return self._run(self._stack)


def measure(tree: TreeShape, *, rounds: int, warmup: int = 3) -> Measured:
    """Times the contenders and the products of ours, interleaved, on one tree."""
    params, grads, axes = make_params(tree), make_grads(tree), matrix_axes(tree)
    stacks = stacks_of(tree)
    steps = {
        name: UpdateStep(CONTENDERS[name].build(axes), params, grads) for name in NAMES
    }
    products = {
        (name, stack): Products(stack, dtype)
        for name, dtype in DTYPES.items()
        for stack in stacks
    }
    runs: dict[Any, Any] = {name: step.step for name, step in steps.items()}
    runs |= {key: product.run for key, product in products.items()}
    seconds = interleave(runs, rounds=rounds, warmup=warmup)
    floors, flops = dict.fromkeys(DTYPES, 0.0), dict.fromkeys(DTYPES, 0.0)
    for (name, stack), product in products.items():
        needed = iteration_flops(stack, DTYPES[name])
        rate = product.flops / float(seconds[name, stack].min())
        flops[name] += needed
        floors[name] += needed / rate
    return Measured(
        seconds={name: seconds[name] for name in NAMES},
        floors=floors,
        flops=flops,
        temporary={name: step.memory().temporary for name, step in steps.items()},
        stacks=stacks,
        parameters=parameter_count(params),
    )


def bfloat16_instructions() -> list[str]:
    """What this CPU has for products of bfloat16 matrices."""
    try:
        words = set(pathlib.Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return [name for name in _INSTRUCTIONS if name in words]


def judge(measured: Measured, instructions: Sequence[str]) -> list[dict[str, Any]]:
    """Every bar with its figure; that of bfloat16 only where it can be fast."""
    bars = []
    for name, limit in LIMITS.items():
        if DTYPES[name] == "bfloat16" and not instructions:
            continue
        figure = ratio(measured.seconds[name], measured.seconds[PEER]).median
        bars.append(
            {
                "name": f"{name} step / {PEER} step",
                "figure": figure,
                "limit": limit,
                "met": figure <= limit,
            }
        )
    return bars


def _row(measured: Measured, name: str) -> dict[str, Any]:
    seconds, floor = measured.seconds[name], measured.floors.get(name)
    return {
        "name": name,
        "step_ms": 1e3 * float(np.median(seconds)),
        "step_min_ms": 1e3 * float(seconds.min()),
        "ratio": dataclasses.asdict(ratio(seconds, measured.seconds[PEER])),
        "adamw_ratio": dataclasses.asdict(ratio(seconds, measured.seconds["adamw"])),
        "temporary_bytes_per_parameter": measured.temporary[name],
        "gflops": None if floor is None else 1e-9 * measured.flops[name],
        "floor_ms": None if floor is None else 1e3 * floor,
        "min_over_floor": None if floor is None else float(seconds.min()) / floor,
    }


def summarize(measured: Measured, instructions: Sequence[str]) -> dict[str, Any]:
    """Turns the rounds of one tree into rows and judged bars, ready for JSON."""
    return {
        "parameters": measured.parameters,
        "stacks": [dataclasses.asdict(stack) for stack in measured.stacks],
        "rows": [_row(measured, name) for name in measured.seconds],
        "bars": judge(measured, instructions),
    }


def format_summary(size: str, summary: Mapping[str, Any]) -> str:
    """The table and the bars of one tree as text."""
    header = ["transformation", "step ms", f"x {PEER} [quartiles]", "of minima"]
    header += ["x adamw", "temp B", "GFLOP", "floor ms", "min x floor"]
    table = []
    for row in summary["rows"]:
        quartiles = "{median:.3f} [{lower_quartile:.3f}, {upper_quartile:.3f}]"
        known = row["floor_ms"] is not None
        table.append(
            [
                row["name"],
                row["step_ms"],
                quartiles.format(**row["ratio"]),
                f"{row['ratio']['minimum']:.3f}",
                f"{row['adamw_ratio']['median']:.1f}",
                f"{row['temporary_bytes_per_parameter']:.2f}",
                f"{row['gflops']:.2f}" if known else "",
                f"{row['floor_ms']:.1f}" if known else "",
                f"{row['min_over_floor']:.2f}" if known else "",
            ]
        )
    stacks = ", ".join(
        f"{s['count']} of {s['m']} x {s['n']}" for s in summary["stacks"]
    )
    title = f"{size}: {summary['parameters']:,} parameters; hidden matrices: {stacks}"
    bars = [
        f"{'met    ' if bar['met'] else 'NOT met'}  {bar['name']}: "
        f"{bar['figure']:.3f} <= {bar['limit']}"
        for bar in summary["bars"]
    ]
    return "\n".join([title, "", markdown_table(header, table), "", *bars])


def run(sizes: Sequence[str], *, rounds: int, warmup: int = 3) -> dict[str, Any]:
    """Measures every tree, prints a table for each and returns all figures."""
    unknown = sorted(set(sizes) - set(TREES))
    if unknown or not sizes:
        raise ValueError(
            f"sizes must be among {', '.join(TREES)}, got {', '.join(unknown) or '[]'}"
        )
    instructions = bfloat16_instructions()
    report: dict[str, Any] = {"provenance": provenance(), "sizes": {}}
    for size in sizes:
        measured = measure(TREES[size], rounds=rounds, warmup=warmup)
        report["sizes"][size] = summary = summarize(measured, instructions)
        print(format_summary(size, summary) + "\n", flush=True)
    return report | {
        "rounds": rounds,
        "bfloat16_instructions": instructions,
        "cores_used": len(os.sched_getaffinity(0)),
        # Above cores_used, other processes wanted the same cores.
        "load_average": os.getloadavg()[0],
    }


def main(_: Sequence[str]) -> None:
    """Runs the benchmark from the command line."""
    try:
        if flags.FLAGS.threads:
            restrict_threads(flags.FLAGS.threads)
        report = run(flags.FLAGS.sizes, rounds=flags.FLAGS.rounds)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    instructions = ", ".join(report["bfloat16_instructions"]) or "none"
    print(
        f"{report['provenance']['machine']['cpu']}, {report['cores_used']} cores used, "
        f"load {report['load_average']:.1f}; for bfloat16: {instructions}; "
        f"{report['rounds']} rounds"
    )
    if flags.FLAGS.json:
        path = pathlib.Path(flags.FLAGS.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    flags.DEFINE_list("sizes", ["5M"], f"Trees among {', '.join(TREES)}.")
    flags.DEFINE_integer("rounds", 30, "Timed rounds.", lower_bound=1)
    flags.DEFINE_integer("threads", 0, "Cores to bind to; 0: all of them.")
    flags.DEFINE_string("json", "", "File to write all figures to.")
    app.run(main)
