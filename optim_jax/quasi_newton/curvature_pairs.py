"""Which pairs enter the memory: rules of the curvature along the step."""

from typing import Any

import jax
import jax.numpy as jnp

from optim_jax.quasi_newton.compact_form import combine, quadratic_form
from optim_jax.quasi_newton.hessian_products import hessian_combination
from optim_jax.quasi_newton.memory import (
    LBFGSMemory,
    PairProducts,
    as_stored,
    is_storable,
    pair_products,
    tree_dot,
    write_pair,
)
from optim_jax.quasi_newton.powell_damping import check_damping_eps, mix
from optim_jax.validation import check_choice, check_constant, check_value

CURVATURES = ("relative", "absolute", "none")

SKIPPED, ACCEPTED, DAMPED = 0, 1, 2

# Angle that s and y must enclose while no stored pair gives the Hessian a scale.
SMALLEST_COSINE = 1e-8
# Curvature above which a pair is taken for an accident.
LARGEST_RATIO = 1e8


def push_pair(
    memory: LBFGSMemory,
    s: Any,
    y: Any,
    *,
    bs: Any = None,
    sbs: jax.Array | None = None,
    curvature: str = "relative",
    eps: float | jax.Array | None = None,
    damping: bool = False,
    where: bool | jax.Array = True,
) -> tuple[LBFGSMemory, jax.Array]:
    r"""Stores a pair over the oldest one if the curvature along it is good.

    A pair is finite, has s'y > 0, :math:`s \ne 0` and :math:`\|y\| \le 10^8 \|s\|`, and

    * "relative": :math:`s^\top y > \epsilon s^\top B s` for the present B. An empty
      memory has no scale to compare with; then :math:`s^\top y > 10^{-8} \|s\| \|y\|`
      (this project's choice). The decision does not change when the loss is multiplied
      by a constant.
    * "absolute": :math:`s^\top y > \epsilon \|s\|^2`, which depends on such a constant
      and refuses every pair where the curvature of the loss is below epsilon.
    * "none": every finite pair with :math:`s^\top y \ne 0` is stored, as in
      `optax.scale_by_lbfgs`. H is then not positive definite in general.

    A skipped pair changes nothing. All numbers come from the pair as the buffers hold
    it, after rounding to their dtype.

    Args:
      memory: the pairs.
      s: step, a tree like the parameters.
      y: difference of the gradients of one function at both ends of the step.
      bs: B s for the present B; None computes it where it is needed. Read only with
        `damping`, or for s'Bs if `sbs` is None.
      sbs: s'Bs where it is known, e.g. -alpha s'g after a step -alpha H g. Not read
        with `damping`.
      curvature: "relative", "absolute" or "none".
      eps: the part epsilon of the curvature that is asked for, > 0, and < 1 with
        `damping`; None means 0.01, or 0.2 with `damping`.
      damping: bends y by `damp_pair` where s'y is below epsilon s'Bs, and stores the
        pair. For an empty memory B is :math:`y^\top y / |s^\top y|` times the identity.
      where: whether to consider the pair at all.

    Returns:
      The memory, and an int32: 0 skipped, 1 accepted, 2 accepted after damping.

    Raises:
      ValueError: `curvature` is not one of the three, or `eps` is out of range.
    """
    check_curvature(curvature, eps, damping)
    eps = jnp.asarray(default_eps(damping) if eps is None else eps, memory.sy.dtype)
    s, y = as_stored(memory.s, s), as_stored(memory.y, y)
    products = pair_products(memory, s, y)
    is_damped: Any = False
    if damping:
        y, is_damped = _damped(memory, s, y, bs, products, eps)
        products = pair_products(memory, s, y)
    ss, sy, yy = products.s.square, products.sy, products.y.square
    accepted = where & is_storable(products)
    if curvature != "none":
        accepted &= (sy > 0) & (ss > 0) & (yy <= LARGEST_RATIO**2 * ss)
    if curvature == "absolute":
        accepted &= is_damped | (sy > eps * ss)
    elif curvature == "relative" and not damping:
        # The squared cosine as a product of curvatures neither over- nor underflows.
        is_wide = (sy / ss) * (sy / yy) > SMALLEST_COSINE**2
        sbs = _quadratic_form(memory, s, bs, products) if sbs is None else sbs
        accepted &= jnp.where(memory.count == 0, is_wide, sy > eps * sbs)
    memory = write_pair(memory, s, y, products, accepted)
    status = jnp.where(accepted, jnp.where(is_damped, DAMPED, ACCEPTED), SKIPPED)
    return memory, status.astype(jnp.int32)


def check_curvature(
    curvature: str, eps: float | jax.Array | None, damping: bool
) -> None:
    """Refuses an unknown rule and an epsilon that it cannot use.

    Raises:
      ValueError: as in `push_pair`.
    """
    check_choice("curvature", curvature, CURVATURES)
    if eps is None:
        return
    check_constant("eps", eps)
    if damping:
        check_damping_eps(eps)
    else:
        check_value("eps", eps, "finite and > 0", lambda v: 0.0 < v < jnp.inf)


def default_eps(damping: bool) -> float:
    """The epsilon of the rules and of damping where none is given."""
    return 0.2 if damping else 0.01


def _damped(
    memory: LBFGSMemory,
    s: Any,
    y: Any,
    bs: Any,
    products: PairProducts,
    eps: float | jax.Array,
) -> tuple[Any, jax.Array]:
    """The damped y as it is stored, and whether it differs."""
    is_empty = memory.count == 0
    scale = products.y.square / jnp.abs(products.sy)
    if bs is None:
        image = hessian_combination(memory, products.s)
        image = image._replace(gamma=jnp.where(is_empty, scale, image.gamma))
        sbs, bs = quadratic_form(image, products.s), combine(memory, image, s)
    else:
        bs = jax.tree.map(lambda b, x: jnp.where(is_empty, scale * x, b), bs, s)
        sbs = tree_dot(s, bs)
    y, theta = mix(y, bs, products.sy, sbs, eps)
    return y, theta < 1


def _quadratic_form(
    memory: LBFGSMemory, s: Any, bs: Any, products: PairProducts
) -> jax.Array:
    """s'Bs, from B s where it is known."""
    if bs is not None:
        return tree_dot(s, bs)
    return quadratic_form(hessian_combination(memory, products.s), products.s)
