"""Trains DLRM or DCN on clicks: `python -m experiments.train_dlrm --preset=dlrm_nano`.

`--mode` says what to do: `train`; `eval`, the metrics of a run's model, perhaps with
quantised tables; `predict`, probabilities for new samples; `preprocess`, Criteo text
into a folder of memory maps; `plan`, which device holds which table; `count`, what the
tables cost. With `--reference_args="--mini-batch-size=128 …"` the run is the one that
the original program would do. Exit status as of `experiments.train_llama`.
"""

import contextlib
import dataclasses
import pathlib
import shlex
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from experiments.click_config import ClickTrainConfig
from experiments.data.click_data import build_click_data, prepare_criteo
from experiments.data.click_inputs import read_samples
from experiments.flags import (
    config_from_flags,
    define_config_flags,
    define_distributed_flags,
    initialize_distributed,
    quiet_by_default,
)
from experiments.presets import DLRM, preset_by_name
from experiments.reference_flags import from_reference_args
from experiments.sharding.table_costs import table_costs
from experiments.sharding.table_plan import plan_tables, propose_compression
from experiments.training import prepare
from experiments.training.click_architecture import architecture
from experiments.training.click_inference import (
    evaluate,
    load_click_model,
    predict,
    quantize,
)
from experiments.training.host_memory import keep_freed_memory
from experiments.training.metrics import read_metrics

__all__ = ["ClickRunResult", "from_reference_args", "run"]

EXIT_REFUSED, EXIT_DIVERGED = 2, 3
MODES = ("train", "eval", "predict", "preprocess", "plan", "count")


class ClickRunResult(NamedTuple):
    """How a run ended.

    Attributes:
      status: finished | target_reached | preempted | diverged.
      step: updates applied.
      losses: of the training batches before their updates, one for each row of the log
        (`logging.every` steps).
      summary: the row of summary.json.
      message: one line for a person.
    """

    status: str
    step: int
    losses: list[float]
    summary: dict[str, Any]
    message: str


def run(
    config: ClickTrainConfig,
    output_dir: str | pathlib.Path | None = None,
    *,
    resume: bool = False,
) -> ClickRunResult:
    """Trains as configured.

    Args:
      config: the run.
      output_dir: its folder; None keeps nothing.
      resume: go on from the newest checkpoint in it.

    Raises:
      ValueError, OSError, ImportError: one sentence that names what to change.
    """
    with contextlib.ExitStack() as stack:
        if output_dir is None:
            output_dir = stack.enter_context(tempfile.TemporaryDirectory())
        result = prepare(config, output_dir, resume=resume).run()
        rows = read_metrics(output_dir)
    losses = [row["train/loss"] for row in rows if row["split"] == "train"]
    return ClickRunResult(
        result.status, result.step, losses, result.summary, result.message
    )


_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_PRESET = flags.DEFINE_string("preset", "dlrm_nano", f"One of: {', '.join(DLRM)}.")
_REFERENCE = flags.DEFINE_string(
    "reference_args", "", "Arguments of the original program, in place of a preset."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder of the run.")
_RESUME = flags.DEFINE_bool(
    "resume", False, "Go on from the newest checkpoint in --output_dir."
)
_WHICH = flags.DEFINE_enum(
    "which", "best", ("best", "latest"), "eval, predict: which checkpoint."
)
_TABLE_BITS = flags.DEFINE_enum(
    "table_bits", "32", ("32", "8", "4"), "eval, predict: quantise the tables' rows."
)
_PERCEPTRON_DTYPE = flags.DEFINE_enum(
    "perceptron_dtype",
    "float32",
    ("float32", "float16", "bfloat16"),
    "eval, predict: round the perceptrons.",
)
_INPUT = flags.DEFINE_string(
    "input", "", "predict: .npz with dense and ids, or Criteo text without labels."
)
_PREDICTIONS = flags.DEFINE_string(
    "predictions", "predictions.npy", "predict: where to put the probabilities."
)
_DEVICES = flags.DEFINE_integer("devices", 8, "plan: number of devices.")
_BYTE_BUDGET = flags.DEFINE_integer(
    "byte_budget", 16 * 2**30, "plan: bytes of a device for tables and their state."
)
_COMPRESS = flags.DEFINE_bool(
    "compress", False, "plan: compress the tables until they fit."
)
define_config_flags(ClickTrainConfig)
define_distributed_flags()


def _request(argv: list[str]) -> ClickTrainConfig:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}; flags start with --")
    if _REFERENCE.value:
        base = from_reference_args(shlex.split(_REFERENCE.value))
    else:
        base = preset_by_name(_PRESET.value, DLRM)
    return config_from_flags(base, flags.FLAGS)


