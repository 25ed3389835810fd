"""What a step of Shampoo and SOAP costs, and where the time goes.

    python -m experiments.benchmarks.preconditioning --threads=1

No model is involved: the fixed gradients and trees of `step_time`. A step without
refresh is timed in `external` mode and split into statistics and the rest; a refresh is
timed on its own; a step of period F costs one step and one F-th of a refresh. The
`staggered` mode is timed step by step against `cond`. All of it is compared with
`optax.adamw` in the same rounds, and with the time that the FLOPs of the plan take at
the speed of a 1024 x 1024 product measured in the same rounds.
"""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import optim_jax
from experiments.benchmarks.contenders import LEARNING_RATE
from experiments.benchmarks.interleaved import interleave, restrict_threads
from experiments.benchmarks.trees import TREES, TreeShape, make_grads, make_params
from experiments.benchmarks.update_step import UpdateStep
from experiments.provenance import provenance
from experiments.tables import markdown_table
from optim_jax.preconditioning.blocking import stack_blocks
from optim_jax.preconditioning.direction import accumulate, block_method, make_step

METHODS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "shampoo": optim_jax.shampoo,
    "soap": optim_jax.soap,
}
_STAGGERED_PERIOD = 10
_STAGGERED_PERIODS = 12


@dataclasses.dataclass(frozen=True)
class MethodFigures:
    """Seconds and bytes of one method on one tree; medians over the rounds.

    Attributes:
      step: a step without refresh.
      statistics: the statistics within it.
      refresh: one refresh of everything.
      floor: FLOPs of a step at the measured speed of a product.
      temporary: temporary bytes per parameter of a step without refresh.
      cond_max: slowest step of `cond` over two periods.
      staggered: seconds of the steps of `staggered`.
    """

    step: float
    statistics: float
    refresh: float
    floor: float
    temporary: float
    cond_max: float
    staggered: np.ndarray

    def mean(self, period: int) -> float:
        """Seconds per step when everything is refreshed every so many steps."""
        return self.step + self.refresh / period


class _Refresh:
    """Refreshes the state of an external step, in place."""

    def __init__(self, step: UpdateStep, plan: optim_jax.Plan):
        self._step = step
        refresh = jax.jit(
            lambda state: optim_jax.refresh_preconditioners(state, plan),
            donate_argnums=0,
        )
        self._refresh = refresh.lower(step.state).compile()

    def run(self) -> Any:
        self._step.state = self._refresh(self._step.state)
        return self._step.state


class _Statistics:
    """The statistics of a step alone, in place."""

    def __init__(self, plan: optim_jax.Plan, state: Any, grads: Any):
        layout, options = plan.layout, plan.layout.options
        method = block_method(options)
        self._buckets = jax.tree.map(jnp.copy, state.buckets)
        self._blocks = jax.jit(lambda leaves: stack_blocks(layout, leaves))(
            jax.tree.leaves(grads)
        )

        def run(buckets: Any, blocks: Any) -> Any:
            step = make_step(
                options, plan.hyperparameters, jnp.asarray(2), jnp.asarray(1)
            )
            ungrafted = dataclasses.replace(options, grafting=None)
            bare = type(method)(ungrafted)
            return {
                bucket.key: accumulate(
                    bare,
                    plan.hyperparameters,
                    bucket,
                    buckets[bucket.key],
                    (),
                    blocks[bucket.key],
                    step,
                    None,
                )[0]
                for bucket in layout.buckets
            }

        jitted = jax.jit(run, donate_argnums=0)
        self._run = jitted.lower(self._buckets, self._blocks).compile()

    def run(self) -> Any:
        self._buckets = self._run(self._buckets, self._blocks)
        return self._buckets


class _Product:
    """A product of square matrices, whose speed is the floor's."""

    flops = 2 * 1024**3

    def __init__(self) -> None:
        self._matrix = jnp.eye(1024, dtype=jnp.float32)
        product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
        self._product = product.lower(self._matrix).compile()

    def run(self) -> Any:
        return self._product(self._matrix)


def _step_by_step(step: UpdateStep, steps: int) -> np.ndarray:
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        jax.block_until_ready(step.step())
        seconds.append(time.perf_counter() - start)
    return np.array(seconds)


def measure(
    tree: TreeShape, *, rounds: int, block: int
) -> tuple[float, dict[str, MethodFigures], dict[str, optim_jax.Plan]]:
    """Measures every method on one tree.

    Args:
      tree: shapes of the parameters.
      rounds: of timing.
      block: `max_preconditioner_dim`.

    Returns:
      Seconds of an AdamW step, figures by method, and plans by method.
    """
    params, grads = make_params(tree), make_grads(tree)
    adamw = UpdateStep(optax.adamw(LEARNING_RATE, weight_decay=0.1), params, grads)
    product = _Product()
    figures, plans, adamw_seconds = {}, {}, []
    for name, factory in METHODS.items():

        def build(factory: Any = factory, **options: Any) -> UpdateStep:
            transformation = factory(
                LEARNING_RATE,
                weight_decay=0.1,
                max_preconditioner_dim=block,
                precondition_frequency=_STAGGERED_PERIOD,
                **options,
            )
            return UpdateStep(transformation, params, grads)

        external = build(refresh="external")
        scale = {
            "shampoo": optim_jax.scale_by_shampoo,
            "soap": optim_jax.scale_by_soap,
        }[name]
        plan = plans[name] = scale(
            max_preconditioner_dim=block,
            refresh="external",
            grafting="adam" if name == "shampoo" else None,
        ).plan(params)
        external.step()
        statistics = _Statistics(plan, external.state[0], grads)
        refresh = _Refresh(external, plan)
        seconds = interleave(
            {
                "adamw": adamw.step,
                "product": product.run,
                "step": external.step,
                "statistics": statistics.run,
                "refresh": refresh.run,
            },
            rounds=rounds,
        )
        adamw_seconds.append(np.median(seconds["adamw"]))
        rate = product.flops / float(np.median(seconds["product"]))
        temporary = external.memory().temporary
        del external, statistics, refresh
        cond = _step_by_step(build(), 2 * _STAGGERED_PERIOD)
        staggered = build(refresh="staggered")
        _step_by_step(staggered, _STAGGERED_PERIOD)
        figures[name] = MethodFigures(
            step=float(np.median(seconds["step"])),
            statistics=float(np.median(seconds["statistics"])),
            refresh=float(np.median(seconds["refresh"])),
            floor=plan.step_flops / rate,
            temporary=temporary,
            cond_max=float(cond.max()),
            staggered=_step_by_step(staggered, _STAGGERED_PERIOD * _STAGGERED_PERIODS),
        )
    return float(np.median(adamw_seconds)), figures, plans


