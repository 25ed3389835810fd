"""Progressive-batching L-BFGS against its peers on logistic regression.

After arXiv 1802.05374: epochs to a gap on three convex problems that run in minutes on
a CPU. Nothing of progressive batching is tuned per data set; the steps of SG and SVRG
are the best of 21.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from experiments.logistic.datasets import DatasetConfig, load_problem
from experiments.logistic.problem import LogisticProblem
from experiments.logistic.reference_optimum import reference_optimum
from experiments.logistic.tuning import LEARNING_RATES, tune_learning_rate
from experiments.reproduce.claims import Options
from experiments.reproduce.embedding_runs import require_untuned
from experiments.reproduce.pblbfgs_arms import (
    CONVEX_ARMS,
    FIRST_BATCH,
    GAPS,
    PROBLEMS,
    SG_HORIZONS,
    ConvexArm,
)
from experiments.reproduce.pblbfgs_convex_report import (
    acceptance,
    convex_markdown,
    fewest_epochs,
)
from experiments.reproduce.pblbfgs_measure import (
    CERTIFICATE_EPOCHS,
    ProgressiveRuns,
    measure_peer,
)
from experiments.reproduce.pblbfgs_store import Run, RunStore
from experiments.reproduce.pblbfgs_trace import DRAWN_POINTS
from experiments.reproduce.provenance import (
    available_cores,
    command_line,
    provenance,
)
from experiments.reproduce.report import Document, write_files

LABELS = {
    "breast_cancer": "breast cancer (569 x 31)",
    "digits": "digits, even or odd (1797 x 65)",
    "synthetic": "synthetic (7000 x 50)",
}


def wider_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Four times as many, from 0 on, and those that were asked for."""
    return tuple(sorted({*seeds, *range(4 * len(seeds))}))


