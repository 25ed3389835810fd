"""Metrics of a run as JSON lines, CSV and TensorBoard events.

* `metrics.jsonl`: one object per event, `{step, wall_s, tokens, split, name: value}`;
* `metrics.csv`: the same in long form, `step,wall_s,tokens,split,name,value`;
* `tensorboard/`: one scalar per name;
* `summary.csv`, `summary.json`: one row at the end of the run.

Names: `train/loss`, `train/grad_norm`, `train/update_norm`, `train/param_norm`,
`train/lr`, `train/batch_size`, `optim/*` (of the newest measurement:
`optim/noise_scale`, `optim/noise_sq`, `optim/signal_sq`,
`optim/noise_scale_saturated`; of a line search, which has no `train/lr`:
`optim/step_length`, `optim/sample_ratio`, `optim/recommended_batch`, `optim/pair` and
more), `eval/loss`, `perf/tokens_per_s` (or
`perf/samples_per_s`), `perf/step_ms`, `perf/mfu`. A non-finite value is null in JSON,
which has no other word for it, and `nan`, `inf` or `-inf` in CSV.
"""

import csv
import io
import json
import math
import pathlib
from collections.abc import Iterable

from absl import logging

from experiments.training.run_directory import write_json, write_text

_EVENT_FIELDS = ("step", "wall_s", "tokens", "split")
_CSV_HEADER = (*_EVENT_FIELDS, "name", "value")


class MetricsWriter:
    """Writes the events of one run; only process 0 should enable it."""

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        tensorboard: bool,
        resume_step: int | None = None,
        enabled: bool = True,
    ):
        """Opens the files.

        Args:
          directory: the run's folder; created if need be.
          tensorboard: whether to write TensorBoard events too.
          resume_step: the step that a continued run starts from. Later rows of the
            interrupted run are dropped, so that curves do not overlap. None starts
            at step 0; files of an earlier attempt are renamed, not lost.
          enabled: False makes every method do nothing.
        """
        self._enabled = enabled
        self._tensorboard = None
        if not enabled:
            return
        self._directory = pathlib.Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        jsonl = self._directory / "metrics.jsonl"
        table = self._directory / "metrics.csv"
        if resume_step is None:
            _set_aside(jsonl)
            _set_aside(table)
            rows = []
        else:
            rows = [row for row in _rows_of(jsonl) if row["step"] <= resume_step]
        write_text(jsonl, "".join(_json_line(row) for row in rows))
        write_text(table, _csv_text([_CSV_HEADER, *_csv_rows(rows)]))
        self._jsonl = open(jsonl, "a", encoding="utf-8")  # noqa: SIM115
        self._csv = open(table, "a", encoding="utf-8", newline="")  # noqa: SIM115
        if tensorboard:
            self._tensorboard = self._open_tensorboard(resume_step)

    def write(
        self,
        step: int,
        split: str,
        values: dict[str, float],
        *,
        wall_s: float,
        tokens: int,
    ) -> None:
        """Writes one event.

        Args:
          step: completed steps.
          split: `train`, `eval`, …
          values: by metric name.
          wall_s: seconds of the run so far, as the run counts them.
          tokens: trained on so far.
        """
        if not self._enabled:
            return
        for name in values:
            if name in _EVENT_FIELDS:
                raise ValueError(f"a metric cannot be called {name!r}")
        row = {
            "step": int(step),
            "wall_s": float(wall_s),
            "tokens": int(tokens),
            "split": split,
            **{name: float(value) for name, value in values.items()},
        }
        # Whole lines reach the system one by one: a killed run loses none of them.
        self._jsonl.write(_json_line(row))
        self._jsonl.flush()
        self._csv.write(_csv_text(_csv_rows([row])))
        self._csv.flush()
        if self._tensorboard is not None:
            for name in values:
                self._tensorboard.add_scalar(name, row[name], row["step"])

    def write_summary(self, row: dict) -> None:
        """Writes the one row that sums up the run, as CSV and as JSON."""
        if not self._enabled:
            return
        write_text(
            self._directory / "summary.csv", _csv_text([list(row), list(row.values())])
        )
        write_json(self._directory / "summary.json", _strict(row))

    def flush(self) -> None:
        """Hands everything to the system; TensorBoard events follow in seconds."""
        if not self._enabled:
            return
        self._jsonl.flush()
        self._csv.flush()
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Flushes and closes; a second call does nothing."""
        if not self._enabled:
            return
        self.flush()
        self._enabled = False
        self._jsonl.close()
        self._csv.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _open_tensorboard(self, resume_step: int | None):
        import tensorboardX  # here, because not every run wants it

        folder = self._directory / "tensorboard"
        # TensorBoard hides the older events from the purge step on, that included.
        purge_step, earlier = None, len(list(folder.glob("*")))
        if earlier:
            purge_step = 0 if resume_step is None else resume_step + 1
        # Its thread writes on its own time: a killed run loses the last seconds.
        return tensorboardX.SummaryWriter(
            str(folder),
            purge_step=purge_step,
            flush_secs=5,
            # File names hold the second only, and must not repeat.
            filename_suffix=f".{earlier}",
        )


def read_metrics(path: str | pathlib.Path) -> list[dict]:
    """Reads the events of a run.

    Args:
      path: a `metrics.jsonl`, or the run's folder.

    Returns:
      One dict per event; null has become NaN. A last line that is torn (the run was
      killed while writing it) is left out with a warning.

    Raises:
      ValueError: another line cannot be read; names file and line.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / "metrics.jsonl"
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_parse(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(
                    f"{path}, line {number}: not a row of metrics ({error})"
                ) from None
            logging.warning("%s: the last line is torn and left out.", path)
    return rows


def _rows_of(path: pathlib.Path) -> list[dict]:
    return read_metrics(path) if path.exists() else []


def _parse(line: str) -> dict:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not an object")
    missing = [name for name in _EVENT_FIELDS if name not in row]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    return {name: math.nan if v is None else v for name, v in row.items()}


def _strict(row: dict) -> dict:
    """The row without the numbers that JSON does not have."""
    return {
        name: None if isinstance(v, float) and not math.isfinite(v) else v
        for name, v in row.items()
    }


def _json_line(row: dict) -> str:
    return json.dumps(_strict(row), allow_nan=False) + "\n"


def _csv_rows(rows: Iterable[dict]) -> list[list]:
    return [
        [*(row[field] for field in _EVENT_FIELDS), name, value]
        for row in rows
        for name, value in row.items()
        if name not in _EVENT_FIELDS
    ]


def _csv_text(rows: Iterable[Iterable]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _set_aside(path: pathlib.Path) -> None:
    if path.exists() and path.stat().st_size:
        number = len(list(path.parent.glob(f"{path.stem}.before.*{path.suffix}")))
        path.rename(path.with_name(f"{path.stem}.before.{number}{path.suffix}"))
