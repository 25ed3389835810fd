"""What the command line of a benchmark does besides measuring."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from absl import app

from experiments.benchmarks.interleaved import restrict_threads


def measure_and_store(
    measure: Callable[[], dict[str, Any]], *, threads: int, path: str
) -> None:
    """Runs a benchmark, says what it ran on and writes its figures.

    Args:
      measure: returns figures with `provenance`, `cores_used`, `load_average` and
        `rounds`, JSON-able.
      threads: cores to bind to; 0 for all of them.
      path: file to write; empty for none.

    Raises:
      app.UsageError: the benchmark refuses what was asked for.
    """
    try:
        if threads:
            restrict_threads(threads)
        report = measure()
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    print(
        f"{report['provenance']['machine']['cpu']}, {report['cores_used']} cores used, "
        f"load {report['load_average']:.1f}; {report['rounds']} rounds"
    )
    if path:
        file = pathlib.Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=2) + "\n")
