"""Many training runs in subprocesses: skips finished ones, resumes the others.

A run is a preset with overrides. It lives in a directory named by a hash of both, so
that the same request always finds its own results, whatever list it stands in.
"""

import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from experiments.reproduce.provenance import available_cores

TRAINER = (sys.executable, "-m", "experiments.train_llama")
SETTLED = ("finished", "target_reached", "diverged")  # nothing left to run
_EXIT_DIVERGED = 3
_CHECKOUT = pathlib.Path(__file__).resolve().parents[2]


class SweepError(RuntimeError):
    """A run failed, or the sweep was interrupted before its end."""


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


class InputFile(NamedTuple):
    """A file that a run reads: what it holds, not where it lies, tells runs apart."""

    path: pathlib.Path  # written before the run starts
    content: str

    def __str__(self) -> str:
        return str(self.path)


def _identity(value: Any) -> str:
    return value.content if isinstance(value, InputFile) else _text(value)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
      preset: name of a preset of the trainer.
      overrides: dotted config fields and their values; an `InputFile` for a field that
        names a file made for this run.
      label: for the progress line; not part of the identity.
    """

    preset: str
    overrides: Mapping[str, Any]
    label: str = ""

    @property
    def digest(self) -> str:
        """Short hash of preset and overrides, independent of their order."""
        fields = {name: _identity(value) for name, value in self.overrides.items()}
        text = json.dumps([self.preset, fields], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def flags(self) -> list[str]:
        """The trainer's arguments that ask for this run."""
        return [
            f"--preset={self.preset}",
            *(f"--config.{name}={_text(v)}" for name, v in self.overrides.items()),
        ]

    def write_inputs(self) -> None:
        """Writes the files that the run reads."""
        for value in self.overrides.values():
            if isinstance(value, InputFile):
                value.path.parent.mkdir(parents=True, exist_ok=True)
                value.path.write_text(value.content)


