"""The methods of the convex comparison, and what is known of them beforehand."""

import math
from typing import Any, NamedTuple

GAPS = (1e-2, 1e-3, 1e-4, 1e-6)
FIRST_BATCH = 64
MAX_EPOCHS = 60.0

# Nothing of these depends on the data set. The variances are taken exactly and of all
# samples, as in the runs that the medians below are from.
PROTOCOL_OPTIONS: dict[str, Any] = {
    "batch_size": FIRST_BATCH,
    "variance": "exact",
    "variance_samples": None,
    "first_step": "unit",
    "chunk_size": 1024,
}

PROBLEMS = ("breast_cancer", "digits", "synthetic")

# Medians of epochs to each of `GAPS` by this project's prototype, written in NumPy:
# PB-MB with the unbiased test.
PROTOTYPE_MEDIANS = {
    "breast_cancer": (2.5, 6.7, 10.7, 18.5),
    "digits": (5.5, 12.7, 22.2, 43.2),
    "synthetic": (2.1, 9.3, 14.5, 26.5),
}
SLACK = 1.15

# Epochs of SG with a step that is the best for just these.
SG_HORIZONS = (1.0, 5.0, 10.0)


class ConvexArm(NamedTuple):
    """One method of the comparison.

    Attributes:
      name: of it in files.
      label: of it in tables.
      kind: `pb_lbfgs`, `lbfgs` (Optax's), `sgd` or `svrg`.
      options: of the solver; none for the others.
      max_epochs: beyond which its gap is not looked at.
      certified: whether it must end with a certificate.
      many_seeds: whether it is also run on the wider set of seeds.
      tuning_epochs: horizon that its step is the best for; 0 where nothing is tuned.
    """

    name: str
    label: str
    kind: str
    options: dict[str, Any] = {}
    max_epochs: float = MAX_EPOCHS
    certified: bool = False
    many_seeds: bool = False
    tuning_epochs: float = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides its runs on a problem, JSON-able."""
        return {
            "kind": self.kind,
            "options": self.options,
            "max_epochs": self.max_epochs,
            "tuning_epochs": self.tuning_epochs,
        }

    @property
    def is_random(self) -> bool:
        """Whether another seed is another run."""
        return self.kind != "lbfgs" and self.options.get("batch_size") != "N"


def _progressive(overlap: str, test: str, cap: float) -> dict[str, Any]:
    return {**PROTOCOL_OPTIONS, "overlap": overlap, "test": test, "growth_cap": cap}


PB_MB = "pb_mb_unbiased"
PB_FO = "pb_fo_unbiased"
DEFAULTS = "pb_mb_defaults"

CONVEX_ARMS = (
    ConvexArm(
        "full_batch",
        "full-batch L-BFGS (Armijo)",
        "pb_lbfgs",
        {"batch_size": "N", "chunk_size": 1024},
    ),
    ConvexArm("optax_lbfgs", "full-batch optax.lbfgs (zoom)", "lbfgs"),
    ConvexArm(
        "pb_mb_paper",
        "PB-MB, paper's test",
        "pb_lbfgs",
        _progressive("multi", "ipqn", math.inf),
        max_epochs=30.0,
    ),
    ConvexArm(
        "pb_fo_paper",
        "PB-FO, paper's test",
        "pb_lbfgs",
        _progressive("full", "ipqn", math.inf),
        max_epochs=30.0,
    ),
    ConvexArm(
        PB_MB,
        "PB-MB, unbiased test",
        "pb_lbfgs",
        _progressive("multi", "ipqn_unbiased", 2.0),
        certified=True,
        many_seeds=True,
    ),
    ConvexArm(
        PB_FO,
        "PB-FO, unbiased test",
        "pb_lbfgs",
        _progressive("full", "ipqn_unbiased", 2.0),
        certified=True,
        many_seeds=True,
    ),
    ConvexArm(
        DEFAULTS,
        "PB-MB, library defaults",
        "pb_lbfgs",
        {"batch_size": FIRST_BATCH},
        certified=True,
        many_seeds=True,
    ),
    ConvexArm("sgd", "SG, batch 1, best step", "sgd", tuning_epochs=10.0),
    ConvexArm("svrg", "SVRG, best step", "svrg", tuning_epochs=30.0),
)
