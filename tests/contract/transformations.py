"""The registry: one row per public transformation. A new method adds a row here.

Every check of this folder runs on every row. A row says how to build the
transformation and what it promises; what a foreign peer is known not to keep stands
in its `exceptions` and must really fail (strict xfail), so that the entry goes when
the peer is mended.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim_jax
from tests.contract.line_searches import armijo_on_a_bowl

RATE = 1e-2


def schedule(count):
    """A changing learning rate that starts at `RATE`."""
    return RATE / (1.0 + count)


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One transformation and its promises.

    Attributes:
      name: test id, as a user would write the call.
      factory: what a user calls, and what `optax.inject_hyperparams` is given.
      arguments: learning rate (number or schedule) -> keyword arguments of `factory`.
      public: public names of `optim_jax` that the row stands for besides `factory`.
      static_args: keyword arguments that `optax.inject_hyperparams` must not trace.
      extra_args: keyword arguments that every `update` must be given.
      needs_params: `update` without params is a `ValueError`; otherwise `update`
        must not look at them.
      init_needs_values: the initial state depends on the values of the params.
      elementwise: an entry of the update depends on no other entry, so a sharded
        update needs no communication.
      buffers: params-sized float32 buffers that the state of float32 params holds
        (None: not a whole number of them).
      rtol: tolerance of the comparisons that are equal in exact arithmetic, relative
        to the largest entry of a leaf.
      exceptions: name of a check -> why the transformation is known to fail it.
    """

    name: str
    factory: Callable[..., optax.GradientTransformation]
    arguments: Callable[[Any], dict[str, Any]]
    public: tuple[str, ...] = ()
    static_args: tuple[str, ...] = ()
    extra_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needs_params: bool = True
    init_needs_values: bool = False
    elementwise: bool = True
    buffers: int | None = None
    rtol: float = 1e-5
    exceptions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def make(self, learning_rate=RATE):
        return self.factory(**self.arguments(learning_rate))

    def inject(self, learning_rate=RATE, hyperparam_dtype=None):
        factory = optax.inject_hyperparams(
            self.factory, self.static_args, hyperparam_dtype
        )
        return factory(**self.arguments(learning_rate))

    def has_learning_rate(self):
        return self.arguments(RATE) != self.arguments(schedule)


def adamw_then_averaging(learning_rate, weight_decay, mu_x, mu_y):
    return optax.chain(
        optax.adamw(learning_rate, weight_decay=weight_decay),
        optim_jax.scale_by_primal_averaging(mu_x, mu_y),
    )


# The damping keeps the rounding of singular factors from being amplified.
_SMALL = {
    "max_preconditioner_dim": 4,
    "target_dimensionality": 2,
    "relative_epsilon": 1e-2,
}


# The factor of a vector is singular at first, and its eigenbasis arbitrary.
_FULL_RANK = {"precondition_1d": False, "eps": 1e-4}
_GRAFTED = {
    "direction": optim_jax.scale_by_shampoo(**_SMALL),
    "magnitude": optax.scale_by_adam(),
}


def shampoo_row(name, factory=optim_jax.shampoo, public=(), static=(), **options):
    """A row of the Shampoo family: blocks in stacks, products across entries."""
    return Row(
        name,
        factory,
        lambda rate: {"learning_rate": rate, "weight_decay": 0.1, **_SMALL, **options},
        public=public,
        static_args=(*optim_jax.SHAMPOO_STATIC_ARGS, *static),
        elementwise=False,
        rtol=1e-4,
    )


def direction_row(name, factory, **options):
    """A row of `scale_by_shampoo` or `scale_by_soap`."""
    return Row(
        name,
        factory,
        lambda rate: {**_SMALL, **options},
        static_args=tuple(
            name
            for name in optim_jax.SHAMPOO_STATIC_ARGS
            if name in inspect.signature(factory).parameters
        ),
        needs_params=False,
        elementwise=False,
        rtol=1e-4,
    )


