"""How fast Criteo's text is read on one core, and in how much memory.

    python -m experiments.benchmarks.criteo_reader --json=criteo_reader.json

The text is generated: lengths, missing fields and negative integers as in the published
files. Every reader passes over the same file in rounds of random order. The peers are a
loop over lines, which is what the original implementation does, and pyarrow's CSV
reader if it is installed, which leaves the ids as text. Memory is that of this process
while a file fifty times as long as the growth that is allowed is read.
"""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import app, flags

from experiments.benchmarks.command_line import measure_and_store
from experiments.benchmarks.interleaved import interleave, ratio
from experiments.data.criteo import (
    TextRows,
    Vocabulary,
    VocabularyConfig,
    stream_batches,
)
from experiments.data.criteo.parsing import NUM_DENSE, NUM_IDS
from experiments.data.criteo.text_files import read_blocks
from experiments.provenance import provenance
from experiments.tables import markdown_table

PEER = "line loop"
LEAST_LINES_PER_SECOND = 200_000
GROWTH_SHARE = 1 / 50  # of the file's size
_BATCH = 2048
# Shares of missing fields; the other id columns miss a thirtieth.
_MISSING_DENSE = (0.45, 0, 0.2, 0.2, 0.03, 0.22, 0.04, 0, 0.04, 0.45, 0.04, 0.77, 0.2)
_OFTEN_MISSING_IDS = (18, 19, 21, 24, 25)


def make_lines(count: int, seed: int = 0) -> bytes:
    """Generates labelled text.

    Args:
      count: number of lines, >= 1.
      seed: of the draws.

    Returns:
      The lines, about 240 bytes each.
    """
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, 4, count) // 3]
    for missing in _MISSING_DENSE:
        values = rng.lognormal(2.0, 2.5, count).astype(np.int64)
        values[rng.random(count) < 0.05] = -1
        columns.append(_with_gaps(values.astype(str), missing, rng))
    for column in range(NUM_IDS):
        missing = 0.45 if column in _OFTEN_MISSING_IDS else 1 / 30
        ids = rng.integers(0, 1 << 32, count)
        columns.append(_with_gaps([f"{i:08x}" for i in ids.tolist()], missing, rng))
    rows = zip(*(np.asarray(column).tolist() for column in columns), strict=True)
    return "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()


def _with_gaps(
    values: Sequence[str] | np.ndarray, share: float, rng: np.random.Generator
) -> np.ndarray:
    return np.where(rng.random(len(values)) < share, "", values)


def read_line_by_line(path: str) -> int:
    """Reads a file in Python alone; returns the sum of all labels."""
    labels, dense, ids = [], [], []
    with open(path) as lines:
        for line in lines:
            fields = line.rstrip("\n").split("\t")
            labels.append(int(fields[0]))
            integers = fields[1 : 1 + NUM_DENSE]
            dense.append([int(field) if field else 0 for field in integers])
            raw = fields[1 + NUM_DENSE :]
            ids.append([int(field, 16) if field else 0 for field in raw])
            if len(labels) == _BATCH:
                np.array(dense), np.array(ids)
                dense, ids, labels = [], [], [sum(labels)]
    return sum(labels)


def read_by_blocks(path: str) -> int:
    """Reads a file with the parser of this project; returns the sum of all labels."""
    return sum(int(block.labels.sum()) for block in read_blocks(path))


def read_by_arrow(path: str) -> int:
    """Reads a file with pyarrow on one thread; returns the sum of all labels."""
    import pyarrow
    from pyarrow import csv

    names = [f"f{i}" for i in range(1 + NUM_DENSE + NUM_IDS)]
    kinds = [pyarrow.int64()] * (1 + NUM_DENSE) + [pyarrow.string()] * NUM_IDS
    reader = csv.open_csv(
        path,
        read_options=csv.ReadOptions(use_threads=False, column_names=names),
        parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=csv.ConvertOptions(
            column_types=dict(zip(names, kinds, strict=True))
        ),
    )
    return sum(int(batch.column(0).to_numpy().sum()) for batch in reader)


def _batches(path: str) -> Iterator[dict[str, np.ndarray]]:
    vocabulary = Vocabulary(VocabularyConfig("hash", hash_rows=1 << 20), ())
    source = TextRows([path], vocabulary)
    return stream_batches(source, batch_size=_BATCH, shuffle_rows=4 * _BATCH, epochs=1)


def read_to_batches(path: str) -> int:
    """Reads, hashes, shuffles and batches a file; returns the sum of all labels."""
    return sum(int(batch["labels"].sum()) for batch in _batches(path))