def _require_output_dir() -> str:
    if not _OUTPUT_DIR.value:
        raise ValueError(f"--mode={_MODE.value} needs --output_dir, the run's folder")
    return _OUTPUT_DIR.value


def _shape(config: ClickTrainConfig) -> Any:
    """The model's config for the data of a run."""
    data = build_click_data(
        config.data,
        rows=config.batch.micro_size,
        evaluation_rows=config.batch.micro_size,
        evaluation_batches=1,
        seed=config.seed,
    )
    return architecture(config.model, data.rules)


def _evaluate() -> Iterator[str]:
    trained = load_click_model(_require_output_dir(), which=_WHICH.value)
    plain = evaluate(trained)
    yield f"step {trained.step}, full precision: {_shown(plain)}"
    bits, dtype = int(_TABLE_BITS.value), _PERCEPTRON_DTYPE.value
    if bits < 32 or dtype != "float32":
        small = quantize(trained.params, table_bits=bits, perceptron_dtype=dtype)
        rounded = evaluate(trained, small.params)
        yield f"tables of {bits} bits, perceptrons {dtype}: {_shown(rounded)}"
        yield (
            f"{small.bytes_before:,} bytes became {small.bytes_after:,}; the loss "
            f"changed by {rounded['loss'] - plain['loss']:+.6f}, the AUC by "
            f"{rounded['auc'] - plain['auc']:+.6f}"
        )


def _shown(metrics: dict[str, float]) -> str:
    names = ("loss", "normalized_entropy", "accuracy", "auc", "calibration")
    return ", ".join(f"{name} {metrics[name]:.6f}" for name in names)


def _predict() -> Iterator[str]:
    if not _INPUT.value:
        raise ValueError("--mode=predict needs --input")
    trained = load_click_model(_require_output_dir(), which=_WHICH.value)
    small = quantize(
        trained.params,
        table_bits=int(_TABLE_BITS.value),
        perceptron_dtype=_PERCEPTRON_DTYPE.value,
    )
    trained = dataclasses.replace(trained, params=small.params)
    config = trained.setup.config
    batches = read_samples(
        _INPUT.value, config.data, trained.setup.data.rules, config.batch.size
    )
    found = [*predict(trained, batches)]
    p = np.concatenate(found) if found else np.zeros(0, np.float32)
    path = pathlib.Path(_PREDICTIONS.value)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        np.save(file, p, allow_pickle=False)
    partial.replace(path)
    yield f"{len(p):,} probabilities, mean {p.mean():.6f}: {path}"


def _plan(config: ClickTrainConfig) -> Iterator[str]:
    shape, rule = _shape(config), config.tables.rule
    arguments = (shape, _DEVICES.value, _BYTE_BUDGET.value)
    if _COMPRESS.value:
        shape, plan = propose_compression(*arguments, rule=rule)
        changed = [t.collisions for t in shape.tables if t.built_method == "qr"]
        if changed:
            yield f"quotient-remainder tables with collisions={changed[0]}"
    else:
        plan = plan_tables(*arguments, rule=rule)
    yield str(plan)


def _work(config: ClickTrainConfig) -> Iterator[str]:
    """Lines for a person, as the work goes on; not for training."""
    if _MODE.value == "eval":
        yield from _evaluate()
    elif _MODE.value == "predict":
        yield from _predict()
    elif _MODE.value == "preprocess":
        prepared = prepare_criteo(config.data)
        rows, tables = prepared.manifest["rows"], sum(prepared.counts)
        yield f"{rows:,} rows, {tables:,} ids in 26 tables: {prepared.folder}"
    elif _MODE.value == "plan":
        yield from _plan(config)
    else:
        yield str(table_costs(_shape(config), rule=config.tables.rule))


def main(argv: list[str]) -> None:
    """Flags to configuration to work."""
    quiet_by_default(flags.FLAGS)
    keep_freed_memory()
    try:
        config = _request(argv)
        initialize_distributed(flags.FLAGS)
        if _MODE.value != "train":
            for line in _work(config):
                print(line)
            return
        prepared = prepare(config, _require_output_dir(), resume=_RESUME.value)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)
    result = prepared.run()
    print(result.message)
    if result.status == "diverged":
        sys.exit(EXIT_DIVERGED)


if __name__ == "__main__":
    app.run(main)
