"""Optimizers of the spectral norm for whole models: specSGD and Muon."""

from typing import Any

import jax
import optax
from jax.sharding import Mesh

from optim_jax.linalg import MUON_COEFFICIENTS
from optim_jax.steepest_descent.descent import Mask, descend
from optim_jax.steepest_descent.matsign import Coefficients, Method
from optim_jax.steepest_descent.precision import in_single_precision
from optim_jax.steepest_descent.routing import route_hidden
from optim_jax.steepest_descent.spectral import scale_by_spectral
from optim_jax.typing import MatrixAxesTree, ScalarOrSchedule


def specsgd(
    learning_rate: ScalarOrSchedule,
    matrix_axes: MatrixAxesTree,
    *,
    b1: float | jax.Array = 0.0,
    method: Method = "svd",
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    mu_dtype: Any = None,
    other: optax.GradientTransformation | None = None,
    mesh: Mesh | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic spectral descent: each hidden matrix moves by a partial isometry.

    .. math::

      M_t = b_1 M_{t-1} + (1 - b_1) G_t, \quad
      W_{t+1} = W_t - \gamma_t (\operatorname{matsign}(M_t) + \lambda W_t), \quad
      \operatorname{matsign}(U \Sigma V^T) = U V^T

    Other leaves (embeddings, head, vectors) are updated by a second optimizer. For
    example::

      matrix_axes = optim_jax.matrix_axes_from_rules([
          (r"embedding$", optim_jax.MatrixAxes("embedding")),
          (r"head/kernel$", optim_jax.MatrixAxes("head")),
          (r"kernel$", optim_jax.MatrixAxes("hidden")),
      ])
      optimizer = optim_jax.specsgd(schedule, matrix_axes)

    Args:
      learning_rate: float, array or schedule of the 0-based step, >= 0: the change of
        every singular value.
      matrix_axes: what each leaf is: a tree with one `MatrixAxes` per leaf, or a
        function from params to it. None may stand for leaves of rank 0 and 1. Under
        `optax.inject_hyperparams` name it among `static_args`.
      b1: decay of the average in [0, 1). The number 0 keeps no buffer.
      method: `"svd"`, exact, `"polar"`, matrix products only, or `"newton_schulz"`,
        Muon's coefficients; see `scale_by_spectral`.
      weight_decay: decoupled decay :math:`\lambda` of the hidden matrices, multiplied
        by the learning rate, >= 0.
      mask: which of them are decayed: a tree or prefix of bools, or a function from
        params to one.
      mu_dtype: dtype of the average; None means that of the params, and float32 for
        half-precision leaves.
      other: optimizer of the other leaves, learning rate included; None takes
        `optax.adamw` with the same learning rate and no decay, whose statistics of
        half-precision leaves are float32.
      mesh: the devices that share the matrices out, see `scale_by_spectral`.

    Returns:
      An `optax.GradientTransformationExtraArgs` whose `update` needs params. Its state
      is that of `optax.partition` with the labels `hidden` and `other`.

    Raises:
      ValueError: an argument is out of range, a leaf is an integer array or, if hidden,
        complex, `matrix_axes` does not fit, or no leaf is hidden.

    References:
      Carlson, Cevher, Carin, 2015, https://proceedings.mlr.press/v38/carlson15.html.
      Naganuma, Gupta, Briki, Mitliagkas, Rish, Raman, Shi, 2026,
      https://arxiv.org/abs/2602.03001.
    """

    def hidden(axes: Any) -> optax.GradientTransformation:
        direction = scale_by_spectral(
            axes, b1=b1, method=method, mu_dtype=mu_dtype, mesh=mesh
        )
        return descend("specSGD", direction, learning_rate, weight_decay, mask)

    if other is None:
        other = _adamw(learning_rate, 1e-8, mu_dtype, nesterov=False)
    return route_hidden("specSGD", matrix_axes, hidden, other)


def muon(
    learning_rate: ScalarOrSchedule,
    matrix_axes: MatrixAxesTree,
    *,
    b1: float | jax.Array = 0.95,
    nesterov: bool = True,
    ns_coeffs: Coefficients = MUON_COEFFICIENTS,
    ns_steps: int = 5,
    eps: float | jax.Array = 1e-8,
    consistent_rms: float | jax.Array | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    mu_dtype: Any = None,
    other: optax.GradientTransformation | None = None,
    ns_dtype: Any = None,
    mesh: Mesh | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Muon: momentum, brought near its polar factor by Newton-Schulz.

    .. math::

      M_t = b_1 M_{t-1} + (1 - b_1) G_t, \quad
      W_{t+1} = W_t - \gamma_t (\alpha \operatorname{NS}(\hat M_t) + \lambda W_t)

    with the average debiased and looking ahead. Each of the Newton-Schulz steps takes
    the singular values s to :math:`a s + b s^3 + c s^5`, from the matrix over its
    Frobenius norm; with the default coefficients five steps take most of them to
    between 0.7 and 1.2. Other leaves (embeddings, head, vectors) are updated by a
    second optimizer. For example::

      matrix_axes = optim_jax.matrix_axes_from_rules([
          (r"embedding$", optim_jax.MatrixAxes("embedding")),
          (r"head/kernel$", optim_jax.MatrixAxes("head")),
          (r"kernel$", optim_jax.MatrixAxes("hidden")),
      ])
      optimizer = optim_jax.muon(schedule, matrix_axes)

    The step is that of `optax.contrib.muon`, whose arguments `beta`,
    `weight_decay_mask` and `muon_weight_dimension_numbers` are `b1`, `mask` and
    `matrix_axes` here. It takes less time: matrices of equal shape are iterated as one
    stack, wide ones mostly on their Gram matrices, and on a mesh each device takes its
    share.

    Args:
      learning_rate: float, array or schedule of the 0-based step, >= 0.
      matrix_axes: what each leaf is: a tree with one `MatrixAxes` per leaf, or a
        function from params to it. None may stand for leaves of rank 0 and 1. Under
        `optax.inject_hyperparams` name it, `ns_steps` and `ns_dtype` among
        `static_args`.
      b1: decay of the average in [0, 1). The number 0 keeps no buffer.
      nesterov: whether the average, and that of the default `other`, look ahead.
      ns_coeffs: (a, b, c) of every Newton-Schulz step, or a triple per step.
      ns_steps: number of steps; not read where each step has a triple.
      eps: added to the Frobenius norm, and to the root of the second moment of the
        default `other`, >= 0.
      consistent_rms: c > 0 for :math:`\alpha = c \sqrt{\max(\text{fan-in},
        \text{fan-out})}`, with which the entries of the update have a root mean square
        of about c; 0.2 is that of AdamW. None means
        :math:`\alpha = \sqrt{\max(1, \text{fan-out} / \text{fan-in})}`.
      weight_decay: decoupled decay :math:`\lambda` of the hidden matrices, multiplied
        by the learning rate, >= 0.
      mask: which of them are decayed: a tree or prefix of bools, or a function from
        params to one.
      mu_dtype: dtype of the average; None means that of the params, and float32 for
        half-precision leaves.
      other: optimizer of the other leaves, learning rate included; None takes
        `optax.adamw` with the same learning rate, `eps`, `mu_dtype` and `nesterov` and
        no decay, whose statistics of half-precision leaves are float32.
      ns_dtype: dtype in which Newton-Schulz multiplies, e.g. `"bfloat16"`; None means
        that of the average.
      mesh: the devices that share the matrices out, see `scale_by_spectral`.

    Returns:
      An `optax.GradientTransformationExtraArgs` whose `update` needs params. Its state
      is that of `optax.partition` with the labels `hidden` and `other`: for float32
      leaves 4 bytes per hidden parameter and 8 per other one.

    Raises:
      ValueError: an argument is out of range, a leaf is an integer array or, if hidden,
        complex, `matrix_axes` does not fit, or no leaf is hidden.

    References:
      Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein, 2024,
      https://kellerjordan.github.io/posts/muon.
      Liu et al., 2025, https://arxiv.org/abs/2502.16982, for `consistent_rms`.
      Naganuma, Gupta, Briki, Mitliagkas, Rish, Raman, Shi, 2026,
      https://arxiv.org/abs/2602.03001.
    """

    def hidden(axes: Any) -> optax.GradientTransformation:
        direction = scale_by_spectral(
            axes,
            b1=b1,
            nesterov=nesterov,
            method="newton_schulz",
            ns_coeffs=ns_coeffs,
            ns_steps=ns_steps,
            eps=eps,
            shape_scale="width",
            consistent_rms=consistent_rms,
            mu_dtype=mu_dtype,
            ns_dtype=ns_dtype,
            mesh=mesh,
        )
        return descend("Muon", direction, learning_rate, weight_decay, mask)

    if other is None:
        other = _adamw(learning_rate, eps, mu_dtype, nesterov=nesterov)
    return route_hidden("Muon", matrix_axes, hidden, other)


def _adamw(
    learning_rate: ScalarOrSchedule, eps: Any, mu_dtype: Any, *, nesterov: bool
) -> optax.GradientTransformationExtraArgs:
    """The default optimizer of leaves that are not hidden."""
    adamw = optax.adamw(
        learning_rate,  # type: ignore[arg-type]
        eps=eps,
        weight_decay=0.0,
        mu_dtype=mu_dtype,
        nesterov=nesterov,
    )
    return in_single_precision(adamw)
