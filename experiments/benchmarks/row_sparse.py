"""What a step on an embedding table costs: by rows, against dense, and fused.

    python -m experiments.benchmarks.row_sparse --threads=1 --json=row_sparse.json

Three questions, each answered in rounds of random order:

* growth: the same batches on tables of 10^4, 10^6 and 10^7 rows. The popular rows are
  the same in number and only lie further apart, so what grows is the time to reach
  them in memory, a page of its own each; beside it, a bare addition to the same rows.
  (With glibc, `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` asks for larger pages.)
* densified: the sparse step against `jax.grad` with respect to the table and
  `optax.adagrad`, on 10^6 rows.
* fused: the update of 26 tables in one buffer, against the same rule on rows found by
  `jnp.unique`, and against a bare addition that does not coalesce.

Where not said otherwise, a step is a lookup, the gradient of a loss with respect to
the looked-up rows, and row-wise Adagrad in place. Steps of a tenth of a millisecond
show their neighbours on a shared machine, so the bars compare minima.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from experiments.benchmarks.command_line import measure_and_store
from experiments.benchmarks.interleaved import interleave, ratio
from experiments.provenance import provenance
from experiments.tables import markdown_table
from optim_jax.row_sparse import (
    RowRule,
    lookup,
    sparse_row_wise_adagrad,
    sparse_update,
    unique_rows,
    update_unique_rows,
)

WIDTH = 16
BATCH = 2048
GROWTH_ROWS = (10_000, 1_000_000, 10_000_000)
DENSIFIED_ROWS = 1_000_000
FUSED_TABLES = 26
FUSED_ROWS = 200_000  # of each table
GROWTH_LIMIT = 1.3
SPEEDUP_LIMIT = 20.0
_POPULAR = 10_000
_ZIPF = 1.05
_BATCHES = 8
# Allowed beside ten times the looked-up rows: hash table and index vectors.
_TEMPORARY_CONSTANT = 2**16
_LR = 0.01


def zipf_ranks(
    rng: np.random.Generator, size: int, length: int, exponent: float = _ZIPF
) -> np.ndarray:
    """Draws popularity ranks in [0, size) with probability ~ 1 / (rank + 1)^exponent.

    Args:
      rng: source of the draws.
      size: number of ranks.
      length: number of draws.
      exponent: of the power law.
    """
    weights = np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -exponent)
    return np.searchsorted(weights / weights[-1], rng.random(length)).clip(0, size - 1)


def spread_batches(rows: int, length: int, seed: int = 0) -> list[np.ndarray]:
    """Batches of ids that differ between tables only in where the rows lie."""
    rng = np.random.default_rng(seed)
    ranks = [zipf_ranks(rng, _POPULAR, length) for _ in range(_BATCHES)]
    places = np.random.default_rng(seed + 1).choice(rows, size=_POPULAR, replace=False)
    return [places[rank].astype(np.int32) for rank in ranks]


def fused_batches(tables: int, rows: int, batch: int, seed: int = 0) -> list[Any]:
    """Batches with one id per table and sample, the tables stacked along the rows."""
    rng = np.random.default_rng(seed)
    places = [rng.permutation(rows) + table * rows for table in range(tables)]
    return [
        np.stack(
            [of_table[zipf_ranks(rng, rows, batch)] for of_table in places], axis=1
        )
        .reshape(-1)
        .astype(np.int32)
        for _ in range(_BATCHES)
    ]


class Stepper:
    """A compiled `(held, ids, values) -> held` with `held` donated, and what it holds.

    Attributes:
      temporary: bytes that the compiled step allocates for itself.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        held: Any,
        batches: Sequence[np.ndarray],
        values: jax.Array,
        steps_per_run: int = 1,
    ):
        self._held = held
        self._values = values
        self._batches = itertools.cycle([jnp.asarray(ids) for ids in batches])
        self._steps = steps_per_run
        jitted = jax.jit(step, donate_argnums=0)
        self._step = jitted.lower(held, next(self._batches), values).compile()
        self.temporary = int(self._step.memory_analysis().temp_size_in_bytes)

    def run(self) -> Any:
        """Takes `steps_per_run` steps, each on the next batch."""
        for _ in range(self._steps):
            held, self._held = self._held, None
            self._held = self._step(held, next(self._batches), self._values)
        return self._held


def _loss(rows: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(jnp.sum(rows, axis=1) - targets))


def _table(rows: int) -> jax.Array:
    return jnp.full((rows, WIDTH), 0.01)


