"""The statistics of one sample that progressive batching decides by."""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from optim_jax.quasi_newton.compact_form import (
    combine,
    compose,
    image_products,
    inverse_hessian_combination,
)
from optim_jax.quasi_newton.directional_derivatives import (
    directional_derivatives,
    sample_losses,
)
from optim_jax.quasi_newton.gradient_variance import (
    exact_variance,
    hutchinson_variance,
    read_weights,
    sample_variance,
)
from optim_jax.quasi_newton.group_estimates import (
    group_means,
    group_variance,
    measure_groups,
)
from optim_jax.quasi_newton.initial_step import initial_step
from optim_jax.quasi_newton.memory import (
    LBFGSMemory,
    check_real_leaves,
    inner_products,
)
from optim_jax.quasi_newton.sample_tests import (
    SAMPLE_TESTS,
    TestMoments,
    judge_sample,
    unbiased_square,
)
from optim_jax.trees.paths import named_leaves
from optim_jax.validation import check_choice, check_value

VARIANCES = ("groups", "hutchinson", "exact")


class IPQNStats(NamedTuple):
    """What `ipqn_statistics` returns: scalars, in at least float32.

    Attributes:
      ratio: of the test, <= 1 passes; infinite without a detectable signal, NaN for the
        test `"none"`.
      r: ||H g||^2.
      r_U: estimate of ||H grad F||^2 without the noise of g; may be negative.
      r_F: the same for a draw without replacement; r_U for an infinite population.
      var: variance of g_i^T u about r with u = H^2 g, divisor n - 1.
      b_new: int32, the size that would pass, after the caps; may be below b.
      alpha0: first trial step 1 / (1 + Var(g_i) / (b ||g||^2)).
    """

    ratio: jax.Array
    r: jax.Array
    r_U: jax.Array
    r_F: jax.Array
    var: jax.Array
    b_new: jax.Array
    alpha0: jax.Array


