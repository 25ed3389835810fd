"""Stored function values, and matrices of a known spectrum."""

import json
import pathlib

import numpy as np
import pytest


@pytest.fixture(scope="session")
def functions():
    """Tables of the stored values, and the arrays they name."""
    folder = pathlib.Path(__file__).resolve().parents[2] / "golden" / "shampoo"
    with np.load(folder / "functions.npz") as data:
        arrays = dict(data)
    return json.loads((folder / "functions.json").read_text()), arrays


@pytest.fixture(scope="session")
def with_spectrum():
    """(d, condition number) -> float64 matrix with log-spaced eigenvalues up to 1."""

    def make(d, condition, seed=0):
        rng = np.random.default_rng(seed)
        basis, _ = np.linalg.qr(rng.normal(size=(d, d)))
        eigenvalues = np.logspace(0.0, -np.log10(condition), d)
        matrix = (basis * eigenvalues) @ basis.T
        return (matrix + matrix.T) / 2.0

    return make
