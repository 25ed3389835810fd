import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reproduce import pblbfgs_network_training
from experiments.reproduce.pblbfgs_network_training import (
    L2,
    MINI_BATCH,
    WIDTHS,
    DigitRows,
    ProgressiveTraining,
    cross_entropies,
    evaluate_network,
    init_network,
    load_digit_rows,
    network_logits,
    penalty,
    run_mini_batches,
    starting_point,
)


@pytest.fixture(scope="module")
def digits():
    return load_digit_rows()


@pytest.fixture(scope="module")
def few():
    """70 rows to train: two whole mini-batches and six rows."""
    data = load_digit_rows(70)
    return DigitRows(data.train, jax.tree.map(lambda leaf: leaf[:50], data.test))


def test_the_parts_of_the_data_are_those_of_the_permutation(digits):
    assert digits.train.pixels.shape == (1400, 64)
    assert digits.test.labels.shape == (397,)
    assert digits.train.pixels.dtype == jnp.float32
    assert float(digits.train.pixels.max()) == 1.0
    from sklearn.datasets import load_digits

    order = np.random.default_rng(0).permutation(1797)
    np.testing.assert_array_equal(
        digits.test.labels, load_digits().target[order[1400:]]
    )


def test_a_layer_is_affine_with_tanh_between():
    params = init_network(jax.random.key(3))
    shapes = [(kernel.shape, bias.shape) for kernel, bias in params]
    assert shapes == [((i, o), (o,)) for i, o in itertools.pairwise(WIDTHS)]
    for kernel, bias in params:
        expected = np.sqrt(2.0 / sum(kernel.shape))
        np.testing.assert_allclose(np.std(kernel), expected, rtol=0.1)
        assert not np.any(bias)
    (a, b), (c, d) = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1, params)
    pixels = np.random.default_rng(0).random((5, 64))
    found = network_logits(((a, b), (c, d)), pixels)
    np.testing.assert_allclose(found, np.tanh(pixels @ a + b) @ c + d, rtol=2e-5)


def test_the_objective_is_the_mean_with_the_penalty(few):
    params = starting_point(0)
    logits = np.asarray(network_logits(params, few.train.pixels), np.float64)
    log_sums = np.log(np.exp(logits).sum(axis=1))
    of_label = logits[np.arange(70), np.asarray(few.train.labels)]
    square = sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(params))
    np.testing.assert_allclose(penalty(params), L2 / 2 * square, rtol=1e-6)
    losses = cross_entropies(params, few.train)
    np.testing.assert_allclose(losses, log_sums - of_label, rtol=1e-5, atol=1e-6)
    found = evaluate_network(params, few)
    expected = (log_sums - of_label).mean() + L2 / 2 * square
    np.testing.assert_allclose(found.loss, expected, rtol=1e-6)
    rightly = np.asarray(network_logits(params, few.test.pixels)).argmax(axis=1)
    assert found.accuracy == pytest.approx(np.mean(rightly == few.test.labels))


def test_an_epoch_sees_every_row_and_the_last_batch_is_a_mean_of_its_own(few):
    """One epoch of SGD by hand, in NumPy's order of the batches."""
    run = run_mini_batches(few, "sgd", 0.5, seed=4, epochs=1)
    params = starting_point(4)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(4), 2), 0)
    order = np.asarray(jax.random.permutation(key, 70))

    @jax.jit
    @jax.grad
    def gradient_of(params, rows):
        return jnp.mean(cross_entropies(params, rows)) + penalty(params)

    for chosen in np.split(order, [MINI_BATCH, 2 * MINI_BATCH]):
        rows = jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], few.train)
        gradient = gradient_of(params, rows)
        params = jax.tree.map(lambda w, g: w - 0.5 * g, params, gradient)
    expected = evaluate_network(params, few)
    np.testing.assert_allclose(run["loss"], [expected.loss], rtol=1e-5)
    assert (run["updates"], run["batch_size"]) == (3, [MINI_BATCH])