def sparse_step(rule: RowRule) -> Callable[..., Any]:
    """The step that never forms the gradient of a table."""

    def step(held: Any, ids: jax.Array, targets: jax.Array) -> Any:
        table, state = held
        gradient = jax.grad(_loss)(lookup(table, ids), targets)
        return sparse_update(rule, table, state, ids, gradient)

    return step


def densified_step(optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """The step that differentiates with respect to the table."""

    def step(held: Any, ids: jax.Array, targets: jax.Array) -> Any:
        table, state = held
        gradient = jax.grad(lambda table: _loss(table[ids], targets))(table)
        updates, state = optimizer.update(gradient, state, table)
        return optax.apply_updates(table, updates), state

    return step


def bare_addition(held: Any, ids: jax.Array, values: jax.Array) -> Any:
    """Adds to the rows and does nothing else."""
    return (held[0].at[ids].add(values),)


def update_by_unique(
    rule: RowRule, find: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
) -> Callable[..., Any]:
    """The update of distinct rows, found by `find`, from ids to rows and inverse."""

    def step(held: Any, ids: jax.Array, values: jax.Array) -> Any:
        rows, inverse = find(ids)
        sums = jnp.zeros_like(values).at[inverse].add(values, mode="drop")
        return update_unique_rows(rule, *held, rows, sums)

    return step


def measure_growth(
    sizes: Sequence[int], *, batch: int, rounds: int
) -> tuple[dict[Any, np.ndarray], dict[int, int]]:
    """Seconds by ("step" or "addition", rows), and temporary bytes by rows."""
    rule, targets = sparse_row_wise_adagrad(_LR), jnp.ones((batch,))
    steppers: dict[Any, Stepper] = {}
    for rows in sizes:
        batches, table = spread_batches(rows, batch), _table(rows)
        held = (table, rule.init(table))
        steppers["step", rows] = Stepper(
            sparse_step(rule), held, batches, targets, len(batches)
        )
        steppers["addition", rows] = Stepper(
            bare_addition,
            (_table(rows),),
            batches,
            jnp.ones((batch, WIDTH)),
            len(batches),
        )
    runs = {key: stepper.run for key, stepper in steppers.items()}
    seconds = interleave(runs, rounds=rounds)
    temporary = {rows: steppers["step", rows].temporary for rows in sizes}
    return {key: s / _BATCHES for key, s in seconds.items()}, temporary


def measure_densified(rows: int, *, batch: int, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of the sparse and of the densified step."""
    rule, dense = sparse_row_wise_adagrad(_LR), optax.adagrad(_LR)
    batches, targets = spread_batches(rows, batch), jnp.ones((batch,))
    one, other = _table(rows), _table(rows)
    steppers = {
        # One short step would mostly show what the long one leaves in the caches.
        "sparse": Stepper(
            sparse_step(rule), (one, rule.init(one)), batches, targets, len(batches)
        ),
        "densified": Stepper(
            densified_step(dense), (other, dense.init(other)), batches, targets
        ),
    }
    seconds = interleave({k: s.run for k, s in steppers.items()}, rounds=rounds)
    return seconds | {"sparse": seconds["sparse"] / len(batches)}


def measure_fused(
    tables: int, rows: int, *, batch: int, rounds: int
) -> dict[str, np.ndarray]:
    """Seconds of the update of fused tables, ways to find the rows beside it."""
    rule, total, length = sparse_row_wise_adagrad(_LR), tables * rows, tables * batch
    batches = fused_batches(tables, rows, batch)
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(length, WIDTH)), jnp.float32)

    def by_sort(ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = jnp.unique(ids, return_inverse=True, size=length, fill_value=total)
        return found[0] + jnp.arange(length) * (found[0] == total), found[1]

    steps = {
        "sparse_update": lambda held, *args: sparse_update(rule, *held, *args),
        "unique_rows": update_by_unique(
            rule, lambda ids: unique_rows(ids, total, length)
        ),
        "jnp.unique": update_by_unique(rule, by_sort),
        "bare addition": bare_addition,
    }
    runs = {}
    for name, step in steps.items():
        table = _table(total)
        bare = name == "bare addition"
        held = (table,) if bare else (table, rule.init(table))
        runs[name] = Stepper(step, held, batches, values).run
    return interleave(runs, rounds=rounds)


def judge(
    growth: Mapping[Any, np.ndarray],
    temporary: Mapping[int, int],
    densified: Mapping[str, np.ndarray],
    batch: int,
) -> list[dict[str, Any]]:
    """Every bar with its figure."""
    smallest, *larger = sorted(temporary)
    bars = []
    for rows in larger:
        figure = ratio(growth["step", rows], growth["step", smallest]).minimum
        name = f"step on {rows:,} rows / on {smallest:,} rows"
        bars.append((name, figure, GROWTH_LIMIT, figure <= GROWTH_LIMIT))
    allowed = 10 * batch * WIDTH * 4 + _TEMPORARY_CONSTANT
    for rows, figure in temporary.items():
        bars.append(
            (f"temporary bytes, {rows:,} rows", figure, allowed, figure < allowed)
        )
    speedup = ratio(densified["densified"], densified["sparse"]).minimum
    name = "densified step / sparse step, at least"
    bars.append((name, speedup, SPEEDUP_LIMIT, speedup >= SPEEDUP_LIMIT))
    keys = ("name", "figure", "limit", "met")
    return [dict(zip(keys, bar, strict=True)) for bar in bars]


def _rows(seconds: Mapping[Any, np.ndarray], reference: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": key if isinstance(key, str) else f"{key[0]}, {key[1]:,} rows",
            "ms": 1e3 * float(np.median(of_key)),
            "min_ms": 1e3 * float(of_key.min()),
            "ratio": dataclasses.asdict(ratio(of_key, seconds[reference])),
        }
        for key, of_key in seconds.items()
    ]


def _formatted(rows: Sequence[Mapping[str, Any]], reference: str) -> str:
    header = ["", "ms", "min ms", f"x {reference} [quartiles]", "of minima"]
    quartiles = "{median:.2f} [{lower_quartile:.2f}, {upper_quartile:.2f}]"
    table = [
        [
            row["name"],
            f"{row['ms']:.3f}",
            f"{row['min_ms']:.3f}",
            quartiles.format(**row["ratio"]),
            f"{row['ratio']['minimum']:.2f}",
        ]
        for row in rows
    ]
    return markdown_table(header, table)


def run(
    *,
    rounds: int,
    sizes: Sequence[int] = GROWTH_ROWS,
    densified_rows: int = DENSIFIED_ROWS,
    fused_rows: int = FUSED_ROWS,
    batch: int = BATCH,
) -> dict[str, Any]:
    """Measures all three, prints their tables and returns all figures."""
    smallest = min(sizes)
    growth, temporary = measure_growth(sizes, batch=batch, rounds=rounds)
    densified = measure_densified(densified_rows, batch=batch, rounds=rounds)
    fused = measure_fused(FUSED_TABLES, fused_rows, batch=batch, rounds=rounds)
    # Each kind of step against itself on the smallest table.
    by_kind = [
        row
        for kind in ("step", "addition")
        for row in _rows(
            {key: s for key, s in growth.items() if key[0] == kind}, (kind, smallest)
        )
    ]
    parts = {
        "growth": (by_kind, f"{smallest:,} rows"),
        "densified": (_rows(densified, "sparse"), "sparse"),
        "fused": (_rows(fused, "sparse_update"), "sparse_update"),
    }
    bars = judge(growth, temporary, densified, batch)
    for name, (rows, reference) in parts.items():
        print(f"{name}\n\n{_formatted(rows, reference)}\n", flush=True)
    for bar in bars:
        met = "met    " if bar["met"] else "NOT met"
        print(f"{met}  {bar['name']}: {bar['figure']:,.2f}, limit {bar['limit']:,}")
    return {
        "provenance": provenance(),
        "batch": batch,
        "width": WIDTH,
        "rounds": rounds,
        **{name: rows for name, (rows, _) in parts.items()},
        "temporary_bytes": {str(rows): size for rows, size in temporary.items()},
        "bars": bars,
        "cores_used": len(os.sched_getaffinity(0)),
        # Above cores_used, other processes wanted the same cores.
        "load_average": os.getloadavg()[0],
    }


def main(_: Sequence[str]) -> None:
    """Runs the benchmark from the command line."""
    measure_and_store(
        lambda: run(rounds=flags.FLAGS.rounds),
        threads=flags.FLAGS.threads,
        path=flags.FLAGS.json,
    )


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 50, "Timed rounds.", lower_bound=1)
    flags.DEFINE_integer("threads", 0, "Cores to bind to; 0: all of them.")
    flags.DEFINE_string("json", "", "File to write all figures to.")
    app.run(main)
