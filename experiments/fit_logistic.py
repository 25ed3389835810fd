"""Fits logistic regression: `python -m experiments.fit_logistic --dataset=digits`.

`--method` is progressive-batching L-BFGS or one of its peers; `--dataset` a bundled
set, planted data or a file. A folder gets a row per iteration, figures and a summary.
Exit status as of `experiments.train_llama`.
"""

import pathlib
import sys
import time

from absl import app, flags

from experiments.flags import quiet_by_default
from experiments.logistic.datasets import LAYOUTS, NAMES, DatasetConfig
from experiments.logistic.fitting import METHODS, FitConfig, run

__all__ = ["run"]

EXIT_REFUSED, EXIT_DIVERGED = 2, 3

_DATASET = flags.DEFINE_string(
    "dataset", "breast_cancer", f"One of: {', '.join(NAMES)}."
)
_METHOD = flags.DEFINE_enum("method", "pb_lbfgs", METHODS, "What solves it.")
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder of this run; by default a new one in runs/fit_logistic."
)
_PROGRESS = flags.DEFINE_bool("progress", True, "Show a bar.")

# The data.
_PRECISION = flags.DEFINE_enum(
    "precision", "float64", ("float32", "float64"), "Of data and weights."
)
_L2 = flags.DEFINE_float("l2", None, "Penalty lambda; by default 1/N.")
_ROWS = flags.DEFINE_integer("rows", 7000, "synthetic: samples.")
_FEATURES = flags.DEFINE_integer("features", 50, "synthetic: features.")
_DATA_SEED = flags.DEFINE_integer("data_seed", 0, "synthetic: seed of the data.")
_STANDARDIZE = flags.DEFINE_bool(
    "standardize", None, "Mean 0 and variance 1 for each column; by default as usual."
)
_CONSTANT_COLUMN = flags.DEFINE_bool(
    "constant_column", None, "Append a column of ones; by default as usual."
)
_LAYOUT = flags.DEFINE_enum("layout", "auto", LAYOUTS, "libsvm: how rows are stored.")
_LABEL_COLUMN = flags.DEFINE_string(
    "label_column", "", "csv: name, or number from 0; by default the last."
)

# The fit.
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples drawn.")
_MAX_EPOCHS = flags.DEFINE_float("max_epochs", 100.0, "Gradient evaluations over N.")
_TOL = flags.DEFINE_float("tol", 1e-8, "On the largest entry of the gradient of F.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "pb_lbfgs: of the first sample; sgd, svrg, adam: of all."
)
_MEMORY_SIZE = flags.DEFINE_integer("memory_size", None, "pb_lbfgs, lbfgs: pairs kept.")
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", None, "sgd, svrg, adam; by default the best of 2^-10 to 2^10."
)
_TUNING_EPOCHS = flags.DEFINE_float(
    "tuning_epochs", None, "sgd, svrg, adam: budget of each rate in that search."
)

# Options of the solver, which knows what is allowed; not given means its default.
_SOLVER = {
    holder.name: holder
    for holder in (
        flags.DEFINE_float("theta", None, "pb_lbfgs: of the sample test."),
        flags.DEFINE_string(
            "test",
            None,
            "pb_lbfgs: ipqn, ipqn_window, ipqn_unbiased, inner_product, norm or none.",
        ),
        flags.DEFINE_integer("groups", None, "pb_lbfgs: parts of a sample."),
        flags.DEFINE_float("growth_cap", None, "pb_lbfgs: most growth a step, or inf."),
        flags.DEFINE_integer("max_batch", None, "pb_lbfgs: largest sample."),
        flags.DEFINE_integer("variance_samples", None, "pb_lbfgs: most for the test."),
        flags.DEFINE_bool("finite_population", None, "pb_lbfgs: corrects for N."),
        flags.DEFINE_integer("test_every", None, "pb_lbfgs: iterations."),
        flags.DEFINE_string("overlap", None, "pb_lbfgs: multi or full."),
        flags.DEFINE_float("overlap_ratio", None, "pb_lbfgs: shared part of a sample."),
        flags.DEFINE_string(
            "line_search",
            None,
            "pb_lbfgs: armijo, armijo_interp, weak_wolfe, weak_wolfe_interp, "
            "strong_wolfe or fixed.",
        ),
        flags.DEFINE_float("c1", None, "pb_lbfgs: sufficient decrease."),
        flags.DEFINE_float("c2", None, "pb_lbfgs: curvature, of the Wolfe searches."),
        flags.DEFINE_float("factor", None, "pb_lbfgs: of backtracking."),
        flags.DEFINE_integer("max_line_search", None, "pb_lbfgs: trials."),
        flags.DEFINE_string(
            "init_step",
            None,
            "pb_lbfgs: variance, variance_unbiased, unit, previous or projected.",
        ),
        flags.DEFINE_string("variance", None, "pb_lbfgs: groups, hutchinson or exact."),
        flags.DEFINE_string(
            "first_step", None, "pb_lbfgs: unit, capped or normalized."
        ),
        flags.DEFINE_string("curvature", None, "pb_lbfgs: relative, absolute or none."),
        flags.DEFINE_float("eps", None, "pb_lbfgs: of the curvature condition."),
        flags.DEFINE_bool("damping", None, "pb_lbfgs: Powell's."),
        flags.DEFINE_string("form", None, "pb_lbfgs: compact or two_loop."),
        flags.DEFINE_string("memory_dtype", None, "pb_lbfgs: such as bfloat16."),
        flags.DEFINE_string("evaluation", None, "pb_lbfgs: chunked or bucketed."),
        flags.DEFINE_integer("chunk_size", None, "pb_lbfgs: samples at a time."),
        flags.DEFINE_integer("max_iterations", None, "pb_lbfgs: budget."),
        flags.DEFINE_float("max_time", None, "pb_lbfgs: budget in seconds."),
    )
}


def _request(argv: list[str]) -> FitConfig:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}; flags start with --")
    dataset = DatasetConfig(
        name=_DATASET.value,
        rows=_ROWS.value,
        features=_FEATURES.value,
        seed=_DATA_SEED.value,
        standardize=_STANDARDIZE.value,
        constant_column=_CONSTANT_COLUMN.value,
        layout=_LAYOUT.value,
        label_column=_LABEL_COLUMN.value,
        l2=_L2.value,
        dtype=_PRECISION.value,
    )
    given = {name: holder.value for name, holder in _SOLVER.items()}
    return FitConfig(
        dataset=dataset,
        method=_METHOD.value,
        seed=_SEED.value,
        max_epochs=_MAX_EPOCHS.value,
        tol=_TOL.value,
        batch_size=_BATCH_SIZE.value,
        memory_size=_MEMORY_SIZE.value,
        learning_rate=_LEARNING_RATE.value,
        tuning_epochs=_TUNING_EPOCHS.value,
        solver={name: value for name, value in given.items() if value is not None},
    )


def _output_dir(config: FitConfig) -> pathlib.Path:
    if _OUTPUT_DIR.value:
        return pathlib.Path(_OUTPUT_DIR.value)
    name = f"{config.dataset.title}-{config.method}-{time.strftime('%Y%m%d-%H%M%S')}"
    return pathlib.Path("runs/fit_logistic", name)


def main(argv: list[str]) -> None:
    """Flags to configuration to fit."""
    quiet_by_default(flags.FLAGS)
    try:
        config = _request(argv)
        outcome = run(config, _output_dir(config), progress=_PROGRESS.value)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)
    print(outcome.message)
    if outcome.fit.reason == "diverged":
        sys.exit(EXIT_DIVERGED)


if __name__ == "__main__":
    app.run(main)
