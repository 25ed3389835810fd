r"""A small network on digits, trained by progressive batching or in mini-batches.

.. math::

  F(w) = \frac{1}{N} \sum_i \left( -\log p_w(y_i \mid x_i) \right)
    + \frac{\lambda}{2} \|w\|^2

for the ten digits of scikit-learn, 64 pixels in [0, 1], and a perceptron 64-32-10 with
tanh. Kernels start at N(0, 2 / (fan_in + fan_out)), biases at zero. All in float32.
"""

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.reproduce.pblbfgs_stops import MOST_ITERATIONS, advance
from experiments.reproduce.pblbfgs_store import Run
from optim_jax.quasi_newton import pb_lbfgs

WIDTHS = (64, 32, 10)
TRAIN_ROWS = 1400
L2 = 1e-4
FIRST_BATCH = 64
MINI_BATCH = 32

Params = tuple[tuple[jax.Array, jax.Array], ...]  # kernel and bias of each layer


class Rows(NamedTuple):
    """Labelled images.

    Attributes:
      pixels: float32 (B, 64), in [0, 1].
      labels: int32 (B,), 0 to 9.
    """

    pixels: jax.Array
    labels: jax.Array


class DigitRows(NamedTuple):
    """The two parts of the data."""

    train: Rows
    test: Rows


def load_digit_rows(train_rows: int = TRAIN_ROWS) -> DigitRows:
    """Digits in the order of a fixed permutation; the first rows are for training."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))

    def rows(chosen: np.ndarray) -> Rows:
        return Rows(
            jnp.asarray(pixels[chosen] / 16.0, jnp.float32),
            jnp.asarray(labels[chosen], jnp.int32),
        )

    return DigitRows(rows(order[:train_rows]), rows(order[train_rows:]))


def init_network(key: jax.Array, widths: Sequence[int] = WIDTHS) -> Params:
    """Initial weights."""
    layers = []
    for layer_key, (fan_in, fan_out) in zip(
        jax.random.split(key, len(widths) - 1), itertools.pairwise(widths), strict=True
    ):
        scale = np.sqrt(2.0 / (fan_in + fan_out)).astype(np.float32)
        kernel = scale * jax.random.normal(layer_key, (fan_in, fan_out), jnp.float32)
        layers.append((kernel, jnp.zeros(fan_out, jnp.float32)))
    return tuple(layers)


def network_logits(params: Params, pixels: jax.Array) -> jax.Array:
    """Maps (B, 64) to (B, 10): tanh between layers, none after the last."""
    for kernel, bias in params[:-1]:
        pixels = jnp.tanh(pixels @ kernel + bias)
    kernel, bias = params[-1]
    return pixels @ kernel + bias


def cross_entropies(params: Params, rows: Rows) -> jax.Array:
    """Cross-entropy of each row in nats, (B,), without the penalty."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(
        network_logits(params, rows.pixels), rows.labels
    )


def penalty(params: Params) -> jax.Array:
    """The penalty, of kernels and biases."""
    return 0.5 * L2 * optax.tree.norm(params, squared=True)


class Checkpoint(NamedTuple):
    """A network after some epochs.

    Attributes:
      loss: F, of all training rows.
      accuracy: share of the test rows that are classified rightly.
    """

    loss: float
    accuracy: float


@jax.jit
def _evaluate(params: Params, data: DigitRows) -> Checkpoint:
    loss = jnp.mean(cross_entropies(params, data.train)) + penalty(params)
    found = jnp.argmax(network_logits(params, data.test.pixels), axis=-1)
    return Checkpoint(loss, jnp.mean(found == data.test.labels))


def evaluate_network(params: Params, data: DigitRows) -> Checkpoint:
    """Training objective and test accuracy."""
    loss, accuracy = jax.device_get(_evaluate(params, data))
    return Checkpoint(float(loss), float(accuracy))


def _run(
    checkpoints: Sequence[Checkpoint],
    sizes: Sequence[int],
    updates: int,
    seconds: float,
) -> Run:
    return {
        "loss": [checkpoint.loss for checkpoint in checkpoints],
        "accuracy": [checkpoint.accuracy for checkpoint in checkpoints],
        "batch_size": list(sizes),
        "updates": updates,
        "seconds": seconds,
    }


def starting_point(seed: int) -> Params:
    """The initial weights of a seed, for every method."""
    return init_network(jax.random.fold_in(jax.random.key(seed), 1))


