"""The estimators once more, in NumPy and draw by draw, and trees to try them on."""

import numpy as np

from optim_jax.typing import MatrixAxes

GEOMETRIES = ("l2", "sign", "spectral")
SIDES = ("min", "row", "col", "tightest")

SHAPES = {
    "wide": (3, 5),
    "tall": (6, 4),
    "square": (4, 4),
    "layers": (2, 3, 4),
    "torch": (5, 2, 3),
    "bias": (5,),
    "scale": (),
}
# "torch" is stored with its output axis first and has two input axes.
AXES = {
    "wide": MatrixAxes("hidden"),
    "tall": MatrixAxes("hidden"),
    "square": MatrixAxes("hidden"),
    "layers": MatrixAxes("hidden", (0,), (1,), (-1,)),
    "torch": MatrixAxes("hidden", (), (-2, 2), (0,)),
    "bias": MatrixAxes("bias"),
    "scale": None,
}


def layout_of(geometry, side="min", **more):
    """Keyword arguments of the library's functions for the trees of this module."""
    return {"geometry": geometry, "matrix_axes": AXES, "side": side, **more}


def draw_gradients(n, seed=0, shapes=SHAPES, dtype=np.float64):
    """Gradients stacked along axis 0."""
    rng = np.random.default_rng(seed)
    return {
        name: (1.0 + rng.normal(size=(n, *shape))).astype(dtype)
        for name, shape in shapes.items()
    }


def matrices(name, array):
    """The matrices (rows are inputs) in one gradient of a leaf."""
    if name == "layers":
        return list(array)
    if name == "torch":
        return [array.transpose(1, 2, 0).reshape(6, 5)]
    return [array] if array.ndim == 2 else []


def weighted_mean(draws, weights):
    return sum(b * g for b, g in zip(weights, draws, strict=True)) / np.sum(weights)


def variance(draws, weights):
    """Unbiased variance of the gradient of one sample, per coordinate."""
    mean, n = weighted_mean(draws, weights), len(draws)
    squares = (b * (g - mean) ** 2 for b, g in zip(weights, draws, strict=True))
    return sum(squares) / (n - 1)


def covariance(draws, weights, side):
    """Row or column covariance of the gradient of one sample, for one matrix."""
    mean, n = weighted_mean(draws, weights), len(draws)
    deviations = [g - mean for g in draws]
    if side == "col":
        deviations = [d.T for d in deviations]
    grams = (b * d @ d.T for b, d in zip(weights, deviations, strict=True))
    return sum(grams) / (n - 1)


def trace_root(c):
    return np.sqrt(np.maximum(np.linalg.eigvalsh(c), 0.0)).sum()


def nuclear_norm(g):
    return np.linalg.svd(g, compute_uv=False).sum()


def noise_of_matrix(draws, weights, side):
    m, n = draws[0].shape
    if side == "min":
        side = "row" if m <= n else "col"
    if side == "tightest":
        return min(noise_of_matrix(draws, weights, s) for s in ("row", "col"))
    return trace_root(covariance(draws, weights, side))


def noise_and_signal(stacked, weights, geometry, side="min"):
    """Squared dual norms of noise and mean gradient of a tree like `SHAPES`."""
    noise = signal = 0.0
    for name, draws in stacked.items():
        mean = weighted_mean(draws, weights)
        if geometry == "l2":
            noise += variance(draws, weights).sum()
            signal += np.square(mean).sum()
        elif geometry == "sign":
            noise += np.sqrt(variance(draws, weights)).sum()
            signal += np.abs(mean).sum()
        else:
            for index, matrix in enumerate(matrices(name, mean)):
                of_draws = [matrices(name, draw)[index] for draw in draws]
                noise += noise_of_matrix(of_draws, weights, side)
                signal += nuclear_norm(matrix)
    return (noise, signal) if geometry == "l2" else (noise**2, signal**2)