def readers() -> dict[str, Callable[[str], int]]:
    """All that can run here, by name."""
    found = {
        "blocks": read_by_blocks,
        "batches": read_to_batches,
        PEER: read_line_by_line,
    }
    try:
        import pyarrow.csv  # noqa: F401
    except ImportError:
        return found
    return found | {"pyarrow": read_by_arrow}


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_growth(short: str, long: str) -> dict[str, int]:
    """Growth of resident memory while a long file is read.

    Args:
      short: a file that is read before, so that buffers have their size.
      long: the file.

    Returns:
      `blocks` and `batches` to the largest growth in bytes.
    """
    growth = {}
    for name, read in (("blocks", read_blocks), ("batches", _batches)):
        before = max(resident_bytes() for _ in read(short))
        growth[name] = max(resident_bytes() for _ in read(long)) - before
    return growth


def judge(
    rates: dict[str, float], growth: dict[str, int], long_bytes: int
) -> list[dict[str, Any]]:
    """Every bar with its figure."""
    figures = [
        (
            "blocks, lines per second",
            rates["blocks"],
            ">=",
            float(LEAST_LINES_PER_SECOND),
        )
    ]
    for name, grown in growth.items():
        share = grown / long_bytes
        figures.append((f"{name}, growth / file size", share, "<=", GROWTH_SHARE))
    return [
        {
            "name": name,
            "figure": figure,
            "relation": relation,
            "limit": limit,
            "met": figure >= limit if relation == ">=" else figure <= limit,
        }
        for name, figure, relation, limit in figures
    ]


def run(*, lines: int, long_megabytes: int, rounds: int) -> dict[str, Any]:
    """Measures all readers and the memory, prints a table and returns the figures.

    Args:
      lines: lines of the timed file.
      long_megabytes: size of the file for the memory.
      rounds: timed rounds.

    Returns:
      The figures, JSON-able.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = make_lines(min(lines, 20_000))
        timed, short, long = (os.path.join(folder, name) for name in "tsl")
        copies = -(-lines // 20_000)
        _write(timed, text, copies)
        _write(short, text, -(-(8 << 20) // len(text)))
        _write(long, text, -(-(long_megabytes << 20) // len(text)))
        count = copies * text.count(b"\n")
        runs = {name: lambda read=read: read(timed) for name, read in readers().items()}
        sums = {name: once() for name, once in runs.items()}
        if len(set(sums.values())) != 1:
            raise ValueError(f"the readers disagree on the labels: {sums}")
        growth = memory_growth(short, long)
        long_bytes = os.path.getsize(long)
        seconds = interleave(runs, rounds=rounds, warmup=0)
    rates = {name: count / float(np.median(taken)) for name, taken in seconds.items()}
    report = {
        "provenance": provenance(),
        "lines": count,
        "bytes_per_line": len(text) / text.count(b"\n"),
        "rounds": rounds,
        "rows": [
            {
                "name": name,
                "lines_per_second": rates[name],
                "best_lines_per_second": count / float(taken.min()),
                "ratio": dataclasses.asdict(ratio(taken, seconds[PEER])),
            }
            for name, taken in seconds.items()
        ],
        "memory": {"file_bytes": long_bytes, "growth_bytes": growth},
        "bars": judge(rates, growth, long_bytes),
        "cores_used": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
    }
    print(format_report(report), flush=True)
    return report


def _write(path: str, text: bytes, copies: int) -> None:
    with open(path, "wb") as file:
        for _ in range(copies):
            file.write(text)


def format_report(report: dict[str, Any]) -> str:
    """The table and the bars as text."""
    header = ["reader", "lines / s", "best", f"time x {PEER} [quartiles]"]
    table = []
    for row in report["rows"]:
        quartiles = "{median:.3f} [{lower_quartile:.3f}, {upper_quartile:.3f}]"
        table.append(
            [
                row["name"],
                f"{row['lines_per_second']:,.0f}",
                f"{row['best_lines_per_second']:,.0f}",
                quartiles.format(**row["ratio"]),
            ]
        )
    title = f"{report['lines']:,} lines of {report['bytes_per_line']:.0f} bytes"
    bars = [
        f"{'met    ' if bar['met'] else 'NOT met'}  {bar['name']}: "
        f"{bar['figure']:,.4g} {bar['relation']} {bar['limit']:,.4g}"
        for bar in report["bars"]
    ]
    return "\n".join([title, "", markdown_table(header, table), "", *bars])


def main(_: Sequence[str]) -> None:
    """Runs the benchmark from the command line."""
    measure_and_store(
        lambda: run(
            lines=flags.FLAGS.lines,
            long_megabytes=flags.FLAGS.long_megabytes,
            rounds=flags.FLAGS.rounds,
        ),
        threads=flags.FLAGS.threads,
        path=flags.FLAGS.json,
    )


if __name__ == "__main__":
    flags.DEFINE_integer("lines", 100_000, "Lines of the timed file.", lower_bound=1)
    flags.DEFINE_integer(
        "long_megabytes", 400, "Size of the file for the memory.", lower_bound=1
    )
    flags.DEFINE_integer("rounds", 7, "Timed rounds.", lower_bound=1)
    flags.DEFINE_integer("threads", 1, "Cores to bind to; 0: all of them.")
    flags.DEFINE_string("json", "", "File to write all figures to.")
    flags.DEFINE_alias("output", "json")
    app.run(main)