def ipqn_statistics(
    per_sample_losses: Callable[[Any], jax.Array],
    params: Any,
    grad: Any,
    memory: LBFGSMemory,
    *,
    test: str = "ipqn_unbiased",
    theta: Any = 0.9,
    groups: int = 8,
    group_grads: Any = None,
    group_sizes: Any = None,
    weights: Any = None,
    population: Any = math.inf,
    finite_population: bool = False,
    growth_cap: Any = 2.0,
    variance: str = "groups",
    key: Any = None,
) -> IPQNStats:
    r"""Is the sampled quasi-Newton direction reliable, and which sample would do?

    With the mean gradient g of b samples, :math:`u = H^2 g` and :math:`r = \|H g\|^2`,
    the test of the paper asks for

    .. math::

      \frac{1}{b} \operatorname{Var}(g_i^T u) \le \theta^2 r^2, \qquad
      \operatorname{Var}(g_i^T u) = \frac{1}{n - 1} \sum_i (g_i^T u - r)^2.

    All the products :math:`g_i^T u` come from one Jacobian-vector product of the
    losses; no gradient of a sample is formed. r contains the noise of g itself, so the
    default test uses in its place, from the means :math:`g^{(j)}` of M groups,

    .. math::

      r_U = \frac{\|\sum_j H g^{(j)}\|^2 - \sum_j \|H g^{(j)}\|^2}{M (M - 1)}.

    The other tests, the size proposed and the finite population are described in
    `optim_jax.quasi_newton.sample_tests`. Pure; may be called under `jax.jit` with the
    strings, flags and `groups` static.

    Args:
      per_sample_losses: function from params to (b,) losses, each a function of its
        own sample (no batch normalisation, fixed keys in stochastic layers).
      params: tree of real floating-point arrays.
      grad: mean gradient g over the sample, weighted as `weights`, like params. For
        `"ipqn_window"` the average of recent gradients; `alpha0` is then that of the
        average.
      memory: the L-BFGS pairs, which define H.
      test: one of `"ipqn_unbiased"`, `"ipqn"`, `"ipqn_window"`, `"inner_product"`,
        `"norm"`, `"none"`: what `ratio` and `b_new` mean. `r`, `r_U`, `r_F` and `var`
        do not depend on it. `"inner_product"` takes a second Jacobian-vector product.
      theta: constant of the test, > 0. The smaller, the larger the samples.
      groups: M, in 2 ... b, where `group_grads` is None: the samples are split by
        position into M parts, and M pullbacks of all losses give their means.
      group_grads: group means where they exist already, leaves (M, ...) with M in
        2 ... b; no pullback is then taken.
      group_sizes: (M,) samples, or sums of weights, in each of `group_grads`; None for
        parts whose sizes differ by at most one. A group of size 0 does not count.
      weights: (b,) weights >= 0, at least two of them positive; None for ones. Means
        divide by their sum, so that their scale does not matter; b and n count the
        positive ones, and groups are formed of those. Zeros thus pad a sample.
      population: N, the number of samples there are, or infinity for a stream.
      finite_population: judge as a draw without replacement from N.
      growth_cap: the most `b_new` may be of b, > 1; infinity for no cap. Without a
        signal and a cap `b_new` is N, or 2^31 - 1 for a stream.
      variance: how the variance of the gradients is found, for `alpha0` and the norm
        test: `"groups"` from the group means; `"hutchinson"` from four products with
        random signs, unbiased; `"exact"` from the gradients of the samples, a few at a
        time, at the cost of b gradients of the mean (for tests).
      key: random key of `"hutchinson"`; None for a fixed one.

    Returns:
      An `IPQNStats`. A sample of b = N is judged as any other: that it always passes,
      and that its first step is 1, is left to the caller.

    Raises:
      ValueError: an argument is out of range or of another shape; the function does not
        return one loss per sample; a leaf is an integer array.
      TypeError: a leaf is complex; the losses have no derivative.

    References:
      Bollapragada, Mudigere, Nocedal, Shi, Tang, 2018,
      https://arxiv.org/abs/1802.05374: the test, and equation 14 for `alpha0`. The
      forward-mode product, :math:`r_U` and :math:`r_F`, the caps and the treatment of
      weights are this project's choices (derived, not read).
    """
    check_real_leaves("ipqn_statistics", params)
    length = sample_losses(per_sample_losses, params).shape[0]
    _check_options(test, variance, theta, growth_cap)
    _check_trees(params, grad, memory)
    groups = _check_groups(length, groups, params, group_grads, group_sizes)
    _check_population(population, _check_weights(length, weights))

    sample = read_weights(length, weights, memory.sy.dtype)
    if group_grads is None:
        group_grads, group_sizes = group_means(
            per_sample_losses, params, sample, groups
        )
    group = measure_groups(memory, group_grads, group_sizes, sample)

    # All applications of H to known vectors at once: g, the group means and their sum.
    of_grad = inner_products(memory, grad)
    products = jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest]),
        of_grad,
        group.products,
    )
    directions = jax.vmap(inverse_hessian_combination, (None, 0))(memory, products)
    images = jax.vmap(image_products, (None, 0, 0))(memory, directions, products)
    once, image = jax.tree.map(lambda x: x[0], (directions, images))
    twice = inverse_hessian_combination(memory, image)
    u = combine(memory, compose(twice, once), grad)

    r, used = image.square, group.sizes > 0
    r_unbiased = unbiased_square(
        images.square[-1], jnp.where(used, images.square[1:-1], 0), jnp.sum(used)
    )
    # Without the barrier, XLA computes r again for every sample.
    along_u = directional_derivatives(per_sample_losses, params, u)
    var = tested = sample_variance(along_u, lax.optimization_barrier(r), sample)
    if test == "inner_product":
        along_grad = directional_derivatives(per_sample_losses, params, grad)
        tested = sample_variance(along_grad, of_grad.square, sample)
    if variance == "groups":
        gradient_variance = group_variance(
            group.squares, group.sizes, group.mean_square
        )
    elif variance == "hutchinson":
        gradient_variance = hutchinson_variance(
            per_sample_losses, params, grad, sample, key
        )
    else:
        gradient_variance = exact_variance(per_sample_losses, params, grad, sample)

    verdict = judge_sample(
        test,
        TestMoments(r, r_unbiased, tested, gradient_variance, of_grad.square),
        sample.count,
        theta=theta,
        population=population,
        finite_population=finite_population,
        growth_cap=growth_cap,
    )
    alpha0 = initial_step(
        "variance",
        gradient_variance=gradient_variance,
        gradient_square=of_grad.square,
        variance=var,
        r=r,
        batch_size=sample.count,
        previous=None,
    )
    return IPQNStats(
        ratio=verdict.ratio,
        r=r,
        r_U=r_unbiased,
        r_F=verdict.r_finite,
        var=var,
        b_new=verdict.batch_size,
        alpha0=alpha0,
    )


