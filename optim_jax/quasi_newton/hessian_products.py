"""Products of the L-BFGS Hessian and of its inverse with a vector."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optim_jax.quasi_newton.compact_form import (
    Combination,
    combine,
    diagonal,
    inverse_hessian_combination,
    is_reliable,
)
from optim_jax.quasi_newton.memory import (
    LBFGSMemory,
    Products,
    inner_products,
    stored_slots,
)
from optim_jax.quasi_newton.two_loop import two_loop
from optim_jax.validation import check_choice

FORMS = ("compact", "two_loop")


def apply_inverse_hessian(memory: LBFGSMemory, v: Any, *, form: str = "compact") -> Any:
    r"""H v for the L-BFGS inverse Hessian H of the stored pairs.

    H is never formed. It is :math:`\gamma I` updated by one pair after the other,
    oldest first, with :math:`\rho = 1 / s^\top y`:

    .. math::

      H \leftarrow (I - \rho s y^\top) H (I - \rho y s^\top) + \rho s s^\top

    It is symmetric, positive definite if all :math:`s^\top y > 0`, and maps the newest
    y to the newest s. Of an empty memory it is the identity.

    Args:
      memory: the pairs, of size m.
      v: tree like the parameters.
      form: "compact" takes two passes over the parameters and, where they are sharded,
        one reduction; it runs the two-loop recursion instead when its small triangular
        matrix is near to singular or a coefficient is not finite. "two_loop" always
        runs the recursion, with 2 m products one after the other.

    Returns:
      A tree like v, in its dtypes.

    Raises:
      ValueError: `form` is not one of these.

    References:
      Byrd, Nocedal, Schnabel, 1994, "Representations of quasi-Newton matrices and their
      use in limited memory methods".
      Nocedal, 1980, "Updating quasi-Newton matrices with limited storage".
    """
    check_choice("form", form, FORMS)
    if form == "two_loop":
        return two_loop(memory, v)
    combination = inverse_hessian_combination(memory, inner_products(memory, v))
    return lax.cond(
        is_reliable(memory, combination),
        lambda: combine(memory, combination, v),
        lambda: two_loop(memory, v),
    )


def apply_hessian(memory: LBFGSMemory, v: Any) -> Any:
    r"""B v for the L-BFGS Hessian B, the inverse of H of `apply_inverse_hessian`.

    .. math::

      B v = \frac{v}{\gamma} - W M^{-1} W^\top v, \quad
      W = \begin{pmatrix} Y^\top & S^\top / \gamma \end{pmatrix}, \quad
      M = \begin{pmatrix} -D & L^\top \\ L & S S^\top / \gamma \end{pmatrix}

    where D is the diagonal of :math:`S Y^\top` and L its part below the diagonal, in
    chronological order. B is positive definite if all :math:`s^\top y > 0`, which is
    what this function needs, and maps the newest s to the newest y. Of an empty memory
    it is the identity.

    Args:
      memory: the pairs.
      v: tree like the parameters.

    Returns:
      A tree like v, in its dtypes.

    References:
      Byrd, Nocedal, Schnabel, 1994, "Representations of quasi-Newton matrices and their
      use in limited memory methods", equation (3.5).
    """
    products = inner_products(memory, v)
    return combine(memory, hessian_combination(memory, products), v)


def hessian_combination(memory: LBFGSMemory, products: Products) -> Combination:
    r"""B v, from the products of v; `quadratic_form` of it is v'Bv.

    Eliminating the first block of M leaves the positive definite matrix :math:`S S^\top
    / \gamma + L D^{-1} L^\top`. The order of its rows is free, so nothing is permuted.

    Args:
      memory: the pairs.
      products: of v, without batch axes.
    """
    gamma, stored = memory.gamma, stored_slots(memory)
    size = memory.sy.shape[0]
    age = (memory.head - 1 - jnp.arange(size)) % size
    lower = jnp.where(age[:, None] < age[None, :], memory.sy, 0)
    curvature = jnp.where(stored, diagonal(memory.sy), 1)
    weighted = lower / curvature
    middle = memory.ss / gamma + jnp.matmul(
        weighted, lower.T, precision=lax.Precision.HIGHEST
    )
    middle += jnp.diag(jnp.where(stored, 0, 1).astype(middle.dtype))
    q = jnp.where(stored, products.y, 0)
    p = jnp.where(stored, products.s, 0) / gamma
    right = p + jnp.sum(weighted * q, axis=-1)
    factor = jnp.linalg.cholesky(middle, symmetrize_input=False)
    b = jax.scipy.linalg.cho_solve((factor, True), right)
    a = (jnp.sum(lower * b[:, None], axis=0) - q) / curvature
    return Combination(1 / gamma, -b / gamma, -a)
