"""The stored sample of 24 logistic losses, with its memory of four pairs."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optim_jax.quasi_newton.memory import LBFGSMemory, init_memory, store_pair

PATH = pathlib.Path(__file__).parents[2] / "golden" / "pblbfgs" / "ipqn_small.npz"


class GoldenSample(NamedTuple):
    numbers: dict[str, np.ndarray]
    losses: Callable[[jax.Array], jax.Array]
    w: jax.Array
    gradient: jax.Array
    memory: LBFGSMemory


def read_golden_sample() -> GoldenSample:
    """The sample; needs 64-bit types."""
    with np.load(PATH, allow_pickle=False) as stored:
        numbers = dict(stored)
    x, y, lam = numbers["X"], numbers["y"], numbers["lam"]
    memory, store = init_memory(jnp.zeros(6), 5), jax.jit(store_pair)
    for step, change in zip(numbers["S"], numbers["Y"], strict=True):
        memory = store(memory, jnp.asarray(step), jnp.asarray(change))
    return GoldenSample(
        numbers,
        lambda w: regularised_logistic(w, x, y, lam),
        jnp.asarray(numbers["w"]),
        jnp.asarray(numbers["g"]),
        memory,
    )


def regularised_logistic(w: Any, x: Any, y: Any, l2: Any) -> jax.Array:
    """Losses log(1 + exp(-y x.w)) + l2/2 |w|^2, one per row of x."""
    return jnp.logaddexp(0.0, -y * (x @ w)) + l2 / 2 * jnp.sum(w**2)
