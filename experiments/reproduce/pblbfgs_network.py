"""Progressive-batching L-BFGS against Adam and SGD on a small network.

After arXiv 1802.05374, at the size of scikit-learn's digits. The claim is that nothing
has to be tuned for a quality near that of tuned Adam, with fewer updates; not that it
is better.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.reproduce.claims import Options
from experiments.reproduce.embedding_runs import require_untuned
from experiments.reproduce.pblbfgs_network_report import (
    PB_FO,
    PB_MB,
    TUNED_ADAM,
    TUNED_SGD,
    acceptance,
    network_markdown,
)
from experiments.reproduce.pblbfgs_network_training import (
    FIRST_BATCH,
    L2,
    MINI_BATCH,
    TRAIN_ROWS,
    DigitRows,
    ProgressiveTraining,
    load_digit_rows,
    run_mini_batches,
)
from experiments.reproduce.pblbfgs_store import Run, RunStore
from experiments.reproduce.provenance import command_line, provenance
from experiments.reproduce.report import Document, write_files

EPOCHS = 30
LEARNING_RATES = {
    "adam": (1e-3, 3e-3, 1e-2, 3e-2),
    "sgd": (0.03, 0.1, 0.3, 1.0, 3.0),
}
_PROBLEM = "digits"


class NetworkArm(NamedTuple):
    """One method.

    Attributes:
      name: of it in documents.
      label: of it in tables.
      kind: `adam` or `sgd`, or the overlap of progressive batching.
      learning_rate: of Adam and SGD; None: tuned.
    """

    name: str
    label: str
    kind: str
    learning_rate: float | None = None


ARMS = (
    NetworkArm(PB_MB, "PB-MB", "multi"),
    NetworkArm(PB_FO, "PB-FO", "full"),
    NetworkArm(TUNED_ADAM, "Adam, tuned", "adam"),
    NetworkArm("adam_0.01", "Adam, 1e-2", "adam", 1e-2),
    NetworkArm("adam_0.001", "Adam, 1e-3", "adam", 1e-3),
    NetworkArm(TUNED_SGD, "SGD, tuned", "sgd"),
)


class NetworkRuns:
    """All runs of the comparison; what is stored is not run again."""

    def __init__(self, data: DigitRows, epochs: int, options: Options):
        self._data, self._epochs, self._options = data, epochs, options
        self._store = RunStore(
            options.output_dir / options.run_name,
            {
                "claim": options.name,
                "epochs": epochs,
                "train_rows": len(data.train.labels),
            },
        )

    def entry(self, arm: NetworkArm) -> dict[str, Any]:
        """An arm's entry in the document."""
        if arm.kind in LEARNING_RATES:
            entry = self._mini_batch_entry(arm)
        else:
            entry = self._progressive_entry(arm)
        finals = [float(run["loss"][-1]) for run in entry["runs"]]
        print(f"{entry['label']}: median loss {np.median(finals):.4f}", flush=True)
        return entry

    def _progressive_entry(self, arm: NetworkArm) -> dict[str, Any]:
        settings = {"overlap": arm.kind, "batch_size": FIRST_BATCH}
        solver: list[ProgressiveTraining] = []

        def make(seed: int) -> Run:
            # Compiled when something has to be run, and once.
            if not solver:
                solver.append(ProgressiveTraining(self._data, arm.kind, self._epochs))
            return solver[0].run(seed)

        runs = self._store.complete(
            _PROBLEM, arm.name, settings, self._options.seeds, make
        )
        return {
            "name": arm.name,
            "label": arm.label,
            "kind": arm.kind,
            "learning_rate": None,
            "settings": settings,
            "runs": runs,
        }

    def _mini_batch_entry(self, arm: NetworkArm) -> dict[str, Any]:
        rate, tuning = arm.learning_rate, {}
        if rate is None:
            rate, tuning = self._tuned(arm)
        label = arm.label + (f" ({rate:g})" if tuning else "")
        return {
            "name": arm.name,
            "label": label,
            "kind": arm.kind,
            "learning_rate": rate,
            **tuning,
            "runs": self._mini_batches(arm.kind, rate, self._options.seeds),
        }

    def _mini_batches(self, name: str, rate: float, seeds: tuple[int, ...]):
        make: Callable[[int], Run] = lambda seed: run_mini_batches(  # noqa: E731
            self._data, name, rate, seed, self._epochs
        )
        settings = {"learning_rate": rate, "batch_size": MINI_BATCH}
        return self._store.complete(_PROBLEM, name, settings, seeds, make)

    def _tuned(self, arm: NetworkArm) -> tuple[float, dict[str, Any]]:
        """The rate with the lowest median of the last loss over the tuning seeds."""
        losses = {}
        for rate in LEARNING_RATES[arm.kind]:
            runs = self._mini_batches(arm.kind, rate, self._options.tuning_seeds)
            finals = np.asarray([float(run["loss"][-1]) for run in runs])
            losses[rate] = float(np.median(np.where(np.isnan(finals), np.inf, finals)))
        rate = min(losses, key=lambda rate: (losses[rate], rate))
        rates = sorted(losses)
        trials = [{"learning_rate": r, "loss": losses[r]} for r in rates]
        return rate, {"interior": rates[0] < rate < rates[-1], "trials": trials}


