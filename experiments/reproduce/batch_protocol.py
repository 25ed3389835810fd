"""Batch rules compared at equal samples: what is trained, and under which rules.

Every optimizer is trained under eight rules. Whatever the rule, a run takes the same
rows in the same order in the same micro-batches, and schedule, warm-up and evaluations
are placed by the rows trained on: only where one step ends and the next begins differs.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.config import TrainConfig
from experiments.config_fields import with_overrides
from experiments.presets import LLAMA, preset_by_name
from experiments.reproduce.llama_protocol import Protocol, checked_steps
from experiments.reproduce.sweep import InputFile
from experiments.reproduce.tuning import Arm
from experiments.training.batch_path import HEADER, Change

# Rule -> what tables and figures show, in their order.
RULES = {
    "small": "small, constant",
    "large": "large, constant",
    "mean_matched": "mean-matched, constant",
    "replay": "replayed path",
    "seesaw": "Seesaw",
    "adaptive_l2": "adaptive, l2",
    "adaptive_matched": "adaptive, matched",
    "adaptive_alignment": "adaptive, alignment",
}
RATE_RULES = ("small", "large", "seesaw")  # tuned over learning rates
THETA_RULES = ("adaptive_l2", "adaptive_matched", "adaptive_alignment")
OPEN_LOOP_RULES = ("mean_matched", "replay")  # taken from an adaptive run, not tuned


@dataclasses.dataclass(frozen=True)
class Method:
    """An optimizer and what is tuned about its runs.

    Attributes:
      name: the trainer's name of the optimizer.
      label: what tables and figures show.
      geometry: of the noise scale that belongs to its steps, `sign` or `spectral`.
      settings: config fields of the optimizer.
      learning_rates: first grid of every rule in `RATE_RULES`.
      thetas: grid of every rule in `THETA_RULES`.
    """

    name: str
    label: str
    geometry: str
    settings: Mapping[str, Any]
    learning_rates: tuple[float, ...]
    thetas: Mapping[str, tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class BatchProtocol:
    """What is trained and tuned at one scale.

    Attributes:
      title: of the report.
      preset: of the trainer.
      overrides: fields that all runs share; `batch.size` is the small batch.
      steps: length of a run in steps of the small batch.
      large_size: rows of the large constant batch.
      methods: the optimizers.
      claimed: names of those that the target is stated for.
      factor: ratio of neighbouring learning rates.
      tolerance: share of the small batch's tuning loss that a theta may lose.
      required_saving: share of the steps that the target asks to save.
      sentences: the protocol in words.
    """

    title: str
    preset: str
    overrides: Mapping[str, Any]
    steps: int
    large_size: int
    methods: tuple[Method, ...]
    claimed: tuple[str, ...]
    factor: float
    tolerance: float
    required_saving: float
    sentences: tuple[str, ...]

    @functools.cached_property
    def config(self) -> TrainConfig:
        """The run of the small batch, before an optimizer is chosen.

        Raises:
          ValueError: when an override is refused.
        """
        fields = {**self.overrides, "steps": self.steps}
        text = {name: str(value) for name, value in fields.items()}
        return with_overrides(preset_by_name(self.preset, LLAMA), text)

    @property
    def small_size(self) -> int:
        """Rows of the small batch."""
        return self.config.batch.size

    @property
    def checks(self) -> list[int]:
        """Rows trained on at which the trainer evaluates; the last ones always."""
        steps = checked_steps(training_protocol(self, ()))
        return [step * self.small_size for step in steps]


def path_text(path: Sequence[Change]) -> str:
    """A batch path as the CSV that the trainer follows."""
    lines = [HEADER, *path]
    return "".join(f"{samples},{size}\n" for samples, size in lines)


def path_file(path: Sequence[Change], folder: pathlib.Path) -> InputFile:
    """The CSV of a path, named by what it holds.

    Args:
      path: changes from 0 on.
      folder: of the runs; absolute, as the trainer is started elsewhere.
    """
    content = path_text(path)
    name = hashlib.sha256(content.encode()).hexdigest()[:12]
    return InputFile(folder / "batch_paths" / f"{name}.csv", content)


def constant_path(size: int) -> tuple[Change, ...]:
    """A batch of `size` rows from the first row on."""
    return (Change(0, size),)


def mean_matched_size(samples: int, steps: float, micro_size: int) -> int:
    """The constant batch that takes about as many steps as a run did.

    Args:
      samples: rows of the run.
      steps: optimizer steps it took.
      micro_size: rows of a micro-batch.

    Returns:
      samples / steps, rounded to whole micro-batches, at least one.
    """
    return max(1, round(samples / steps / micro_size)) * micro_size


def _arm(
    method: Method,
    rule: str,
    *variants: Mapping[str, Any],
    **batch: Any,
) -> Arm:
    fields = {f"batch.{name}": value for name, value in batch.items()}
    settings = {"optimizer.name": method.name, **method.settings, **fields}
    return Arm(rule, RULES[rule], variants or ({},), settings)


def rate_arms(
    protocol: BatchProtocol, method: Method, folder: pathlib.Path
) -> tuple[Arm, ...]:
    """The arms whose learning rate is tuned: small, large and Seesaw.

    Args:
      protocol: the comparison.
      method: one of its optimizers.
      folder: of the runs.
    """
    large = path_file(constant_path(protocol.large_size), folder)
    return (
        _arm(method, "small"),
        _arm(method, "large", path=large),
        _arm(method, "seesaw", seesaw=True),
    )


def theta_arms(method: Method) -> tuple[Arm, ...]:
    """The arms that measure: their variants are thetas."""

    def arm(rule: str, geometry: str, **noise_scale: str) -> Arm:
        thetas = [{"batch.theta": theta} for theta in method.thetas[rule]]
        found = _arm(method, rule, *thetas, adaptive=geometry)
        fields = {f"noise_scale.{name}": v for name, v in noise_scale.items()}
        return dataclasses.replace(found, fixed={**found.fixed, **fields})

    return (
        arm("adaptive_l2", "l2"),
        arm("adaptive_matched", method.geometry),
        arm("adaptive_alignment", method.geometry, signal="alignment", draws="ranks"),
    )


def open_loop_arms(
    method: Method,
    path: Sequence[Change],
    constant: int,
    folder: pathlib.Path,
) -> tuple[Arm, ...]:
    """The arms that follow what an adaptive run of another seed did.

    Args:
      method: the optimizer.
      path: of the adaptive run.
      constant: rows of the mean-matched batch.
      folder: of the runs.
    """
    matched = path_file(constant_path(constant), folder)
    return (
        _arm(method, "mean_matched", path=matched),
        _arm(method, "replay", path=path_file(path, folder)),
    )


def training_protocol(protocol: BatchProtocol, arms: Sequence[Arm]) -> Protocol:
    """The training runs behind some arms, for `run_of`."""
    return Protocol(
        title=protocol.title,
        preset=protocol.preset,
        overrides=protocol.overrides,
        steps=protocol.steps,
        tokens_per_step=protocol.small_size * protocol.config.data.seq_len,
        arms=tuple(arms),
        learning_rates=(),
        factor=protocol.factor,
        comparisons={},
        sentences=(),
    )