class ProgressiveTraining:
    """Progressive batching with the library's defaults, compiled once for all seeds."""

    def __init__(self, data: DigitRows, overlap: str, epochs: int):
        """Makes the solver.

        Args:
          data: to train and test on.
          overlap: `multi` or `full`.
          epochs: of gradients.
        """
        self._data, self._epochs = data, epochs
        self._solver = pb_lbfgs(
            cross_entropies,
            data.train,
            batch_size=FIRST_BATCH,
            overlap=overlap,
            l2=L2,
            max_epochs=float(epochs),
            max_iterations=MOST_ITERATIONS,
        )

    def run(self, seed: int) -> Run:
        """Trains twice: looking at every iteration, and without a stop for the time.

        A checkpoint is the last point within its number of epochs.
        """
        start = self._solver.init(starting_point(seed), jax.random.key(seed))
        rows = len(self._data.train.labels)
        state, iterations, updates, used = start, 0, 0, 0
        here = evaluate_network(state.params, self._data)
        size = int(state.window.size)
        checkpoints: list[Checkpoint] = []
        sizes: list[int] = []
        reason = "max_iterations"
        while reason == "max_iterations":
            result = advance(self._solver, state, 1)
            state, reason = result.state, result.reason
            # Whole epochs that end before this iteration's gradients do.
            passed = min(-(-result.grad_evals // rows) - 1, self._epochs)
            new = passed - len(checkpoints)
            checkpoints += [here] * new
            sizes += [size] * new
            if result.grad_evals <= self._epochs * rows:
                here = evaluate_network(result.params, self._data)
                size = int(result.history.b[-1])
                iterations, used = iterations + 1, result.grad_evals
                updates += int(result.history.alpha[-1] > 0.0)
            else:
                break
        missing = self._epochs - len(checkpoints)
        checkpoints += [here] * missing
        sizes += [size] * missing
        started = time.perf_counter()
        jax.block_until_ready(advance(self._solver, start, iterations).params)
        seconds = time.perf_counter() - started
        return {
            **_run(checkpoints, sizes, updates, seconds),
            "end_epochs": used / rows,
            "reason": "max_epochs" if reason == "max_iterations" else reason,
        }


def _update(name: str) -> Callable[[jax.Array], optax.GradientTransformation]:
    return {"adam": optax.adam, "sgd": optax.sgd}[name]


@functools.partial(jax.jit, static_argnames="name")
def _epoch(params, opt_state, train, key, learning_rate, *, name):
    """One pass in a new order; the last batch has the rows that are left."""
    rows = len(train.labels)
    steps = -(-rows // MINI_BATCH)
    order = jnp.pad(jax.random.permutation(key, rows), (0, steps * MINI_BATCH - rows))
    weights = jnp.arange(steps * MINI_BATCH) < rows
    optimizer = _update(name)(learning_rate)

    def loss(params, batch, weights):
        losses = jnp.where(weights, cross_entropies(params, batch), 0.0)
        return jnp.sum(losses) / jnp.sum(weights) + penalty(params)

    def step(carry, chosen):
        params, opt_state = carry
        indices, weights = chosen
        batch = jax.tree.map(lambda leaf: leaf[indices], train)
        gradient = jax.grad(loss)(params, batch, weights)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    shape = (steps, MINI_BATCH)
    chosen = (order.reshape(shape), weights.reshape(shape))
    return jax.lax.scan(step, (params, opt_state), chosen)[0]


def run_mini_batches(
    data: DigitRows, name: str, learning_rate: float, seed: int, epochs: int
) -> Run:
    """Trains with a constant learning rate and looks after every epoch.

    Args:
      data: to train and test on.
      name: `adam` or `sgd`, as Optax has them.
      learning_rate: of every step.
      seed: of the initial weights and the orders.
      epochs: passes over the training rows.
    """
    params = starting_point(seed)
    opt_state = _update(name)(learning_rate).init(params)
    key = jax.random.fold_in(jax.random.key(seed), 2)

    def epoch(params: Params, opt_state: Any, number: int) -> Any:
        of_epoch = jax.random.fold_in(key, number)
        rate = jnp.float32(learning_rate)
        return jax.block_until_ready(
            _epoch(params, opt_state, data.train, of_epoch, rate, name=name)
        )

    epoch(params, opt_state, 0)  # compiles
    checkpoints, seconds = [], 0.0
    for number in range(epochs):
        started = time.perf_counter()
        params, opt_state = epoch(params, opt_state, number)
        seconds += time.perf_counter() - started
        checkpoints.append(evaluate_network(params, data))
    updates = epochs * -(-len(data.train.labels) // MINI_BATCH)
    found = _run(checkpoints, [MINI_BATCH] * epochs, updates, seconds)
    finite = np.isfinite(checkpoints[-1].loss)
    return {
        **found,
        "end_epochs": float(epochs),
        "reason": "max_epochs" if finite else "diverged",
    }