def _protocol(options: Options, epochs: int) -> list[str]:
    grids = {
        name: ", ".join(f"{rate:g}" for rate in rates)
        for name, rates in LEARNING_RATES.items()
    }
    return [
        f"The ten digits of scikit-learn, {TRAIN_ROWS} rows to train and 397 to test "
        "by a fixed permutation; perceptron 64-32-10 with tanh, "
        f"penalty {L2:g}/2 ‖w‖², float32. The loss is that of all training rows, with "
        "the penalty. A seed is that of the initial weights, shared by all methods, "
        "and of the samples.",
        f"{epochs} epochs; an epoch is as many gradients of single rows as there are "
        "training rows. Losses of line searches and directional derivatives come on "
        "top of them and are in the seconds.",
        "Progressive batching (arXiv 1802.05374): `optim_jax.pb_lbfgs` with a first "
        f"batch of {FIRST_BATCH} and the library's defaults otherwise. Nothing is "
        "tuned, no learning rate exists.",
        f"Adam and SGD have batches of {MINI_BATCH} and a constant learning rate. "
        f"Tuned ones are the best of {grids['adam']} (Adam) and {grids['sgd']} (SGD) "
        f"on the seeds {', '.join(map(str, options.tuning_seeds))}, which are not "
        "reported.",
    ]


def build_document(options: Options) -> Document:
    """Runs all arms on all seeds."""
    epochs = options.steps or EPOCHS
    runs = NetworkRuns(load_digit_rows(), epochs, options)
    document = {
        "claim": options.name,
        "title": "Progressive-batching L-BFGS on a small network",
        "provenance": provenance(command_line()),
        "protocol": _protocol(options, epochs),
        "seeds": list(options.seeds),
        "tuning_seeds": list(options.tuning_seeds),
        "epochs": epochs,
        "train_rows": TRAIN_ROWS,
        "arms": [runs.entry(arm) for arm in ARMS],
    }
    document["acceptance"] = acceptance(document)
    return document


def reproduce(options: Options) -> None:
    """Runs the comparison and writes its table, figure and JSON."""
    require_untuned(options)
    if options.dry_run:
        print("\n".join(_protocol(options, options.steps or EPOCHS)))
        print("\n".join(arm.label for arm in ARMS))
        return
    # Here, so that plans can be made where matplotlib is not installed.
    from experiments.reproduce.pblbfgs_network_figure import draw_network

    document = build_document(options)
    paths = write_files(
        document,
        options.results_dir,
        options.result_name,
        text=network_markdown,
        draw=draw_network,
    )
    print(network_markdown(document))
    print("\n".join(f"written: {path}" for path in paths))
