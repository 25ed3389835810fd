"""Two steps from the original implementation's weights give its numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.training.sparse_step import make_sparse_step
from models.categorical import POOLING_WEIGHT, join_tables
from models.click_losses import ClickLoss
from models.dlrm import dlrm
from models.dlrm_reference import from_reference_state, to_reference_state
from optim_jax.row_sparse import (
    RowSparseState,
    dense_adagrad,
    sparse_adagrad,
    sparse_row_wise_adagrad,
    sparse_sgd,
)
from tests.models.dlrm_cases import NAMES, batch_of, config_of, read_case, state_of

SATURATING = "dlrm_qr_mult"  # its second loss, in the original
OPTIMIZERS = {
    "sgd": (optax.sgd, sparse_sgd),
    "adagrad": (dense_adagrad, sparse_adagrad),
    "rwsadagrad": (dense_adagrad, sparse_row_wise_adagrad),
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class Golden:
    """One stored trajectory."""

    def __init__(self, folder, name):
        settings, self.arrays = read_case(folder, name)
        self.lr, self.config = settings["lr"], config_of(settings)
        self.batch = batch_of(self.config, self.arrays)

    def params(self, prefix="w0"):
        return from_reference_state(self.config, state_of(self.arrays, prefix))

    def steps(self, optimizer, count=2):
        """Yields the state and the loss after each step."""
        dense, rows = (make(self.lr) for make in OPTIMIZERS[optimizer])
        # The model is cached; this one takes the loss as it is now.
        step = make_sparse_step(dlrm.__wrapped__(self.config), dense, rows)
        state = step.init(self.params())
        for _ in range(count):
            state, metrics = step.step(state, self.batch)
            yield step, state, float(metrics["loss"])


@pytest.fixture
def original_loss(monkeypatch):
    """Cross-entropy of rounded probabilities, each logarithm cut off at -100."""

    @jax.custom_vjp
    def per_sample(logits, labels):
        p = jax.nn.sigmoid(logits)
        log_p, log_q = (jnp.maximum(jnp.log(x), -100.0) for x in (p, 1.0 - p))
        return -labels * log_p - (1.0 - labels) * log_q

    def forward(logits, labels):
        return per_sample(logits, labels), (jax.nn.sigmoid(logits), labels)

    def backward(saved, cotangent):
        p, labels = saved
        slope = p * (1.0 - p)
        return cotangent * (p - labels) / jnp.maximum(slope, 1e-12) * slope, None

    per_sample.defvjp(forward, backward)
    monkeypatch.setattr(
        ClickLoss, "per_sample", lambda self, logits, labels: per_sample(logits, labels)
    )


def _check_replay(golden, optimizer):
    steps = golden.steps(optimizer)
    for number, (step, state, loss) in enumerate(steps, start=1):
        stored = golden.arrays[f"{optimizer}/losses"][number - 1]
        np.testing.assert_allclose(loss, stored, **CLOSE)
        found = to_reference_state(golden.config, step.params(state))
        for name, array in found.items():
            stored = golden.arrays[f"{optimizer}/step{number}/{name}"]
            np.testing.assert_allclose(array, stored, **CLOSE, err_msg=name)
    if optimizer == "sgd":
        return
    accumulators = jax.tree.map(
        lambda rows: rows.accumulator,
        step.row_states(state),
        is_leaf=lambda node: isinstance(node, RowSparseState),
    )
    for leaves in accumulators.values():
        if POOLING_WEIGHT in leaves:  # with one number a row under either rule
            leaves[POOLING_WEIGHT] = leaves[POOLING_WEIGHT].reshape(-1, 1)
    found = to_reference_state(
        golden.config,
        join_tables(accumulators, state.opt_state["dense"].accumulator),
    )
    for name, array in found.items():
        stored = f"{optimizer}/state_momentum/{name}"
        if stored not in golden.arrays:
            stored = f"{optimizer}/state_sum/{name}"
        np.testing.assert_allclose(array, golden.arrays[stored], **CLOSE, err_msg=name)


def _cases(names):
    """Every case and optimizer; those that share their code with others are slow."""
    return [
        pytest.param(
            name,
            optimizer,
            marks=()
            if optimizer == "rwsadagrad" or name == "dlrm_dot_multihot"
            else pytest.mark.slow,
        )
        for name in names
        for optimizer in OPTIMIZERS
    ]


@pytest.mark.parametrize(
    ("name", "optimizer"), _cases([name for name in NAMES if name != SATURATING])
)
def test_two_steps_are_the_originals(golden_dir, name, optimizer):
    _check_replay(Golden(golden_dir, name), optimizer)


@pytest.mark.parametrize(("name", "optimizer"), _cases([SATURATING]))
def test_two_steps_of_remainder_tables_are_the_originals(
    golden_dir, name, optimizer, original_loss
):
    _check_replay(Golden(golden_dir, name), optimizer)


def test_loss_does_not_saturate_where_the_originals_does(golden_dir):
    optimizer = "sgd"
    golden = Golden(golden_dir, SATURATING)
    after_one = golden.params(f"{optimizer}/step1")
    logits = np.asarray(dlrm(golden.config).apply(after_one, golden.batch), np.float64)
    labels = golden.arrays["in/label"][:, 0]
    exact = np.mean(np.logaddexp(0.0, logits) - labels * logits)
    _, (_, _, loss) = golden.steps(optimizer)
    assert loss == pytest.approx(exact, rel=1e-4)
    # Its logarithms end at -100 or at a sigmoid rounded to 1.
    assert abs(loss - golden.arrays[f"{optimizer}/losses"][1]) > 1.0
