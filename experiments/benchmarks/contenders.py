"""Which transformations the step-time benchmark compares: one row each."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

import optim_jax

LEARNING_RATE = 1e-3
_ADAM = {"b1": 0.9, "b2": 0.95, "eps": 1e-8}
_DECAY = {"weight_decay": 0.1}

MatrixAxesTree = Any


@dataclasses.dataclass(frozen=True)
class ContenderRow:
    """One row of the table.

    Attributes:
      build: from the tree of `MatrixAxes` to the transformation.
      origin: `optax` for a peer, `optim_jax` for ours.
    """

    build: Callable[[MatrixAxesTree], optax.GradientTransformation]
    origin: str


def _optax_muon(axes: MatrixAxesTree) -> optax.GradientTransformation:
    """Optax's Muon on the hidden matrices, Adam elsewhere."""

    def dimension_numbers(leaf: optim_jax.MatrixAxes) -> Any:
        if leaf.kind != "hidden":
            return None
        return optax.contrib.MuonDimensionNumbers(leaf.reduction_axes, leaf.output_axes)

    numbers = jax.tree.map(
        dimension_numbers, axes, is_leaf=lambda x: isinstance(x, optim_jax.MatrixAxes)
    )
    return optax.contrib.muon(
        LEARNING_RATE, muon_weight_dimension_numbers=numbers, **_DECAY
    )


def _adamw(_: MatrixAxesTree) -> optax.GradientTransformation:
    return optax.adamw(LEARNING_RATE, **_ADAM, **_DECAY)


def _optax(make: Callable[..., optax.GradientTransformation], **kwargs) -> ContenderRow:
    return ContenderRow(lambda _: make(LEARNING_RATE, **kwargs), "optax")


def _ours(build: Callable[..., optax.GradientTransformation]) -> ContenderRow:
    return ContenderRow(build, "optim_jax")


CONTENDERS: dict[str, ContenderRow] = {
    "adamw": ContenderRow(_adamw, "optax"),
    "sgd_momentum": _optax(optax.sgd, momentum=0.9),
    "lion": _optax(optax.lion, **_DECAY),
    "lamb": _optax(optax.lamb, **_DECAY),
    "adafactor": _optax(optax.adafactor),
    "schedule_free_adamw": _optax(
        optax.contrib.schedule_free_adamw, b2=0.95, eps=1e-8, **_DECAY
    ),
    "optax_muon": ContenderRow(_optax_muon, "optax"),
    "gpa_adamw": _ours(lambda _: optim_jax.gpa_adamw(LEARNING_RATE, **_ADAM, **_DECAY)),
    "gpa_adamw_schedule_free": _ours(
        lambda _: optim_jax.gpa_adamw(
            LEARNING_RATE,
            **{**_ADAM, "b1": 0.0},
            **_DECAY,
            averaging="schedule_free",
            mu_y=0.9,
        )
    ),
    "gpa(adamw)": _ours(lambda axes: optim_jax.gpa(_adamw(axes))),
    "schedule_free(adam)": _ours(
        lambda _: optim_jax.schedule_free(
            optax.adam(LEARNING_RATE, **{**_ADAM, "b1": 0.0}), LEARNING_RATE
        )
    ),
    "adamw+primal_averaging": _ours(
        lambda axes: optax.chain(_adamw(axes), optim_jax.scale_by_primal_averaging())
    ),
    # A step without refresh; `preconditioning` times the refreshes.
    "shampoo": _ours(
        lambda _: optim_jax.shampoo(LEARNING_RATE, refresh="external", **_DECAY)
    ),
    "soap": _ours(
        lambda _: optim_jax.soap(LEARNING_RATE, refresh="external", **_DECAY)
    ),
    "signum": _ours(lambda _: optim_jax.signum(LEARNING_RATE, **_DECAY)),
    "muon": _ours(lambda axes: optim_jax.muon(LEARNING_RATE, axes, **_DECAY)),
    "muon_bfloat16": _ours(
        lambda axes: optim_jax.muon(LEARNING_RATE, axes, ns_dtype="bfloat16", **_DECAY)
    ),
    "diloco(adamw)": _ours(
        lambda axes: optim_jax.single_worker_diloco(_adamw(axes), inner_steps=16)
    ),
}