class ProblemRuns:
    """All runs on one problem; what is stored is not run again."""

    def __init__(
        self,
        name: str,
        problem: LogisticProblem,
        options: Options,
        store: RunStore,
    ):
        self._name, self._problem = name, problem
        self._options, self._store = options, store
        self._optimum = reference_optimum(problem).value
        self._solvers: dict[str, ProgressiveRuns] = {}

    def entry(self, arms: Sequence[ConvexArm]) -> dict[str, Any]:
        """The problem's entry in the document."""
        self._compile(arms)
        return {
            "name": self._name,
            "label": LABELS[self._name],
            "horizons": self._horizons(arms),
            "num_samples": self._problem.num_samples,
            "num_features": self._problem.num_features,
            "optimum": self._optimum,
            "arms": [self._arm_entry(arm) for arm in arms],
        }

    def _compile(self, arms: Sequence[ConvexArm]) -> None:
        """Compiles all solvers that have something to do, several at once."""
        self._solvers = {
            arm.name: ProgressiveRuns(self._problem, self._optimum, arm)
            for arm in arms
            if arm.kind == "pb_lbfgs" and (self._lacks(arm) or self._lacks_many(arm))
        }

        def compile_one(solver: ProgressiveRuns) -> None:
            # The setting belongs to a thread.
            with jax.enable_x64(True):
                solver.compile()

        started = time.perf_counter()
        with ThreadPoolExecutor(self._options.parallel or available_cores()) as pool:
            list(pool.map(compile_one, self._solvers.values()))
        if self._solvers:
            seconds = time.perf_counter() - started
            count = len(self._solvers)
            print(
                f"{self._name}: compiled {count} solvers ({seconds:.0f} s)", flush=True
            )

    def _seeds(self, arm: ConvexArm) -> tuple[int, ...]:
        return self._options.seeds if arm.is_random else (0,)

    def _lacks(self, arm: ConvexArm) -> bool:
        seeds = self._seeds(arm)
        return self._store.lacks(self._name, arm.name, arm.settings, seeds)

    def _lacks_many(self, arm: ConvexArm) -> bool:
        seeds = wider_seeds(self._options.seeds) if arm.many_seeds else ()
        return self._store.lacks(self._name, f"{arm.name}_many", arm.settings, seeds)

    def _horizons(self, arms: Sequence[ConvexArm]) -> list[Run]:
        """What SG reaches in a few epochs with the best step for just these."""
        sgd = [arm for arm in arms if arm.kind == "sgd"]
        return [
            self._tuned(sgd[0]._replace(tuning_epochs=epochs))
            for epochs in SG_HORIZONS
            if sgd
        ]

    def _arm_entry(self, arm: ConvexArm) -> dict[str, Any]:
        started = time.perf_counter()
        rate = self._tuned(arm) if arm.tuning_epochs else None
        make: Callable[[int], Run]
        if arm.kind == "pb_lbfgs":
            make = lambda seed: self._solvers[arm.name].measure(seed)  # noqa: E731
        else:
            make = functools.partial(
                self._measure_peer, arm, rate["learning_rate"] if rate else None
            )
        settings = arm.settings
        runs = self._store.complete(
            self._name, arm.name, settings, self._seeds(arm), make
        )
        many = []
        if arm.many_seeds:
            many = self._store.complete(
                self._name,
                f"{arm.name}_many",
                settings,
                wider_seeds(self._options.seeds),
                lambda seed: self._solvers[arm.name].measure(seed, last_gap=GAPS[-1]),
            )
        seconds = time.perf_counter() - started
        print(
            f"{self._name}, {arm.label}: {_progress(runs)} ({seconds:.0f} s)",
            flush=True,
        )
        return {
            "name": arm.name,
            "label": arm.label,
            "note": _rate_text(rate) if rate else "",
            "settings": arm.settings,
            "tuning": rate,
            "runs": runs,
            "many": many,
        }

    def _measure_peer(self, arm: ConvexArm, rate: float | None, seed: int) -> Run:
        return measure_peer(self._problem, self._optimum, arm, seed, rate)

    def _tuned(self, arm: ConvexArm) -> Run:
        """The best step of an arm, and what was tried."""
        tuning_seeds = self._options.tuning_seeds

        def tune(_: int) -> Run:
            found = tune_learning_rate(
                self._problem,
                arm.kind,
                batch_size=1,
                epochs=min(arm.tuning_epochs, arm.max_epochs),
                seeds=tuning_seeds,
                reporting_seeds=self._options.seeds,
            )
            return {
                "learning_rate": found.learning_rate,
                "interior": found.interior,
                "epochs": found.epochs,
                "gap": found.values[found.learning_rate] - self._optimum,
                "gaps": {
                    f"{rate:g}": value - self._optimum
                    for rate, value in found.values.items()
                },
            }

        settings = {**arm.settings, "tuning_seeds": list(tuning_seeds)}
        name = f"{arm.name}_tuning"
        return self._store.complete(self._name, name, settings, [0], tune)[0]


def _rate_text(tuning: Run) -> str:
    power = round(math.log2(float(tuning["learning_rate"])))
    return f"2^{power}" + ("" if tuning["interior"] else ", at the edge")


def _progress(runs: Sequence[Run]) -> str:
    first = runs[0]
    reached = ["–" if x is None else f"{float(x):.1f}" for x in first["epochs"]]
    return f"{len(runs)} runs, the first to the gaps in {', '.join(reached)} epochs"


def arms_of(options: Options) -> tuple[ConvexArm, ...]:
    """The arms, with fewer epochs where the command line asks for them."""
    if not options.steps:
        return CONVEX_ARMS
    return tuple(
        arm._replace(max_epochs=min(arm.max_epochs, float(options.steps)))
        for arm in CONVEX_ARMS
    )


