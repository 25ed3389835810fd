"""What a training step of DLRM costs: against its floor and against PyTorch.

    python -m experiments.benchmarks.dlrm_step --threads=1 --output=dlrm_step.json

The model has the shapes published for the Criteo display challenge (arXiv:1906.00091):
26 tables of width 16, perceptrons 13-512-256-64-16 and 512-256-1, batches of 2,048. The
tables have the challenge's numbers of rows, cut off at `--cap`, and are looked up with
power-law popularity. Tables learn by row-wise Adagrad, the rest by Adagrad.

The floor is the model's FLOPs at the speed of a product of its largest matrices, plus
the bytes that the step cannot avoid touching at the speed of a copy; both speeds are
measured in the same rounds. Where PyTorch is installed, the same model in PyTorch
(`torch_dlrm`) runs in the rounds too, from the same weights on the same batches. Freed
memory stays with the process (`experiments.training.host_memory`), for all contenders,
unless `--keep_memory=false`.
"""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.benchmarks import torch_dlrm
from experiments.benchmarks.interleaved import interleave, ratio, restrict_threads
from experiments.benchmarks.row_sparse import zipf_ranks
from experiments.provenance import provenance
from experiments.tables import markdown_table
from experiments.training.host_memory import keep_freed_memory
from experiments.training.sparse_step import SparseState, make_sparse_step
from models.dlrm import DLRMConfig, count_params, dlrm, make_batch
from models.embeddings import TableConfig
from optim_jax.row_sparse import dense_adagrad, sparse_row_wise_adagrad

# Distinct ids of the challenge's 26 columns.
ROWS = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
WIDTH, BOTTOM, TOP = 16, (13, 512, 256, 64, 16), (512, 256, 1)
RATE = 0.01
SPEEDUP = 1.5
UPDATE_MS = 8.0
_BATCHES = 8
_STEPS = 4  # of a timed run: threads of one library may still spin when it ends
_COPIED = 2**26  # numbers of the copy that measures the memory
PEER = "pytorch"


@dataclasses.dataclass(frozen=True)
class Measured:
    """All rounds of one configuration.

    Attributes:
      seconds: contender to the seconds of one step, product or copy, a round each.
      batch: samples of a step.
      flops: of a step.
      bytes: that a step cannot avoid touching.
      product_flops: of the product.
      copy_bytes: read and written by the copy.
      losses: contender to its losses in its first two steps.
    """

    seconds: dict[str, np.ndarray]
    batch: int
    flops: float
    bytes: float
    product_flops: float
    copy_bytes: float
    losses: dict[str, list[float]]


def kaggle_config(cap: int) -> DLRMConfig:
    """The model, no table larger than `cap` rows."""
    tables = tuple(TableConfig(min(rows, cap), WIDTH) for rows in ROWS)
    return DLRMConfig(tables, BOTTOM, TOP)


def draw_batches(config: DLRMConfig, size: int, seed: int = 0) -> list[dict[str, Any]]:
    """Batches of one id for each table and sample; popular ids lie anywhere."""
    rng = np.random.default_rng(seed)
    places = [rng.permutation(table.rows) for table in config.tables]
    return [
        make_batch(
            config,
            rng.random((size, config.bottom[0])),
            [of_table[zipf_ranks(rng, len(of_table), size)] for of_table in places],
            labels=rng.integers(0, 2, size),
        )
        for _ in range(_BATCHES)
    ]


def touched_bytes(config: DLRMConfig, batches: Sequence[Mapping[str, Any]]) -> float:
    """Bytes of a step: rows read, then read and written with their statistics.

    Every distinct row of a batch is counted once and every dense parameter with its
    accumulator and its gradient; activations may stay in the caches.
    """
    distinct = np.mean(
        [
            sum(len(np.unique(of_table)) for of_table in batch["ids"])
            for batch in batches
        ]
    )
    counts = count_params(config)
    dense = counts["bottom"] + counts["top"]
    return 4.0 * (distinct * (3 * WIDTH + 2) + 6 * dense)


