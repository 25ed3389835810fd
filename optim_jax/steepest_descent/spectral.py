"""`scale_by_spectral`: the directions of the hidden matrices of a tree."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from optim_jax.linalg import MUON_COEFFICIENTS
from optim_jax.steepest_descent.first_moment import (
    average,
    debiased,
    needs_buffer,
    read_decay_rate,
    scalar_like,
    wide_dtype,
    zero_moment,
)
from optim_jax.steepest_descent.matrix_stacks import map_matrices
from optim_jax.steepest_descent.matsign import (
    METHODS,
    Coefficients,
    Method,
    matsign,
    read_dtype,
    read_steps,
)
from optim_jax.steepest_descent.precision import check_real_leaves
from optim_jax.trees.matrices import (
    axes_of_leaves,
    check_stated,
    is_absent,
    matrix_shape,
)
from optim_jax.typing import MatrixAxes, MatrixAxesTree, Params, Updates
from optim_jax.validation import (
    as_static,
    check_choice,
    check_constant,
    check_inexact_leaves,
    check_nonnegative,
    check_value,
)

_NAME = "scale_by_spectral"
SHAPE_SCALES = ("none", "width")


class SpectralState(NamedTuple):
    """State of `scale_by_spectral`."""

    count: jax.Array  # int32, steps taken
    # M_t like the params, MaskedNode for leaves that are not hidden; mu_dtype or at
    # least float32. None for b1 = 0.
    momentum: Any


def scale_by_spectral(
    matrix_axes: MatrixAxesTree,
    *,
    b1: float | jax.Array = 0.0,
    nesterov: bool = False,
    method: Method = "svd",
    ns_coeffs: Coefficients = MUON_COEFFICIENTS,
    ns_steps: int = 5,
    eps: float | jax.Array = 1e-8,
    shape_scale: Literal["none", "width"] = "none",
    consistent_rms: float | jax.Array | None = None,
    mu_dtype: Any = None,
    ns_dtype: Any = None,
    mesh: Mesh | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Steepest-descent directions in the spectral norm, of the hidden matrices.

    .. math::

      M_t = b_1 M_{t-1} + (1 - b_1) G_t, \quad
      P_t = \alpha \operatorname{matsign}(\hat M_t), \quad
      \operatorname{matsign}(U \Sigma V^T) = U V^T,

    with the average :math:`\hat M_t` debiased and, on request, looking ahead. The sign
    of a matrix maximises :math:`\langle G, P \rangle` over
    :math:`\|P\|_{S_\infty} \le 1`, where it is the sum of the singular values of G.
    Leaves that are not hidden pass unchanged.

    Matrices of equal shape, whichever leaf they are in, are iterated together. On a
    mesh, each device takes an equal share of them.

    Args:
      matrix_axes: what each leaf is: a tree with one `MatrixAxes` per leaf, or a
        function from params to it, e.g. of `matrix_axes_from_rules`. None may stand for
        leaves of rank 0 and 1.
      b1: decay of the average in [0, 1). The number 0 keeps no buffer; with
        `optax.inject_hyperparams` name `b1` among `static_args` for that.
      nesterov: whether the average looks ahead.
      method: `"svd"`, exact: singular values up to max(m, n) machine epsilons times
        the largest count as zero. `"polar"`: products only, and within 1e-3 of it, in
        spectral norm, for singular values within a factor of 1e3. `"newton_schulz"`:
        products only, singular values near one.
      ns_coeffs: (a, b, c) of the Newton-Schulz steps
        :math:`X \leftarrow a X + (b G + c G^2) X`, :math:`G = X X^T`, or a triple per
        step.
      ns_steps: number of Newton-Schulz steps; not read where each step has a triple.
      eps: added to the Frobenius norm by which Newton-Schulz divides, >= 0.
      shape_scale: :math:`\alpha`: `"none"` is 1, `"width"` is
        :math:`\sqrt{\max(1, \text{fan-out} / \text{fan-in})}`.
      consistent_rms: c > 0 for :math:`\alpha = c \sqrt{\max(\text{fan-in},
        \text{fan-out})}` instead, so that the entries have the root mean square c.
      mu_dtype: dtype of the average; None means that of the params, and float32 for
        half-precision leaves.
      ns_dtype: dtype in which Newton-Schulz multiplies, e.g. `"bfloat16"`; None means
        that of the average.
      mesh: the devices that share the matrices out; None leaves that to the compiler.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `SpectralState`. A leaf without
      a gradient (None) keeps its average.

    Raises:
      ValueError: an argument is out of range, a leaf is an integer array or, if hidden,
        complex, `matrix_axes` does not fit, or no leaf is hidden.

    References:
      Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein, 2024,
      https://kellerjordan.github.io/posts/muon.
      Naganuma, Gupta, Briki, Mitliagkas, Rish, Raman, Shi, 2026,
      https://arxiv.org/abs/2602.03001.
      Liu et al., 2025, https://arxiv.org/abs/2502.16982, for `consistent_rms`.
    """
    b1 = read_decay_rate(b1)
    _check_arguments(method, shape_scale, eps, consistent_rms, mesh)
    check_stated(_NAME, matrix_axes)
    if consistent_rms is not None:
        consistent_rms = as_static("consistent_rms", consistent_rms)
    direction = matsign(
        method,
        read_steps(ns_coeffs, ns_steps),
        as_static("eps", eps),
        read_dtype(ns_dtype),
    )

    def init(params: Params) -> SpectralState:
        hidden = hidden_axes(_NAME, params, matrix_axes)
        check_leaves(_NAME, params, hidden)
        count = jnp.zeros([], jnp.int32)
        if not needs_buffer(b1):
            return SpectralState(count, None)

        def buffer(leaf: Any, axes: MatrixAxes | None) -> Any:
            if is_absent(leaf):
                return leaf
            return optax.MaskedNode() if axes is None else zero_moment(leaf, mu_dtype)

        leaves, structure = jax.tree.flatten(params, is_leaf=is_absent)
        return SpectralState(count, structure.unflatten(map(buffer, leaves, hidden)))

    def update(
        updates: Updates, state: Any, params: Params | None = None, **_: Any
    ) -> tuple[Updates, SpectralState]:
        del params
        leaves, structure = jax.tree.flatten(updates, is_leaf=is_absent)
        hidden = {
            index: axes
            for index, axes in enumerate(hidden_axes(_NAME, updates, matrix_axes))
            if axes is not None and leaves[index].size
        }
        count, momentum = jnp.asarray(optax.safe_increment(state.count)), state.momentum
        filtered = [leaves[i].astype(wide_dtype(leaves[i])) for i in hidden]
        if needs_buffer(b1):
            moments = structure.flatten_up_to(momentum)
            for position, index in enumerate(hidden):
                gradient, old = filtered[position], moments[index]
                new = average(old, gradient, b1)
                filtered[position] = debiased(new, gradient, b1, count, nesterov)
                moments[index] = new.astype(old.dtype)
            momentum = structure.unflatten(moments)
        axes = list(hidden.values())
        directions = map_matrices(direction, filtered, axes, mesh)
        for index, found in zip(hidden, directions, strict=True):
            factor = _multiplier(found, hidden[index], shape_scale, consistent_rms)
            leaves[index] = (factor * found).astype(leaves[index].dtype)
        return structure.unflatten(leaves), SpectralState(count, momentum)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_arguments(
    method: str, shape_scale: str, eps: Any, consistent_rms: Any, mesh: Any
) -> None:
    check_choice("method", method, METHODS)
    check_choice("shape_scale", shape_scale, SHAPE_SCALES)
    check_constant("eps", eps)
    check_nonnegative(eps=eps)
    if consistent_rms is not None:
        check_constant("consistent_rms", consistent_rms)
        check_value(
            "consistent_rms",
            consistent_rms,
            "finite and > 0",
            lambda v: 0.0 < v < math.inf,
        )
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f"mesh must be a jax.sharding.Mesh or None, got {mesh!r}")


