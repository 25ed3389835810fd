"""The claims that can be reproduced, by name: the only such table."""

import dataclasses
import importlib
import pathlib
from typing import NamedTuple

from experiments.reproduce.tuning import require_separate_seeds


class Claim(NamedTuple):
    """One published claim.

    Attributes:
      module: where `reproduce(options)` lives; imported only when asked for.
      scales: the sizes it can be run at.
      summary: one line for the list.
      tuning_seeds: what its protocol tunes on; none where nothing is tuned.
      seeds: what its protocol reports on.
    """

    module: str
    scales: tuple[str, ...]
    summary: str
    tuning_seeds: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)


CLAIMS: dict[str, Claim] = {
    "gns_llama": Claim(
        "experiments.reproduce.gns_llama",
        ("cpu", "gpu"),
        "batch sizes from noise scales against constant and open-loop ones on a Llama",
    ),
    "gpa_llama": Claim(
        "experiments.reproduce.gpa_llama",
        ("cpu", "gpu"),
        "GPA against AdamW, AdamW + EMA, Schedule-Free and DiLoCo on a Llama",
    ),
    "gpa_teacher_student": Claim(
        "experiments.reproduce.gpa_teacher_student",
        ("cpu",),
        "the same arms on teacher-student regression, minutes on one core",
    ),
    "pblbfgs_convex": Claim(
        "experiments.reproduce.pblbfgs_convex",
        ("cpu",),
        "progressive-batching L-BFGS against its peers on logistic regression",
        tuning_seeds=(100, 101, 102),
        seeds=(0, 1, 2, 3, 4),
    ),
    "pblbfgs_network": Claim(
        "experiments.reproduce.pblbfgs_network",
        ("cpu",),
        "progressive-batching L-BFGS against tuned Adam and SGD on a small network",
        tuning_seeds=(100, 101, 102),
        seeds=(0, 1, 2, 3, 4),
    ),
    "qr_one_feature": Claim(
        "experiments.reproduce.qr_one_feature",
        ("cpu",),
        "compositional embeddings against hashing, one feature with a known optimum",
        tuning_seeds=(),
        seeds=(0, 1, 2),
    ),
    "qr_planted": Claim(
        "experiments.reproduce.qr_planted",
        ("cpu",),
        "compositional embeddings against hashing in a DLRM on planted clicks",
        tuning_seeds=(),
        seeds=(0, 1, 2),
    ),
    "qr_stdlib": Claim(
        "experiments.reproduce.qr_stdlib",
        ("cpu",),
        "the same on names called in the standard library, a real task",
        tuning_seeds=(),
        seeds=(0, 1, 2, 3, 4),
    ),
    "shampoo_llama": Claim(
        "experiments.reproduce.shampoo_llama",
        ("cpu", "gpu"),
        "Shampoo, SOAP, KL-Shampoo and GPA + SOAP against AdamW and Muon on a Llama",
        tuning_seeds=(0, 6),
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
      name: a key of `CLAIMS`.
      scale: one of the claim's scales.
      output_dir: where runs go; can be deleted afterwards.
      results_dir: where table, figure and JSON go.
      parallel: training processes at once; 0: one per core on cpu (at most 8), one on
        gpu.
      seeds: reporting seeds; none means the claim's own.
      tuning_seeds: seeds the hyperparameters are chosen on, never reporting seeds; none
        means the claim's own.
      extensions: learning rates every arm may add to its grid.
      steps: length of the runs; 0 for the protocol's own.
      overrides: `field=value` for every training run, e.g. where the data lies.
      dry_run: print the plan and run nothing.
    """

    name: str
    scale: str = "cpu"
    output_dir: pathlib.Path = pathlib.Path("runs/reproduce")
    results_dir: pathlib.Path = pathlib.Path("experiments/results")
    parallel: int = 0
    seeds: tuple[int, ...] = ()
    tuning_seeds: tuple[int, ...] = ()
    extensions: int = 3
    steps: int = 0
    overrides: tuple[str, ...] = ()
    dry_run: bool = False

    def __post_init__(self):
        claim = find_claim(self.name)
        if self.scale not in claim.scales:
            raise ValueError(
                f"--scale of {self.name} must be one of {', '.join(claim.scales)}, "
                f"got {self.scale!r}"
            )
        for flag, low in (("parallel", 0), ("extensions", 0), ("steps", 0)):
            if not getattr(self, flag) >= low:
                raise ValueError(
                    f"--{flag} must be >= {low}, got {getattr(self, flag)}"
                )
        for override in self.overrides:
            if "=" not in override:
                raise ValueError(f"--override must be field=value, got {override!r}")
        for name in ("seeds", "tuning_seeds"):
            if not getattr(self, name):
                object.__setattr__(self, name, getattr(claim, name))
        if claim.tuning_seeds:
            require_separate_seeds(self.tuning_seeds, self.seeds)
            return
        if self.tuning_seeds:
            raise ValueError(
                f"--tuning_seeds of {self.name} must be left out: it tunes nothing, "
                f"got {list(self.tuning_seeds)}"
            )
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"--seeds must differ and be >= 0, got {list(self.seeds)}")

    @property
    def run_name(self) -> str:
        """Folder of the runs: claim and scale."""
        scaled = len(CLAIMS[self.name].scales) > 1
        return f"{self.name}_{self.scale}" if scaled else self.name

    @property
    def result_name(self) -> str:
        """Stem of the result files; names whatever differs from the protocol.

        A variation, such as more tuning seeds, never replaces the protocol's result.
        """
        stem = self.run_name
        claim = CLAIMS[self.name]
        protocol = {"tuning_seeds": claim.tuning_seeds, "seeds": claim.seeds}
        for field in dataclasses.fields(self):
            if field.name in ("steps", "extensions", "tuning_seeds", "seeds"):
                value = getattr(self, field.name)
                if value != protocol.get(field.name, field.default):
                    values = value if isinstance(value, tuple) else (value,)
                    stem += f"_{field.name}_{'_'.join(map(str, values))}"
        return stem + ("_overridden" if self.overrides else "")


def find_claim(name: str) -> Claim:
    """The claim of that name.

    Raises:
      ValueError: for an unknown name; it lists what exists.
    """
    if name not in CLAIMS:
        listing = "".join(f"\n  {key}: {CLAIMS[key].summary}" for key in sorted(CLAIMS))
        raise ValueError(f"no claim named {name!r}; there are:{listing}")
    return CLAIMS[name]


def reproduce(options: Options) -> None:
    """Runs the claim that the options name."""
    importlib.import_module(find_claim(options.name).module).reproduce(options)