class Ours:
    """The compiled step, and its two halves, on batches in turn."""

    def __init__(
        self, config: DLRMConfig, params: Any, batches: Sequence[Mapping[str, Any]]
    ):
        self._step = make_sparse_step(
            dlrm(config), dense_adagrad(RATE), sparse_row_wise_adagrad(RATE)
        )
        self._state = self._step.init(params)
        self._batches = itertools.cycle(batches)
        self._first = self._step.place(batches[0])
        self._gradients = jax.jit(self._step.gradients)
        self._sums = self.gradients()
        rows = self._step.init(params)
        self._rows = rows.params["rows"], rows.opt_state["rows"]
        self._update = jax.jit(self._apply, donate_argnums=0)

    def _apply(self, held: Any, rows: Any, weight: jax.Array) -> Any:
        state = SparseState({"rows": held[0]}, {"rows": held[1]})
        return self._step.apply_rows(self._step.row_rule, state, rows, weight)

    def step(self) -> jax.Array:
        """One step, the transfer of its batch included; the loss before it."""
        self._state, metrics = self._step.step(self._state, next(self._batches))
        return metrics["loss"]

    def gradients(self) -> Any:
        """Lookups, loss and all gradients, no update."""
        return self._gradients(self._state, self._first)

    def update(self) -> Any:
        """The update of the tables alone."""
        self._rows = self._update(self._rows, self._sums.rows, self._sums.weight)
        return self._rows


def _repeated(step: Callable[[], Any]) -> Callable[[], Any]:
    """Several steps in a row; the result of the last one."""

    def run() -> Any:
        for _ in range(_STEPS - 1):
            step()
        return step()

    return run


def measure(
    config: DLRMConfig, *, batch: int, rounds: int, threads: int, warmup: int = 2
) -> Measured:
    """Times the step, its parts, its floor and, if there is one, the peer."""
    batches = draw_batches(config, batch)
    params = jax.device_get(dlrm(config).init(jax.random.key(0)))
    ours = Ours(config, params, batches)
    losses = {"step": [float(ours.step()) for _ in range(2)]}
    wide = config.top_widths[:2]  # the largest matrix
    left, right = jnp.ones((batch, wide[0])), jnp.ones(wide)
    product = jax.jit(jnp.matmul).lower(left, right).compile()
    source, target = np.ones(_COPIED, np.float32), np.zeros(_COPIED, np.float32)
    runs = {
        "step": ours.step,
        "gradients": ours.gradients,
        "table update": ours.update,
        "product": lambda: product(left, right),
        "copy": lambda: np.copyto(target, source),
    }
    if torch_dlrm.IS_INSTALLED:
        peer = torch_dlrm.TorchDLRM(config, params, RATE, threads)
        turns = itertools.cycle([peer.place(one) for one in batches])
        losses[PEER] = [float(peer.step(next(turns))) for _ in range(2)]
        runs[PEER] = lambda: float(peer.step(next(turns)))
    seconds = interleave(
        {name: _repeated(run) for name, run in runs.items()},
        rounds=rounds,
        warmup=warmup,
    )
    return Measured(
        seconds={name: of_run / _STEPS for name, of_run in seconds.items()},
        batch=batch,
        flops=batch * dlrm(config).flops_per_example,
        bytes=touched_bytes(config, batches),
        product_flops=2.0 * batch * wide[0] * wide[1],
        copy_bytes=2.0 * source.nbytes,
        losses=losses,
    )


def judge(measured: Measured) -> list[dict[str, Any]]:
    """Every bar with its figure; that of the peer only where it ran."""
    seconds = measured.seconds
    update = 1e3 * float(np.median(seconds["table update"]))
    bars = [("table update, ms, at most", update, UPDATE_MS, update <= UPDATE_MS)]
    if PEER in seconds:
        speedup = ratio(seconds[PEER], seconds["step"]).median
        name = f"samples/s / {PEER}'s, at least"
        bars.append((name, speedup, SPEEDUP, speedup >= SPEEDUP))
    keys = ("name", "figure", "limit", "met")
    return [dict(zip(keys, bar, strict=True)) for bar in bars]


