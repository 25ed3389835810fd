"""Cross layers: products of the input with linear maps of what came before.

Each function is one layer x_l -> x_{l+1} on `[..., N]`; x0 is the input of the first.
Kernels are (in, out). With zero weights and biases every layer is the identity.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

KINDS = ("vector", "matrix", "low_rank", "mixture")
GATES = ("softmax", "sigmoid")


def cross_vector(x0: jax.Array, x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    r"""One layer of the first deep & cross network.

    .. math::

      x_{l+1} = x_0 (x_l^\top w_l) + b_l + x_l

    L layers are polynomials of degree at most L + 1 in the entries of x0.

    Args:
      x0: `[..., N]`, the input of the first layer.
      x: `[..., N]`, what the layer before returned.
      w: `[N]`.
      b: `[N]`, outside the product.

    Returns:
      `[..., N]`.

    Raises:
      ValueError: shapes do not fit.

    References:
      Wang, Fu, Fu, Wang, 2017, https://arxiv.org/abs/1708.05123, equation 3.
    """
    _check_shapes(x0, x, w=(w, "N"), b=(b, "N"))
    return x0 * (x @ w)[..., None] + b + x


def cross_matrix(
    x0: jax.Array, x: jax.Array, kernel: jax.Array, b: jax.Array
) -> jax.Array:
    r"""One layer of the second deep & cross network, with a full matrix.

    .. math::

      x_{l+1} = x_0 \odot (W_l x_l + b_l) + x_l

    Args:
      x0: `[..., N]`, the input of the first layer.
      x: `[..., N]`, what the layer before returned.
      kernel: `[N, N]`, the transpose of W_l.
      b: `[N]`, inside the product.

    Returns:
      `[..., N]`.

    Raises:
      ValueError: shapes do not fit.

    References:
      Wang et al., 2020, https://arxiv.org/abs/2008.13535.
    """
    _check_shapes(x0, x, kernel=(kernel, "NN"), b=(b, "N"))
    return x0 * (x @ kernel + b) + x


def cross_low_rank(
    x0: jax.Array, x: jax.Array, down: jax.Array, up: jax.Array, b: jax.Array
) -> jax.Array:
    r"""One layer of the second deep & cross network, with a matrix of rank r.

    .. math::

      x_{l+1} = x_0 \odot (W_l V_l x_l + b_l) + x_l

    Args:
      x0: `[..., N]`, the input of the first layer.
      x: `[..., N]`, what the layer before returned.
      down: `[N, r]`, the transpose of V_l.
      up: `[r, N]`, the transpose of W_l.
      b: `[N]`, inside the product.

    Returns:
      `[..., N]`.

    Raises:
      ValueError: shapes do not fit.

    References:
      Wang et al., 2020, https://arxiv.org/abs/2008.13535.
    """
    _check_shapes(x0, x, down=(down, "Nr"), up=(up, "rN"), b=(b, "N"))
    return x0 * (x @ down @ up + b) + x


def cross_mixture(
    x0: jax.Array,
    x: jax.Array,
    down: jax.Array,
    core: jax.Array,
    up: jax.Array,
    b: jax.Array,
    gate: jax.Array,
    *,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
    gating: str = "softmax",
) -> jax.Array:
    r"""One layer with a gated mixture of K experts of rank r.

    .. math::

      x_{l+1} = \sum_k G_k(x_l) \, x_0 \odot (W_k\, g(C_k\, g(V_k x_l)) + b_l) + x_l

    Args:
      x0: `[..., N]`, the input of the first layer.
      x: `[..., N]`, what the layer before returned.
      down: `[K, N, r]`, the transposes of V_k.
      core: `[K, r, r]`, the transposes of C_k.
      up: `[K, r, N]`, the transposes of W_k.
      b: `[N]`, one bias for all experts.
      gate: `[N, K]`: the gates are functions of x @ gate.
      activation: g.
      gating: `softmax` over the experts, or `sigmoid` of each.

    Returns:
      `[..., N]`.

    Raises:
      ValueError: shapes do not fit; another `gating`.

    References:
      Wang et al., 2020, https://arxiv.org/abs/2008.13535.
    """
    if gating not in GATES:
        raise ValueError(f"gating must be one of {', '.join(GATES)}, got {gating!r}")
    _check_shapes(
        x0,
        x,
        down=(down, "KNr"),
        core=(core, "Krr"),
        up=(up, "KrN"),
        b=(b, "N"),
        gate=(gate, "NK"),
    )
    hidden = activation(jnp.einsum("...n,knr->...kr", x, down))
    hidden = activation(jnp.einsum("...kr,krs->...ks", hidden, core))
    gates = (jax.nn.softmax if gating == "softmax" else jax.nn.sigmoid)(x @ gate)
    # Gates are applied in the small space: no [..., K, N] is formed.
    mixed = jnp.einsum("...kr,krn->...n", hidden * gates[..., None], up)
    return x0 * (mixed + gates.sum(axis=-1, keepdims=True) * b) + x


def cross_params(kind: str, width: int, rank: int = 0, experts: int = 0) -> int:
    """Number of parameters of one layer.

    Args:
      kind: `vector`, `matrix`, `low_rank` or `mixture`.
      width: N.
      rank: r, of `low_rank` and `mixture`.
      experts: K, of `mixture`.

    Returns:
      2N; N^2 + N; 2Nr + N; K (2Nr + r^2 + N) + N.

    Raises:
      ValueError: the kind is none of these; a size it needs is not a positive integer.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    needed = {"width": width}
    if kind in ("low_rank", "mixture"):
        needed["rank"] = rank
    if kind == "mixture":
        needed["experts"] = experts
    for name, value in needed.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"{name} of kind={kind!r} must be an integer >= 1, got {value!r}"
            )
    if kind == "vector":
        return 2 * width
    if kind == "matrix":
        return width**2 + width
    if kind == "low_rank":
        return 2 * width * rank + width
    return experts * (2 * width * rank + rank**2 + width) + width


def _check_shapes(x0: jax.Array, x: jax.Array, **leaves: tuple[jax.Array, str]) -> None:
    """Compares shapes; a letter stands for one size throughout."""
    if jnp.shape(x0) != jnp.shape(x) or not jnp.ndim(x):
        raise ValueError(
            f"x must have the shape [..., N] of x0={jnp.shape(x0)}, got {jnp.shape(x)}"
        )
    sizes = {"N": jnp.shape(x)[-1]}
    for name, (leaf, letters) in leaves.items():
        shape = jnp.shape(leaf)
        expected = [sizes.get(letter, letter) for letter in letters]
        known = len(shape) == len(letters) and all(
            size == sizes.setdefault(letter, size)
            for size, letter in zip(shape, letters, strict=True)
        )
        if not known:
            raise ValueError(
                f"{name} must have shape [{', '.join(map(str, expected))}] for x of "
                f"shape {jnp.shape(x)}, got {shape}"
            )
