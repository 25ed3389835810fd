"""A small tree with hidden matrices of every layout, and its axes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optim_jax import MatrixAxes

SHAPES = {
    "square": (6, 6),
    "wide": (4, 9),
    "wide_again": (4, 9),
    "tall": (9, 4),
    "layers": (3, 5, 7),
    "convolution": (3, 2, 4, 5),
    "embedding": (11, 3),
    "head": (3, 11),
    "bias": (4,),
    "gain": (),
}
AXES = {
    "square": MatrixAxes("hidden"),
    "wide": MatrixAxes("hidden"),
    "wide_again": MatrixAxes("hidden"),
    "tall": MatrixAxes("hidden"),
    "layers": MatrixAxes("hidden", (0,), (1,), (2,)),
    "convolution": MatrixAxes("hidden", (), (0, 1, 2), (3,)),
    "embedding": MatrixAxes("embedding"),
    "head": MatrixAxes("head"),
    "bias": MatrixAxes("bias"),
    "gain": None,
}
HIDDEN = tuple(name for name, axes in AXES.items() if axes and axes.kind == "hidden")
# The same in Optax's terms.
DIMENSION_NUMBERS = {
    name: optax.contrib.MuonDimensionNumbers(axes.reduction_axes, axes.output_axes)
    if name in HIDDEN
    else None
    for name, axes in AXES.items()
}


def draw(seed, dtype="float32", shapes=None):
    """Gaussian leaves."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape), dtype)
        for name, shape in (shapes or SHAPES).items()
    }


def matrices(name, leaf):
    """A hidden leaf as NumPy matrices (k, inputs, outputs), by hand."""
    leaf = np.asarray(leaf, np.float64)
    if name == "layers":
        return leaf
    return leaf.reshape(1, -1, leaf.shape[-1])


def walk(tx, dtype="float32", steps=3, shapes=None):
    """Updates of some steps at drawn gradients, jitted; the last state too."""
    params = draw(0, dtype, shapes)
    state, update = tx.init(params), jax.jit(tx.update)
    history = []
    for step in range(steps):
        updates, state = update(draw(1 + step, dtype, shapes), state, params)
        params = optax.apply_updates(params, updates)
        history.append(updates)
    return history, state


# A step of Muon's quintic multiplies small singular values, and their rounding, by
# 3.4445: after five, two compilations of one iteration may differ by this.
AMPLIFIED_ROUNDING = 3.4445**5 * 2.0**-23


def assert_trees_close(actual, expected, rtol):
    """Equal up to `rtol` times the largest entry of each leaf."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, left), right in zip(
        jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
        atol = rtol * np.abs(right).max(initial=0.0)
        np.testing.assert_allclose(
            left, right, rtol=0.0, atol=atol, err_msg=jax.tree_util.keystr(path)
        )
