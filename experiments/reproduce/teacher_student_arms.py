"""The arms of the teacher-student comparison: hyperparameters and transformations."""

from collections.abc import Callable, Mapping
from typing import Any

import optax

from experiments.reproduce.teacher_student import Method
from experiments.reproduce.tuning import Arm
from optim_jax import (
    gpa_adamw,
    mu_x_from_inner_steps,
    scale_by_primal_averaging,
    schedule_free,
    single_worker_diloco,
)

Settings = Mapping[str, Any]

B2 = 0.99

ARMS = (
    Arm("adamw", "AdamW", tuple({"b1": b1} for b1 in (0.8, 0.9, 0.95, 0.98))),
    Arm("adamw_ema", "AdamW + EMA", tuple({"H": h} for h in (4, 8, 16, 32))),
    Arm(
        "schedule_free",
        "Schedule-Free",
        tuple({"mu_y": mu_y} for mu_y in (0.8, 0.9, 0.95, 0.98)),
    ),
    Arm(
        "diloco",
        "DiLoCo, one worker",
        tuple(
            {"inner_steps": steps, "outer_lr": 0.7, "outer_momentum": momentum}
            for steps in (8, 16)
            for momentum in (0.5, 0.9)
        ),
    ),
    Arm(
        "gpa",
        "GPA",
        (
            {"H": 8, "mu_y": 0.7},
            {"H": 16, "mu_y": 0.7},
            {"H": 16, "mu_y": 0.8},
            {"H": 32, "mu_y": 0.7},
        ),
    ),
)
FIXED_GPA = {"H": 16, "mu_y": 0.7}  # named beforehand by the acceptance figures


def _adamw(settings: Settings) -> Method:
    return Method(lambda rate: optax.adam(rate, b1=settings["b1"], b2=B2), False)


def _adamw_ema(settings: Settings) -> Method:
    mu_x = mu_x_from_inner_steps(settings["H"])
    # With mu_y = 0 training is Adam's own and x is its exponential average.
    return Method(
        lambda rate: optax.chain(
            optax.adam(rate, b1=0.9, b2=B2),
            scale_by_primal_averaging(mu_x=mu_x, mu_y=0.0),
        ),
        True,
    )


def _schedule_free(settings: Settings) -> Method:
    return Method(
        lambda rate: schedule_free(
            optax.adam(rate, b1=0.0, b2=B2), rate, mu_y=settings["mu_y"]
        ),
        True,
        decays=False,
    )


def _diloco(settings: Settings) -> Method:
    return Method(
        lambda rate: single_worker_diloco(
            optax.adam(rate, b1=0.9, b2=B2),
            inner_steps=settings["inner_steps"],
            outer_learning_rate=settings["outer_lr"],
            outer_momentum=settings["outer_momentum"],
        ),
        True,
    )


def _gpa(settings: Settings) -> Method:
    mu_x = mu_x_from_inner_steps(settings["H"])
    return Method(
        lambda rate: gpa_adamw(rate, b1=0.9, b2=B2, mu_x=mu_x, mu_y=settings["mu_y"]),
        True,
    )


_BUILDERS: dict[str, Callable[[Settings], Method]] = {
    "adamw": _adamw,
    "adamw_ema": _adamw_ema,
    "schedule_free": _schedule_free,
    "diloco": _diloco,
    "gpa": _gpa,
}


def method_of(arm: str, settings: Settings) -> Method:
    """The transformation and evaluation point of one variant of an arm."""
    return _BUILDERS[arm](settings)
