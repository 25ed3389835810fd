"""Measuring all arms of a comparison; finished ones are kept and not run again.

A configuration's numbers lie in a file named by a hash of all that decides them: the
tables, the training, the data, the commit and the versions. They are made in this
process, one configuration after another.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.provenance import git_commit, package_versions
from experiments.reproduce.claims import Options
from experiments.reproduce.embedding_arms import EmbeddingArm
from experiments.reproduce.embedding_protocol import OnePass, Trained
from experiments.reproduce.report import encode
from models.embeddings import TableConfig

Metrics = Mapping[str, float]  # of one seed
# the seeds to run -> metrics of each
Measure = Callable[[Sequence[int]], Sequence[Metrics]]


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One arm as it is run.

    Attributes:
      arm: the method.
      panel: name of the part of the comparison it belongs to.
      tables: its tables.
      params: parameters of tables and whole model.
      measure: trains and evaluates it.
      floor: the least loss that any such model can reach; None where none is known.
    """

    arm: EmbeddingArm
    panel: str
    tables: tuple[TableConfig, ...]
    params: Mapping[str, int]
    measure: Measure
    floor: float | None = None


class FinishedRuns:
    """Metrics of finished runs, by configuration and seed, in one folder."""

    def __init__(self, root: pathlib.Path, setting: Mapping[str, Any]):
        """Opens the folder, which need not exist.

        Args:
          root: where the files lie.
          setting: what all configurations share, JSON-able.
        """
        self._root = root
        self._setting = {
            **setting,
            "commit": git_commit(),
            "versions": package_versions(),
        }

    def _path(self, configuration: Configuration) -> pathlib.Path:
        identity = {
            "setting": self._setting,
            "panel": configuration.panel,
            "tables": [table.to_dict() for table in configuration.tables],
        }
        text = json.dumps(encode(identity), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        name = f"{configuration.panel}_{configuration.arm.name}_{digest}.json"
        return self._root / name

    def read(self, configuration: Configuration) -> dict[int, Metrics]:
        """Metrics by seed; empty where nothing has been run."""
        path = self._path(configuration)
        if not path.exists():
            return {}
        stored = json.loads(path.read_text())
        return {
            int(seed): {name: float(value) for name, value in metrics.items()}
            for seed, metrics in stored.items()
        }

    def write(self, configuration: Configuration, found: Mapping[int, Metrics]) -> None:
        """Replaces the metrics of a configuration."""
        path = self._path(configuration)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(encode(found), indent=1))
        os.replace(temporary, path)


def measured_entry(
    configuration: Configuration, finished: FinishedRuns, seeds: Sequence[int]
) -> dict[str, Any]:
    """The arm's entry in the document; runs the seeds that are missing.

    Args:
      configuration: what to run.
      finished: where metrics are looked up and kept.
      seeds: to report, in this order.

    Returns:
      A JSON-able dict; every metric is a list with one number per seed.
    """
    found = finished.read(configuration)
    missing = [seed for seed in seeds if seed not in found]
    if missing:
        found |= dict(zip(missing, configuration.measure(missing), strict=True))
        finished.write(configuration, found)
    arm = configuration.arm
    names = list(found[seeds[0]])
    return {
        "name": arm.name,
        "label": arm.label,
        "family": arm.family,
        "peer": arm.peer,
        "variation": arm.variation,
        "table_params": configuration.params["tables"],
        "params": configuration.params["total"],
        **({} if configuration.floor is None else {"floor": configuration.floor}),
        **{name: [found[seed][name] for seed in seeds] for name in names},
    }


def measure_all(
    configurations: Sequence[Configuration],
    options: Options,
    setting: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Entries of all configurations in their order; prints one line for each.

    Args:
      configurations: what to run.
      options: seeds and the folder of the runs.
      setting: what all configurations share, JSON-able.
    """
    finished = FinishedRuns(options.output_dir / options.run_name, setting)
    entries = []
    for number, configuration in enumerate(configurations, start=1):
        entry = measured_entry(configuration, finished, options.seeds)
        entries.append(entry)
        print(
            f"[{number}/{len(configurations)}] {configuration.panel}, "
            f"{entry['label']}: {np.mean(entry['loss']):.4f}",
            flush=True,
        )
    return entries


def evaluated(
    trained: Trained, metrics: Callable[[np.ndarray], Metrics]
) -> list[Metrics]:
    """Metrics of every seed, among them the progressive loss.

    That is the mean loss of the batches in the last quarter of the pass, each before
    the step that trains on it.

    Args:
      trained: predictions and training losses.
      metrics: those of the predictions of one seed, `loss` first. A run that diverged
        has infinite ones.
    """
    found = []
    for logits, losses in zip(trained.logits, trained.losses, strict=True):
        late = losses[-max(1, len(losses) // 4) :].astype(np.float64)
        finite = np.isfinite(logits).all()
        safe = metrics(logits if finite else np.zeros_like(logits))
        shown = safe if finite else dict.fromkeys(safe, float("inf"))
        found.append({**shown, "progressive_loss": float(np.mean(late))})
    return found


def require_untuned(options: Options) -> None:
    """Raises a `ValueError` for a flag that would change nothing here."""
    if options.overrides:
        raise ValueError(
            f"--override of {options.name} must be left out: its models have no "
            f"training config, got {', '.join(options.overrides)}"
        )


def shared_setting(options: Options, one_pass: OnePass, data: str) -> dict[str, Any]:
    """What all configurations of a claim share.

    Args:
      options: the claim.
      one_pass: the training.
      data: tells the rows apart from those of other data.
    """
    return {
        "claim": options.name,
        "training": dataclasses.asdict(one_pass),
        "data": data,
    }