def _protocol(options: Options) -> list[str]:
    horizons = {arm.kind: arm.tuning_epochs for arm in CONVEX_ARMS if arm.tuning_epochs}
    return [
        "Logistic regression with the penalty λ/2 ‖w‖², λ = 1/N, of every weight; "
        "float64, from w = 0: breast cancer (standardised, constant column), digits "
        "(even or odd, pixels over 16, constant column), synthetic (Gaussian features "
        "with scales from 1 to 10). F* is from Newton's method.",
        f"Progressive batching (arXiv 1802.05374): first batch {FIRST_BATCH}, θ = 0.9, "
        "memory 10, Armijo backtracking with c1 = 1e-4, relative curvature rule 1e-2; "
        "nothing is chosen per data set. MB: consecutive batches share a quarter of "
        "their samples; FO: pairs from the whole batch, evaluated twice. The paper's "
        "test has no cap on the growth, the unbiased one grows at most twofold per "
        "iteration. Variances are exact and of all samples of the batch, the first "
        "step is -g; the library's own defaults, which estimate the variance from "
        "groups, are one arm of their own.",
        "An epoch is N gradients of single samples. Losses of line searches and "
        "directional derivatives of the tests are no gradients: the column of work "
        "counts them as 1/3 and 2/3 of one. In `optax.lbfgs` a trial of the line "
        "search is a gradient of each sample.",
        "SG has batches of one, SVRG an inner loop of N steps (three epochs), both "
        f"with the best constant step of {len(LEARNING_RATES)}, 2^-10 to 2^10: the one "
        "with the lowest median of F over the tuning seeds "
        f"{', '.join(map(str, options.tuning_seeds))} after {horizons['sgd']:.0f} (SG) "
        f"and {horizons['svrg']:.0f} (SVRG) epochs. Their F is known after whole "
        "epochs only.",
        "The gap is looked at after every iteration, or after several where they make "
        "no twentieth of an epoch together; for at most 60 epochs, 30 with the "
        "paper's test. Runs with the unbiased test go on to the certificate, for at "
        f"most {CERTIFICATE_EPOCHS:.0f} epochs.",
    ]


def build_document(
    options: Options,
    arms: Sequence[ConvexArm] | None = None,
    problems: Sequence[str] = PROBLEMS,
) -> Document:
    """Runs the arms on the problems.

    Args:
      options: seeds and folders.
      arms: by default all.
      problems: their names.
    """
    arms = arms_of(options) if arms is None else arms
    store = RunStore(
        options.output_dir / options.run_name,
        {
            "claim": options.name,
            "gaps": GAPS,
            "certificate": CERTIFICATE_EPOCHS,
            "drawn_points": DRAWN_POINTS,
        },
    )
    entries = []
    with jax.enable_x64(True):
        for name in problems:
            problem = load_problem(DatasetConfig(name=name))
            entries.append(ProblemRuns(name, problem, options, store).entry(arms))
    document = {
        "claim": options.name,
        "title": "Progressive-batching L-BFGS on logistic regression",
        "provenance": provenance(command_line()),
        "protocol": _protocol(options),
        "seeds": list(options.seeds),
        "many_seeds": list(wider_seeds(options.seeds)),
        "tuning_seeds": list(options.tuning_seeds),
        "gaps": list(GAPS),
        "problems": entries,
        "notes": [],
    }
    document["notes"] = [fewest_epochs(document)]
    document["acceptance"] = acceptance(document)
    return document


def reproduce(options: Options) -> None:
    """Runs the comparison and writes its table, figure and JSON."""
    require_untuned(options)
    if options.dry_run:
        print("\n".join(_protocol(options)))
        print("\n".join(f"{LABELS[name]}" for name in PROBLEMS))
        print("\n".join(arm.label for arm in arms_of(options)))
        return
    # Here, so that plans can be made where matplotlib is not installed.
    from experiments.reproduce.pblbfgs_convex_figure import draw_convex

    document = build_document(options)
    paths = write_files(
        document,
        options.results_dir,
        options.result_name,
        text=convex_markdown,
        draw=draw_convex,
    )
    print(convex_markdown(document))
    print("\n".join(f"written: {path}" for path in paths))
