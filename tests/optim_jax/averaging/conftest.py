"""Stored trajectories of the authors' optimizer, and how to replay them."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest


def _quadratic(data):
    return lambda p: 0.5 * p["w"] @ data["A"] @ p["w"] - data["b"] @ p["w"]


def _softmax_regression(data):
    def loss(p):
        logits = data["X"] @ p["W"] + p["bias"]
        log_probabilities = jax.nn.log_softmax(logits)
        rows = jnp.arange(data["labels"].shape[0])
        return -jnp.mean(log_probabilities[rows, data["labels"]])

    return loss


def _tanh_mlp(data):
    def loss(p):
        hidden = jnp.tanh(jnp.einsum("ni,ijk->njk", data["X"], p["K"]))
        output = p["s"] * (hidden.reshape(-1, 4) @ p["V"]) + p["c"]
        return jnp.mean((output - data["Y"]) ** 2)

    return loss


PROBLEMS = {
    "quadratic": _quadratic,
    "softmax_regression": _softmax_regression,
    "tanh_mlp": _tanh_mlp,
}


@dataclasses.dataclass(frozen=True)
class Golden:
    """One stored case; `rows(key)` is a tree whose leaves have a leading time axis."""

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    loss: Callable[[Any], jax.Array]

    @property
    def steps(self) -> int:
        return self.meta["steps"]

    def rows(self, key: str) -> dict[str, np.ndarray]:
        prefix = key + "/"
        return {
            name.removeprefix(prefix): array
            for name, array in self.arrays.items()
            if name.startswith(prefix)
        }

    def row(self, key: str, t: int) -> dict[str, np.ndarray]:
        return {name: array[t] for name, array in self.rows(key).items()}

    def learning_rate(self, group: int) -> Callable[[Any], jax.Array]:
        """The stored rates as a schedule of the 0-based step."""
        dtype = self.meta["dtype"]
        rates = jnp.asarray(self.arrays[f"lr/{group}"], dtype)
        return lambda count: rates[count]


@pytest.fixture
def load_golden(golden_dir):
    def load(name: str) -> Golden:
        folder = golden_dir / "gpa"
        meta = json.loads((folder / f"{name}.json").read_text())
        with np.load(folder / f"{name}.npz") as file:
            arrays = dict(file)
        data = {
            key.removeprefix("data/"): jnp.asarray(array)
            for key, array in arrays.items()
            if key.startswith("data/")
        }
        return Golden(meta, arrays, PROBLEMS[meta["problem"]](data))

    return load


@pytest.fixture
def replay():
    """Runs a transformation over a golden case and returns what `observe` sees.

    Open loop feeds the stored gradients, closed loop those at the own params.
    """

    def run(golden, optimizer, observe, *, closed, params_key="y"):
        params = jax.tree.map(jnp.asarray, golden.row(params_key, 0))
        state = optimizer.init(params)
        gradients = jax.tree.map(jnp.asarray, golden.rows("grad"))

        def step(carry, stored):
            params, state = carry
            grads = jax.grad(golden.loss)(params) if closed else stored
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), observe(state, params)

        first = observe(state, params)
        _, rest = jax.jit(lambda c: jax.lax.scan(step, c, gradients))((params, state))
        return jax.tree.map(
            lambda a, b: np.concatenate([np.asarray(a)[None], np.asarray(b)]),
            first,
            rest,
        )

    return run


@pytest.fixture
def quadratic():
    """A convex quadratic: params, gradient function, minimum at the origin."""
    curvature = {
        "w": np.linspace(0.5, 2.0, 6).reshape(2, 3),
        "b": np.array([1.0, 3.0]),
        "s": np.array(0.7),
    }
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=h.shape) for name, h in curvature.items()}

    def grads(params):
        return jax.tree.map(lambda h, p: (h * p).astype(p.dtype), curvature, params)

    return start, grads


@pytest.fixture
def trajectory():
    """Params and states after each of some steps, params first: a closed loop."""

    def run(optimizer, params, grads, steps):
        params = jax.tree.map(jnp.asarray, params)
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        history = [(params, state)]
        for _ in range(steps):
            updates, state = update(grads(params), state, params)
            params = optax.apply_updates(params, updates)
            history.append((params, state))
        return history

    return run