def multibatch_lbfgs(learning_rate, memory_size, eps):
    return optax.chain(
        optim_jax.scale_by_multibatch_lbfgs(memory_size, eps=eps),
        optax.scale_by_learning_rate(learning_rate),
    )


_MASKED = (
    "buffers of other leaves are MaskedNode: Optax's function needs is_leaf, as for "
    "optax.partition"
)
_MATRIX_AXES = optim_jax.matrix_axes_from_rules(
    [(r"kernel$|zero_size$", optim_jax.MatrixAxes("hidden"))]
)


def spectral_row(name, factory, static=(), needs_params=True, rtol=1e-4, **options):
    """A row of the spectral family: products across the entries of hidden matrices."""
    return Row(
        name,
        factory,
        lambda rate: {
            **({"learning_rate": rate, "weight_decay": 0.1} if needs_params else {}),
            "matrix_axes": _MATRIX_AXES,
            **options,
        },
        static_args=("matrix_axes", *static),
        needs_params=needs_params,
        elementwise=False,
        rtol=rtol,
        exceptions={
            "test_bare_array": "a tree without a hidden matrix is refused",
            "test_map_params_pairs_every_buffer_with_its_parameter": _MASKED,
        },
    )


def tables_and_scalars(learning_rate, lr_decay):
    """Row-wise Adagrad as it is used: what has no rows goes to its companion."""

    def label(params):
        return jax.tree.map(lambda p: "rows" if jnp.ndim(p) else "scalars", params)

    return optax.partition(
        {
            "rows": optim_jax.row_wise_adagrad(learning_rate, lr_decay=lr_decay),
            "scalars": optim_jax.row_sparse.dense_adagrad(
                learning_rate, lr_decay=lr_decay
            ),
        },
        label,
    )


# Of four gradients of some other tree: a measurement reads nothing but the moments.
_MOMENTS = optim_jax.noise_scale.Moments(
    mean={"w": np.float32([1.0, -2.0])},
    m2={"w": np.float32([3.0, 0.5])},
    count=np.int32(4),
    weight=np.float32(32.0),
)

_NO_REFUSAL = "Optax does not refuse integer leaves"
_HALF = "Optax keeps its statistics in the params' dtype"
_PROMOTES = "Optax's update takes the dtype of a float32 hyperparameter"