def _check_options(test: Any, variance: Any, theta: Any, growth_cap: Any) -> None:
    check_choice("test", test, SAMPLE_TESTS)
    check_choice("variance", variance, VARIANCES)
    check_value("theta", theta, "finite and > 0", lambda v: 0.0 < v < math.inf)
    check_value("growth_cap", growth_cap, "> 1", lambda v: v > 1.0)


def _check_trees(params: Any, grad: Any, memory: LBFGSMemory) -> None:
    """The gradient and the stored pairs must be trees of the shapes of the params."""
    _check_like("grad", grad, params)
    slots = (memory.sy.shape[0],)
    _check_like("memory.s", memory.s, params, slots)
    _check_like("memory.y", memory.y, params, slots)


def _check_like(
    name: str, tree: Any, params: Any, leading: tuple[int, ...] = ()
) -> None:
    if jax.tree.structure(tree) != jax.tree.structure(params):
        raise ValueError(
            f"{name} must have the structure of the params, "
            f"{jax.tree.structure(params)}, got {jax.tree.structure(tree)}"
        )
    for (path, leaf), param in zip(
        named_leaves(tree), jax.tree.leaves(params), strict=True
    ):
        expected = leading + jnp.shape(param)
        if jnp.shape(leaf) != expected:
            raise ValueError(
                f"{name}: leaf {path!r} must have shape {expected}, "
                f"got {jnp.shape(leaf)}"
            )


def _check_groups(
    length: int, groups: Any, params: Any, group_grads: Any, group_sizes: Any
) -> int:
    """Returns the number of groups, that of the group means where they are given."""
    name = "groups"
    if group_grads is not None:
        first = jax.tree.leaves(group_grads)[:1]
        groups = jnp.shape(first[0])[0] if first and jnp.ndim(first[0]) else 0
        _check_like("group_grads", group_grads, params, (groups,))
        name = "axis 0 of group_grads"
    elif group_sizes is not None:
        raise ValueError("group_sizes describes group_grads, which is None")
    if not isinstance(groups, numbers.Integral) or not 2 <= int(groups) <= length:
        raise ValueError(
            f"{name} must be an integer in 2 ... {length}, the number of samples, "
            f"got {groups!r}"
        )
    if group_sizes is not None:
        _check_counts("group_sizes", group_sizes, int(groups), "group")
    return int(groups)


def _check_weights(length: int, weights: Any) -> int:
    """Returns how many are known to be positive, at least two."""
    if weights is None:
        return length
    _check_counts("weights", weights, length, "loss")
    return 2 if isinstance(weights, Tracer) else int((np.asarray(weights) > 0).sum())


def _check_counts(name: str, values: Any, length: int, per: str) -> None:
    if jnp.shape(values) != (length,):
        raise ValueError(
            f"{name} must have shape ({length},), one per {per}, "
            f"got shape {jnp.shape(values)}"
        )
    if isinstance(values, Tracer):
        return
    known = np.asarray(values)
    if not (np.isfinite(known) & (known >= 0)).all() or (known > 0).sum() < 2:
        raise ValueError(
            f"{name} must be finite and >= 0, with at least two > 0, got "
            f"{np.array2string(known, threshold=8)}"
        )


def _check_population(population: Any, least: int) -> None:
    check_value(
        "population",
        population,
        f"at least {least}, the number of samples",
        lambda v: v >= least,
    )