def _staggered_ratio(figures: MethodFigures) -> float:
    seconds = figures.staggered
    return float(np.quantile(seconds, 0.99) / np.median(seconds))


def judge(adamw: float, figures: Mapping[str, MethodFigures]) -> list[dict[str, Any]]:
    """Every bar with its figure."""
    shampoo, soap = figures["shampoo"], figures["soap"]
    rows = [
        ("Shampoo, period 10 / adamw", shampoo.mean(10) / adamw, 40.0),
        ("Shampoo, period 100 / adamw", shampoo.mean(100) / adamw, 22.0),
        ("SOAP, period 10 / adamw", soap.mean(10) / adamw, 45.0),
    ]
    for name, of_method in figures.items():
        slowest = float(of_method.staggered.max()) / of_method.cond_max
        rows += [
            (f"{name}: temporary bytes per parameter", of_method.temporary, 9.0),
            (
                f"{name}: step without refresh / floor",
                of_method.step / of_method.floor,
                1.5,
            ),
            (f"{name}: staggered p99 / median", _staggered_ratio(of_method), 1.2),
            (f"{name}: staggered max / cond max", slowest, 1.0 / 3.0),
        ]
    return [
        {"name": name, "figure": figure, "limit": limit, "met": figure <= limit}
        for name, figure, limit in rows
    ]


def report_on(size: str, *, rounds: int, block: int) -> dict[str, Any]:
    """Measures one tree, prints the tables and returns all figures."""
    adamw, figures, plans = measure(TREES[size], rounds=rounds, block=block)
    print(f"{size}: an optax.adamw step takes {1e3 * adamw:.2f} ms\n")
    for name, plan in plans.items():
        print(f"{name}\n{plan}\n")
    header = ["method", "step ms", "statistics ms", "rest ms", "refresh ms", "floor ms"]
    header += ["step x adamw", "period 10", "period 100", "temp B"]
    rows = [
        [
            name,
            1e3 * f.step,
            1e3 * f.statistics,
            1e3 * (f.step - f.statistics),
            1e3 * f.refresh,
            1e3 * f.floor,
            f"{f.step / adamw:.1f}",
            f"{f.mean(10) / adamw:.1f}",
            f"{f.mean(100) / adamw:.1f}",
            f"{f.temporary:.2f}",
        ]
        for name, f in figures.items()
    ]
    bars = judge(adamw, figures)
    print(markdown_table(header, rows) + "\n")
    for bar in bars:
        met = "met    " if bar["met"] else "NOT met"
        print(f"{met}  {bar['name']}: {bar['figure']:.3f} <= {bar['limit']:.3f}")
    return {
        "provenance": provenance(),
        "size": size,
        "rounds": rounds,
        "block": block,
        "cores_used": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "adamw_ms": 1e3 * adamw,
        "methods": {
            name: {
                "step_ms": 1e3 * f.step,
                "statistics_ms": 1e3 * f.statistics,
                "refresh_ms": 1e3 * f.refresh,
                "floor_ms": 1e3 * f.floor,
                "temporary_bytes_per_parameter": f.temporary,
                "cond_max_ms": 1e3 * f.cond_max,
                "staggered_median_ms": 1e3 * float(np.median(f.staggered)),
                "staggered_max_ms": 1e3 * float(f.staggered.max()),
            }
            for name, f in figures.items()
        },
        "bars": bars,
    }


def main(_: Sequence[str]) -> None:
    """Runs the benchmark from the command line."""
    try:
        if flags.FLAGS.threads:
            restrict_threads(flags.FLAGS.threads)
        report = report_on(
            flags.FLAGS.size, rounds=flags.FLAGS.rounds, block=flags.FLAGS.block
        )
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    if flags.FLAGS.json:
        path = pathlib.Path(flags.FLAGS.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    flags.DEFINE_enum("size", "5M", sorted(TREES), "Which tree.")
    flags.DEFINE_integer("rounds", 15, "Timed rounds.", lower_bound=1)
    flags.DEFINE_integer("block", 1024, "Largest side of a block.", lower_bound=1)
    flags.DEFINE_integer("threads", 0, "Cores to bind to; 0: all of them.")
    flags.DEFINE_string("json", "", "File to write all figures to.")
    app.run(main)