OURS = (
    Row(
        "gpa(adamw)",
        optim_jax.gpa,
        lambda rate: {"base": optax.adamw(rate, weight_decay=0.1), "mu_x": 0.9},
        init_needs_values=True,
        buffers=3,
    ),
    Row(
        "gpa(sgd(momentum), weight_decay)",
        optim_jax.gpa,
        lambda rate: {
            "base": optax.sgd(rate, momentum=0.9),
            "learning_rate": rate,
            "weight_decay": 0.1,
            "mu_y": 0.9,
        },
        init_needs_values=True,
        buffers=2,
    ),
    Row(
        "gpa(lion)",
        optim_jax.gpa,
        lambda rate: {"base": optax.lion(rate), "base_params": "y"},
        init_needs_values=True,
        buffers=2,
    ),
    Row(
        "gpa_adamw",
        optim_jax.gpa_adamw,
        lambda rate: {"learning_rate": rate, "weight_decay": 0.1},
        init_needs_values=True,
        buffers=3,
    ),
    Row(
        "gpa_adamw(averaging='schedule_free')",
        optim_jax.gpa_adamw,
        lambda rate: {
            "learning_rate": rate,
            "weight_decay": 0.1,
            "decay_mode": "shrink_y",
            "averaging": "schedule_free",
        },
        init_needs_values=True,
        buffers=3,
        rtol=1e-4,  # one of the updates nearly cancels
    ),
    Row(
        "schedule_free(adam(b1=0))",
        optim_jax.schedule_free,
        lambda rate: {"base": optax.adam(rate, b1=0.0), "learning_rate": rate},
        init_needs_values=True,
        buffers=3,
    ),
    Row(
        "scale_by_primal_averaging",
        optim_jax.scale_by_primal_averaging,
        lambda rate: {"mu_x": 0.9, "mu_y": 0.7},
        needs_params=False,
        buffers=1,
    ),
    Row(
        "chain(adamw, scale_by_primal_averaging)",
        adamw_then_averaging,
        lambda rate: {
            "learning_rate": rate,
            "weight_decay": 0.1,
            "mu_x": 0.9,
            "mu_y": 0.0,
        },
        buffers=3,
        exceptions={
            "test_half_precision_statistics_are_float32": _HALF,
            "test_inject_float32_hyperparams_over_half_precision": _PROMOTES,
        },
    ),
    Row(
        "single_worker_diloco(adamw)",
        optim_jax.single_worker_diloco,
        lambda rate: {"inner": optax.adamw(rate), "inner_steps": 2},
        init_needs_values=True,
        buffers=4,
    ),
    shampoo_row(
        "shampoo",
        public=("RootInverse", "Eigh", "ShampooState", "SHAMPOO_STATIC_ARGS"),
    ),
    shampoo_row("soap", optim_jax.soap, precondition_frequency=2, **_FULL_RANK),
    shampoo_row("kl_shampoo", optim_jax.kl_shampoo, public=("KLRootInverse",)),
    shampoo_row(
        "shampoo(CoupledNewton)",
        public=("CoupledNewton", "Momentum"),
        preconditioner=optim_jax.RootInverse(method=optim_jax.CoupledNewton()),
        momentum=optim_jax.Momentum(0.9),
        weight_decay_type="l2",
    ),
    shampoo_row(
        "shampoo(CoupledHigherOrder)",
        public=("CoupledHigherOrder",),
        preconditioner=optim_jax.RootInverse(
            method=optim_jax.CoupledHigherOrder(rel_eps=1e-2, abs_eps=1e-6)
        ),
    ),
    shampoo_row(
        "soap(QR)",
        optim_jax.soap,
        public=("EigenvalueCorrected", "QR"),
        preconditioner=optim_jax.EigenvalueCorrected(method=optim_jax.QR()),
        precondition_frequency=2,
        **_FULL_RANK,
    ),
    shampoo_row(
        "shampoo(Eigendecomposed, staggered)",
        public=("Eigendecomposed",),
        preconditioner=optim_jax.Eigendecomposed(),
        precondition_1d=False,
        precondition_frequency=2,
        refresh="staggered",
        static=("precondition_frequency",),
    ),
    shampoo_row(
        "shampoo(KLEigendecomposed, external)",
        public=("KLEigendecomposed",),
        preconditioner=optim_jax.KLEigendecomposed(),
        refresh="external",
    ),
    shampoo_row(
        "shampoo(Sign)",
        public=("Sign",),
        preconditioner=optim_jax.Sign(),
        grafting=None,
    ),
    shampoo_row(
        "shampoo(Diagonal)",
        public=("Diagonal", "Graft"),
        preconditioner=optim_jax.Diagonal("adam"),
        grafting=optim_jax.Graft("rmsprop"),
    ),
    direction_row(
        "scale_by_shampoo", optim_jax.scale_by_shampoo, grafting="adam", b3=0.8
    ),
    direction_row("scale_by_soap", optim_jax.scale_by_soap, **_FULL_RANK),
    Row(
        "graft(scale_by_shampoo, scale_by_adam)",
        optim_jax.graft,
        lambda rate: _GRAFTED,
        needs_params=False,
        elementwise=False,
        rtol=1e-4,
        exceptions={
            "test_half_precision_statistics_are_float32": _HALF,
        },
    ),
    Row(
        "sign_sgd",
        optim_jax.sign_sgd,
        lambda rate: {"learning_rate": rate, "weight_decay": 0.1},
        buffers=0,
    ),
    Row(
        "signum",
        optim_jax.signum,
        lambda rate: {"learning_rate": rate, "weight_decay": 0.1},
        buffers=1,
    ),
    Row(
        "scale_by_signum",
        optim_jax.scale_by_signum,
        lambda rate: {"b1": 0.9},
        needs_params=False,
        buffers=1,
    ),
    spectral_row(
        "scale_by_spectral(polar, nesterov)",
        optim_jax.scale_by_spectral,
        static=("ns_steps",),
        needs_params=False,
        rtol=1e-3,  # it lifts singular values, and their rounding, a thousandfold
        b1=0.9,
        nesterov=True,
        method="polar",
        consistent_rms=0.2,
    ),
    Row(
        "chain(scale_by_multibatch_lbfgs, scale_by_learning_rate)",
        multibatch_lbfgs,
        lambda rate: {"learning_rate": rate, "memory_size": 2, "eps": 1e-3},
        public=("scale_by_multibatch_lbfgs",),
        static_args=("memory_size",),
        elementwise=False,
        rtol=1e-4,
        exceptions={"test_inject_float32_hyperparams_over_half_precision": _PROMOTES},
    ),
    Row(
        "scale_by_armijo",
        armijo_on_a_bowl,
        lambda rate: {"c1": 1e-4, "factor": 0.5, "max_steps": 30},
        public=("scale_by_armijo", "with_filtered_args"),
        elementwise=False,
        buffers=0,
    ),
    spectral_row("specsgd", optim_jax.specsgd, static=("b1",)),
    spectral_row("muon", optim_jax.muon, static=("ns_steps",)),
    Row(
        "track_noise_scale(moments)",
        optim_jax.track_noise_scale,
        lambda rate: {"geometry": "sign", "every": 2},
        extra_args={"moments": _MOMENTS},
        needs_params=False,
        buffers=0,
    ),
    Row(
        "partition(row_wise_adagrad, dense_adagrad)",
        tables_and_scalars,
        lambda rate: {"learning_rate": rate, "lr_decay": 0.1},
        public=("row_wise_adagrad",),
        needs_params=False,
        elementwise=False,  # the mean over a row
        exceptions={"test_map_params_pairs_every_buffer_with_its_parameter": _MASKED},
    ),
    Row(
        "dense_adagrad",
        optim_jax.row_sparse.dense_adagrad,
        lambda rate: {
            "learning_rate": rate,
            "lr_decay": 0.1,
            "initial_accumulator_value": 0.1,
        },
        needs_params=False,
        buffers=1,
    ),
    Row(
        "scale_by_batch_lr",
        optim_jax.scale_by_batch_lr,
        lambda rate: {},
        extra_args={"lr_scale": 1.4},
        needs_params=False,
        buffers=0,
    ),
    Row(
        "scale_by_batch_lr(schedule)",
        optim_jax.scale_by_batch_lr,
        lambda rate: {"sample_schedule": schedule},
        static_args=("sample_schedule",),
        extra_args={"lr_scale": 1.4, "samples_seen": 3},
        needs_params=False,
        buffers=0,
    ),
)

PEERS = (
    Row(
        "optax.adamw",
        optax.adamw,
        lambda rate: {"learning_rate": rate, "weight_decay": 0.1},
        buffers=2,
        exceptions={
            "test_integer_leaf_is_an_error": _NO_REFUSAL,
            "test_half_precision_statistics_are_float32": _HALF,
            "test_inject_float32_hyperparams_over_half_precision": _PROMOTES,
        },
    ),
    Row(
        "optax.contrib.schedule_free_adamw",
        optax.contrib.schedule_free_adamw,
        lambda rate: {"learning_rate": rate, "weight_decay": 0.1},
        static_args=("warmup_steps",),
        init_needs_values=True,
        buffers=2,
        rtol=1e-4,  # its update is a difference of two parameters
        exceptions={
            "test_integer_leaf_is_an_error": _NO_REFUSAL,
            "test_half_precision_statistics_are_float32": _HALF,
            "test_inject_float32_hyperparams_over_half_precision": _PROMOTES,
        },
    ),
)

ROWS = OURS + PEERS