class Outcome(NamedTuple):
    """Where a run stands."""

    run: Run
    directory: pathlib.Path
    status: str  # of run_status.json; "new" without one

    def rows(self, metric: str) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl that hold a metric, in file order.

        The trainer writes null for a number that is not finite: read as `inf`.
        """
        path = self.directory / "metrics.jsonl"
        if not path.exists():
            return []
        rows = []
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # a last line cut off by a kill
            if metric in row:
                value = float("inf") if row[metric] is None else row[metric]
                rows.append(row | {metric: value})
        return rows

    def final(self, metric: str) -> float:
        """The last value of a metric; `inf` for a diverged run."""
        if self.status == "diverged":
            return float("inf")
        rows = self.rows(metric)
        if not rows:
            raise SweepError(f"no {metric} in {self.directory / 'metrics.jsonl'}")
        return float(rows[-1][metric])


def outcome_of(run: Run, root: pathlib.Path) -> Outcome:
    """Reads where a run stands from its directory."""
    directory = root / run.digest
    if not directory.exists():
        return Outcome(run, directory, "new")
    try:
        status = json.loads((directory / "run_status.json").read_text())["status"]
    except (OSError, ValueError, KeyError):
        status = "unknown"  # killed before it wrote one: resumed
    return Outcome(run, directory, status)


def thread_environments(parallel: int) -> list[dict[str, str]]:
    """Environments that share the cores of a CPU between runs, one per run at once.

    `NPROC` sizes XLA's CPU thread pools. With one thread each, two runs neither
    fight for cores nor pay for splitting small operations.
    """
    threads = max(1, available_cores() // parallel)
    return [{"NPROC": str(threads), "OMP_NUM_THREADS": str(threads)}] * parallel


def device_environments(parallel: int, visible: str | None) -> list[dict[str, str]]:
    """Environments that split `CUDA_VISIBLE_DEVICES` between runs at once.

    Args:
      parallel: runs at once; a single one takes all devices.
      visible: value of `CUDA_VISIBLE_DEVICES`, if set.

    Returns:
      One environment per run at once.

    Raises:
      ValueError: when there are fewer named devices than runs.
    """
    if parallel == 1:
        return [{}]
    devices = [name for name in (visible or "").split(",") if name]
    if len(devices) < parallel:
        raise ValueError(
            f"--parallel={parallel} on accelerators needs CUDA_VISIBLE_DEVICES with at "
            f"least {parallel} devices, got {visible!r}"
        )
    share = len(devices) // parallel
    return [
        {"CUDA_VISIBLE_DEVICES": ",".join(devices[slot * share : (slot + 1) * share])}
        for slot in range(parallel)
    ]


class _Active(NamedTuple):
    run: Run
    process: subprocess.Popen
    slot: int


class Sweep:
    """Runs lists of training runs under one root directory.

    Args:
      root: directory of the runs; logs go to `root/logs`.
      environments: one per run at once, added to the current environment.
      command: the trainer, without its flags.
    """

    def __init__(
        self,
        root: pathlib.Path,
        environments: Sequence[Mapping[str, str]],
        command: Sequence[str] = TRAINER,
    ):
        self._root = pathlib.Path(root).resolve()
        self._environments = list(environments)
        self._command = list(command)
        self._known: dict[str, Run] = {}
        self._active: list[_Active] = []
        self._stopping = False  # no new runs
        self._terminating = False  # running ones are asked to save and end
        self._asked: set[int] = set()  # process ids already asked

    def run(self, runs: Sequence[Run]) -> list[Outcome]:
        """Brings every run to its end; returns outcomes in the order asked for.

        Raises:
          SweepError: when a run fails (the others are let finish, no new ones are
            started) or the sweep is interrupted; the same call goes on later.
        """
        unique = {run.digest: run for run in runs}
        self._known |= unique
        waiting = [
            run
            for run in unique.values()
            if outcome_of(run, self._root).status not in SETTLED
        ]
        (self._root / "logs").mkdir(parents=True, exist_ok=True)
        progress = Progress(len(unique), len(unique) - len(waiting))
        failures = []
        with self._forwarding_signals():
            while self._active or (waiting and not failures and not self._stopping):
                if not failures and not self._stopping:
                    self._start(waiting)
                if self._terminating:
                    self._ask_to_end()
                failures += self._collect(progress)
                time.sleep(0.05)
        self.write_summary()
        outcomes = [outcome_of(run, self._root) for run in runs]
        self._require_settled(outcomes, failures)
        return outcomes

    def _start(self, waiting: list[Run]) -> None:
        taken = {active.slot for active in self._active}
        free = [s for s in range(len(self._environments)) if s not in taken]
        for slot in free[: len(waiting)]:
            run = waiting.pop(0)
            run.write_inputs()
            outcome = outcome_of(run, self._root)
            arguments = [*run.flags, f"--output_dir={outcome.directory}"]
            if outcome.status != "new":
                arguments.append("--resume")
            with open(self._log(run), "ab") as log:
                process = subprocess.Popen(
                    [*self._command, *arguments],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=_CHECKOUT,
                    env={**os.environ, **self._environments[slot]},
                )
            self._active.append(_Active(run, process, slot))

    def _ask_to_end(self) -> None:
        """SIGTERM to every run, once: a second one would end it without saving."""
        for active in self._active:
            if active.process.pid not in self._asked:
                self._asked.add(active.process.pid)
                active.process.send_signal(signal.SIGTERM)

    def _log(self, run: Run) -> pathlib.Path:
        return self._root / "logs" / f"{run.digest}.log"

    def _collect(self, progress: "Progress") -> list[str]:
        """Takes ended processes off the list; returns messages of failed ones."""
        failures = []
        for active in [a for a in self._active if a.process.poll() is not None]:
            self._active.remove(active)
            outcome = outcome_of(active.run, self._root)
            code = active.process.returncode
            if code not in (0, _EXIT_DIVERGED) and not self._stopping:
                tail = self._log(active.run).read_text(errors="replace").strip()
                failures.append(
                    f"run {active.run.digest} ({active.run.label}) ended with status "
                    f"{code}: {(tail.splitlines() or ['no output'])[-1]} "
                    f"[{self._log(active.run)}]"
                )
            progress.ended(outcome, len(self._active))
        return failures

    def _require_settled(
        self, outcomes: Sequence[Outcome], failures: Sequence[str]
    ) -> None:
        if failures:
            raise SweepError("; ".join(failures))
        open_ = [o.run.digest for o in outcomes if o.status not in SETTLED]
        if open_:
            raise SweepError(
                f"interrupted with {len(open_)} of {len(outcomes)} runs unfinished "
                f"({', '.join(open_[:3])}{', …' if len(open_) > 3 else ''}); the same "
                "command goes on"
            )

    @contextmanager
    def _forwarding_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT reach the runs, which save and end; none is started."""

        def forward(number, frame):
            del frame
            self._stopping = True
            # Ctrl-C in a terminal reaches the whole process group by itself.
            self._terminating |= number == signal.SIGTERM or not sys.stdin.isatty()

        previous = {
            number: signal.signal(number, forward)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def write_summary(self) -> pathlib.Path:
        """Writes `root/summary.csv`: one row per run asked for so far."""
        path = self._root / "summary.csv"
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["directory", "label", "status", "eval/loss", "preset", "overrides"]
            )
            for run in self._known.values():
                outcome = outcome_of(run, self._root)
                settled = outcome.status in SETTLED
                overrides = " ".join(
                    f"{k}={_text(v)}" for k, v in run.overrides.items()
                )
                writer.writerow(
                    [
                        run.digest,
                        run.label,
                        outcome.status,
                        outcome.final("eval/loss") if settled else "",
                        run.preset,
                        overrides,
                    ]
                )
        return path


class Progress:
    """One line that says how far a sweep is."""

    def __init__(self, total: int, done: int):
        self._total = total
        self._done = self._skipped = done
        self._diverged = 0
        self._started = time.monotonic()
        if total:
            self._print("skipped, already finished" if done else "starting", 0)

    def ended(self, outcome: Outcome, active: int) -> None:
        """Counts a run that ended and prints the line."""
        settled = outcome.status in SETTLED
        self._done += settled
        self._diverged += outcome.status == "diverged"
        text = f"{outcome.run.label} {outcome.status}"
        if settled and outcome.rows("eval/loss"):
            text += f" {outcome.final('eval/loss'):.4f}"
        self._print(text, active)

    def _print(self, text: str, active: int) -> None:
        fresh = self._done - self._skipped
        line = f"[{self._done}/{self._total}] {active} running"
        if self._diverged:
            line += f", {self._diverged} diverged"
        if fresh:
            pace = (time.monotonic() - self._started) / fresh
            line += f", {pace * (self._total - self._done) / 60:.0f} min left"
        line += f": {text}"
        if sys.stdout.isatty():
            print(f"\r{line:<100.100}", end="" if active else "\n", flush=True)
        else:
            print(line, flush=True)