def hidden_axes(
    name: str, tree: Any, matrix_axes: MatrixAxesTree
) -> list[MatrixAxes | None]:
    """The axes of hidden leaves, None of others, as `axes_of_leaves` orders them."""
    return [
        axes if axes is not None and axes.kind == "hidden" else None
        for axes in axes_of_leaves(name, tree, matrix_axes)
    ]


def check_leaves(name: str, params: Params, hidden: list[MatrixAxes | None]) -> None:
    """Refuses trees that have leaves, but no hidden or unusable ones.

    Raises:
      ValueError: there is no hidden leaf, a leaf is an integer array, or a hidden one
        complex.
    """
    check_inexact_leaves(name, params)
    leaves, structure = jax.tree.flatten(params, is_leaf=is_absent)
    if not any(hidden) and not all(map(is_absent, leaves)):
        raise ValueError(
            f"matrix_axes of {name} must state at least one hidden leaf, of which it "
            "would take the direction in the spectral norm; none is"
        )
    matrices = [
        optax.MaskedNode() if axes is None else leaf
        for leaf, axes in zip(leaves, hidden, strict=True)
    ]
    check_real_leaves(name, structure.unflatten(matrices))


def _multiplier(
    leaf: jax.Array, axes: MatrixAxes, shape_scale: str, consistent_rms: Any
) -> Any:
    """The factor of a leaf that depends on its shape only."""
    fan_in, fan_out = matrix_shape(leaf.shape, axes)
    if consistent_rms is not None:
        return scalar_like(consistent_rms, leaf) * math.sqrt(max(fan_in, fan_out))
    return math.sqrt(max(1.0, fan_out / fan_in)) if shape_scale == "width" else 1.0