def summarize(measured: Measured) -> dict[str, Any]:
    """Rows, floor and judged bars, ready for JSON."""
    seconds = measured.seconds
    flop_rate = measured.product_flops / float(seconds["product"].min())
    byte_rate = measured.copy_bytes / float(seconds["copy"].min())
    of_flops, of_bytes = measured.flops / flop_rate, measured.bytes / byte_rate
    floor = of_flops + of_bytes
    rows = [
        {
            "name": name,
            "ms": 1e3 * float(np.median(of_run)),
            "min_ms": 1e3 * float(of_run.min()),
            "ratio": dataclasses.asdict(ratio(of_run, seconds["step"])),
            "samples_per_s": measured.batch / float(np.median(of_run))
            if name in ("step", PEER)
            else None,
        }
        for name, of_run in seconds.items()
    ]
    return {
        "rows": rows,
        "floor": {
            "ms": 1e3 * floor,
            "of_flops_ms": 1e3 * of_flops,
            "of_bytes_ms": 1e3 * of_bytes,
            "samples_per_s": measured.batch / floor,
            "gflops": 1e-9 * measured.flops,
            "gflops_per_s": 1e-9 * flop_rate,
            "megabytes": 1e-6 * measured.bytes,
            "gigabytes_per_s": 1e-9 * byte_rate,
        },
        "step_min_over_floor": float(seconds["step"].min()) / floor,
        "losses": measured.losses,
        "bars": judge(measured),
    }


def format_summary(summary: Mapping[str, Any]) -> str:
    """The table, the floor and the bars as text."""
    header = ["", "ms", "min ms", "x step [quartiles]", "of minima", "samples/s"]
    quartiles = "{median:.3f} [{lower_quartile:.3f}, {upper_quartile:.3f}]"
    table = [
        [
            row["name"],
            f"{row['ms']:.2f}",
            f"{row['min_ms']:.2f}",
            quartiles.format(**row["ratio"]),
            f"{row['ratio']['minimum']:.3f}",
            f"{row['samples_per_s']:,.0f}" if row["samples_per_s"] else "",
        ]
        for row in summary["rows"]
    ]
    floor = summary["floor"]
    table.append(
        ["floor", f"{floor['ms']:.2f}", "", "", "", f"{floor['samples_per_s']:,.0f}"]
    )
    bars = [
        f"{'met    ' if bar['met'] else 'NOT met'}  {bar['name']}: "
        f"{bar['figure']:.2f}, limit {bar['limit']}"
        for bar in summary["bars"]
    ]
    text = (
        "floor: {gflops:.2f} GFLOP at {gflops_per_s:.0f}/s, {megabytes:.1f} MB at "
        "{gigabytes_per_s:.1f} GB/s; step, minimum over floor: ".format(**floor)
    )
    text += f"{summary['step_min_over_floor']:.2f}"
    return "\n".join([markdown_table(header, table), "", text, "", *bars])


def run(
    *, cap: int, batch: int, rounds: int, threads: int, warmup: int = 2
) -> dict[str, Any]:
    """Measures, prints the table and returns all figures."""
    for name, value in (("cap", cap), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    config = kaggle_config(cap)
    measured = measure(
        config, batch=batch, rounds=rounds, threads=threads, warmup=warmup
    )
    summary = summarize(measured)
    print(format_summary(summary), flush=True)
    return {
        "provenance": provenance(),
        "cap": cap,
        "batch": batch,
        "rounds": rounds,
        "parameters": count_params(config),
        **summary,
        "cores_used": threads,
        # Above cores_used, other processes wanted the same cores.
        "load_average": os.getloadavg()[0],
    }


def main(_: Sequence[str]) -> None:
    """Runs the benchmark from the command line."""
    chosen = flags.FLAGS
    kept = chosen.keep_memory and keep_freed_memory()
    try:
        if chosen.threads:
            restrict_threads(chosen.threads)
        threads = len(os.sched_getaffinity(0))
        report = run(
            cap=chosen.cap, batch=chosen.batch, rounds=chosen.rounds, threads=threads
        )
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    report["keeps_freed_memory"] = kept
    print(
        f"{report['provenance']['machine']['cpu']}, {threads} cores used, load "
        f"{report['load_average']:.1f}; {report['rounds']} rounds of {_STEPS} steps; "
        f"freed memory {'kept' if kept else 'returned'}"
    )
    if chosen.output:
        path = pathlib.Path(chosen.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    flags.DEFINE_integer("cap", 200_000, "Most rows of a table.")
    flags.DEFINE_integer("batch", 2048, "Samples of a step.")
    flags.DEFINE_integer("rounds", 20, "Timed rounds.", lower_bound=1)
    flags.DEFINE_integer("threads", 0, "Cores to bind to; 0: all of them.")
    flags.DEFINE_bool("keep_memory", True, "Keep freed memory with the process.")
    flags.DEFINE_string("output", "", "File to write all figures to.")
    app.run(main)
