"""Reproduces a claim: `python -m experiments.reproduce gpa_llama --scale=cpu`.

Table (Markdown), figure (PNG) and all raw numbers (JSON) go to `--results_dir`.
Interrupted runs are continued by the same command.
"""

import pathlib
import sys

from absl import app, flags

from experiments.reproduce.claims import CLAIMS, Options, reproduce

_SCALE = flags.DEFINE_string("scale", "cpu", "cpu or gpu; not every claim has both.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "runs/reproduce", "Folder of the runs.")
_RESULTS_DIR = flags.DEFINE_string(
    "results_dir", "experiments/results", "Folder of table, figure and JSON."
)
_PARALLEL = flags.DEFINE_integer(
    "parallel", 0, "Training processes at once; 0: one per core on cpu, 1 on gpu."
)
_SEEDS = flags.DEFINE_list(
    "seeds", [], "Reporting seeds; none: those of the claim's protocol."
)
_TUNING_SEEDS = flags.DEFINE_list(
    "tuning_seeds", [], "Seeds tuned on; none: those of the claim's protocol."
)
_EXTENSIONS = flags.DEFINE_integer(
    "extensions", 3, "Learning rates every arm may add at an edge of its grid."
)
_STEPS = flags.DEFINE_integer("steps", 0, "Length of the runs; 0: the protocol's.")
_OVERRIDES = flags.DEFINE_multi_string(
    "override", [], "field=value of the training config, for every run; repeatable."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and run nothing.")


def _integers(flag: str, values: list[str]) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in values)
    except ValueError:
        raise ValueError(
            f"--{flag} must be a comma-separated list of integers, got "
            f"{','.join(values)!r}"
        ) from None


def options_from_flags(argv: list[str]) -> Options:
    """The request on the command line.

    Raises:
      ValueError: one sentence that names what to change.
    """
    if len(argv) != 2:
        raise ValueError(f"give one claim: {', '.join(sorted(CLAIMS))}")
    return Options(
        name=argv[1],
        scale=_SCALE.value,
        output_dir=pathlib.Path(_OUTPUT_DIR.value),
        results_dir=pathlib.Path(_RESULTS_DIR.value),
        parallel=_PARALLEL.value,
        seeds=_integers("seeds", _SEEDS.value),
        tuning_seeds=_integers("tuning_seeds", _TUNING_SEEDS.value),
        extensions=_EXTENSIONS.value,
        steps=_STEPS.value,
        overrides=tuple(_OVERRIDES.value),
        dry_run=_DRY_RUN.value,
    )


def main(argv: list[str]) -> None:
    """Flags to options to the claim."""
    try:
        reproduce(options_from_flags(argv))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