def test_runs_differ_by_seed_and_rate_only(few):
    runs = [
        run_mini_batches(few, "adam", rate, seed, epochs=2)
        for rate, seed in ((0.01, 0), (0.01, 0), (0.01, 1), (0.03, 0))
    ]
    assert runs[0]["loss"] == runs[1]["loss"] and len(runs[0]["loss"]) == 2
    assert len({tuple(run["loss"]) for run in runs}) == 3
    assert runs[0]["loss"][1] < runs[0]["loss"][0] and runs[0]["seconds"] > 0.0
    assert run_mini_batches(few, "sgd", 1e30, 0, 1)["reason"] == "diverged"


class Info(NamedTuple):
    b: Any
    alpha: Any


class FakeState(NamedTuple):
    params: Any
    window: Any
    number: int


class FakeWindow(NamedTuple):
    size: int


class FakeResult(NamedTuple):
    params: Any
    state: FakeState
    history: Info
    grad_evals: int
    reason: str


class FakeSolver:
    """Counts gradients as it is told; its point is the number of the iteration."""

    def __init__(self, sizes, ends="max_iterations"):
        self.sizes, self.ends, self.asked = sizes, ends, []

    def init(self, params, key):
        return FakeState(0, FakeWindow(self.sizes[0]), 0)

    def advance(self, state, iterations):
        self.asked.append(iterations)
        number = state.number + iterations
        sizes = np.asarray(self.sizes[state.number : number])
        last = number == len(self.sizes)
        return FakeResult(
            number,
            FakeState(number, FakeWindow(sizes[-1]), number),
            # Every third line search fails.
            Info(sizes, np.where(np.arange(state.number, number) % 3 == 2, 0.0, 0.5)),
            sum(self.sizes[:number]),
            self.ends if last else "max_iterations",
        )


@pytest.fixture
def progressive(few, monkeypatch):
    def make(sizes, epochs, ends="max_iterations"):
        solver = FakeSolver(sizes, ends)
        module = pblbfgs_network_training
        monkeypatch.setattr(module, "pb_lbfgs", lambda *args, **kwargs: solver)
        monkeypatch.setattr(module, "advance", FakeSolver.advance)
        monkeypatch.setattr(
            module,
            "evaluate_network",
            lambda params, data: module.Checkpoint(float(params), 0.5),
        )
        return ProgressiveTraining(few, "multi", epochs), solver

    return make


def test_a_checkpoint_is_the_last_point_within_its_epochs(progressive):
    # 70 rows an epoch: gradients 30, 70, 130, 200, 280, 350 after each iteration.
    training, solver = progressive([30, 40, 60, 70, 80, 70], epochs=4)
    run = training.run(0)
    # One epoch holds two iterations exactly; the fifth ends exactly with epoch four.
    assert run["loss"] == [2.0, 3.0, 4.0, 5.0]
    assert run["batch_size"] == [40, 60, 70, 80]
    # The third line search failed; the sixth iteration was too many.
    assert (run["updates"], run["end_epochs"]) == (4, 4.0)
    assert run["reason"] == "max_epochs"
    # Timed without a stop, to the last iteration that counts.
    assert solver.asked == [1] * 6 + [5]


def test_a_run_that_ends_early_stays_where_it_is(progressive):
    training, _ = progressive([30, 50, 70], epochs=5, ends="stalled")
    run = training.run(0)
    # 30, 80 and 150 gradients: the third point is beyond two epochs.
    assert run["loss"] == [1.0, 2.0, 3.0, 3.0, 3.0]
    assert run["reason"] == "stalled" and run["end_epochs"] == 150 / 70


@pytest.mark.slow
def test_progressive_batching_learns_digits(digits):
    run = ProgressiveTraining(digits, "multi", epochs=10).run(0)
    assert run["loss"][-1] < 0.15 and run["accuracy"][-1] > 0.95
    assert run["batch_size"] == sorted(run["batch_size"]) and run["updates"] < 200
    assert 9.0 < run["end_epochs"] <= 10.0
    adam = run_mini_batches(digits, "adam", 1e-3, 0, 10)
    assert run["loss"][-1] < adam["loss"][-1]


def test_every_method_starts_from_the_same_weights(few):
    start = evaluate_network(starting_point(2), few).loss
    for name in ("adam", "sgd"):
        run = run_mini_batches(few, name, 1e-9, 2, 1)
        np.testing.assert_allclose(run["loss"], [start], rtol=1e-5)
