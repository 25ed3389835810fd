"""Matrices of known spectra, their exact roots, and the stored function values."""

import json
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "golden" / "shampoo"
FUNCTIONS = json.loads((FOLDER / "functions.json").read_text())
CONDITIONS = {
    matrix["name"]: 10.0 ** matrix["log10_cond"] for matrix in FUNCTIONS["matrices"]
}


def stored_arrays():
    return np.load(FOLDER / "functions.npz")


def log_spaced(d, condition, seed=0):
    """Positive definite, float64: eigenvalues log-spaced from 1 / condition to 1."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(d, d)))
    a = (q * np.logspace(-np.log10(condition), 0.0, d)) @ q.T
    return (a + a.T) / 2


def exact_root(a, exponent):
    """A^(-exponent) in float64."""
    eigenvalues, q = np.linalg.eigh(np.asarray(a, np.float64))
    return (q * eigenvalues[..., None, :] ** -exponent) @ np.swapaxes(q, -1, -2)


def relative_error(found, wanted):
    """Frobenius norm of the difference over that of `wanted`, per matrix."""
    difference = np.asarray(found, np.float64) - np.asarray(wanted, np.float64)
    return np.linalg.norm(difference, axis=(-2, -1)) / np.linalg.norm(
        wanted, axis=(-2, -1)
    )


def rounding_bound(dtype, condition):
    """What rounding in `dtype` may do to a root of a matrix of this condition."""
    return float(np.finfo(dtype).eps) * (20.0 + 0.5 * condition)
