import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.reproduce.embedding_arms import embedding_arms
from experiments.reproduce.embedding_protocol import (
    ClickRows,
    Learner,
    OnePass,
    dlrm_config,
    dlrm_learner,
    epoch_order,
    train_and_predict,
)
from models.dlrm import dlrm, make_batch
from optim_jax.row_sparse import dense_adagrad

ROWS = (40, 23)
ARMS = {arm.name: arm for arm in embedding_arms(collisions=(4,), parts=(2,))}


def draw(count, seed=0):
    generator = np.random.default_rng(seed)
    ids = np.stack([generator.integers(0, rows, count) for rows in ROWS], axis=1)
    dense = generator.standard_normal((count, 3)).astype(np.float32)
    return ClickRows(ids, dense, (generator.random(count) < 0.3).astype(np.float32))


def test_the_order_is_a_permutation_cut_into_steps():
    one_pass = OnePass(batch_size=8, learning_rate=0.1)
    order = epoch_order(3, 50, one_pass)
    assert order.shape == (7, 8) and order.dtype == np.int32
    assert sorted(order.ravel()[:50]) == list(range(50))
    # The last batch is short: 50 stands for no row.
    np.testing.assert_array_equal(order.ravel()[50:], 50)
    np.testing.assert_array_equal(order, epoch_order(3, 50, one_pass))
    assert not np.array_equal(order, epoch_order(4, 50, one_pass))
    short = epoch_order(3, 50, OnePass(batch_size=8, learning_rate=0.1, steps=2))
    np.testing.assert_array_equal(short, order[:2])


def test_more_steps_than_one_pass_are_refused():
    one_pass = OnePass(batch_size=8, learning_rate=0.1, steps=8)
    with pytest.raises(ValueError, match="steps must be at most 7, one pass over 50"):
        epoch_order(0, 50, one_pass)


def counting_learner():
    """Counts what it is shown: its predictions say how often each id came up."""

    def init(key):
        return jax.random.uniform(key), jnp.zeros((2, max(ROWS) + 1))

    def update(state, batch):
        noise, counts = state
        shown = batch["weights"] * (1.0 + batch["labels"])
        for table in range(2):
            counts = counts.at[table, batch["ids"][table]].add(shown)
        return (noise, counts), jnp.sum(batch["weights"] * batch["dense"][:, 0])

    def predict(state, batch):
        noise, counts = state
        return noise + counts[0, batch["ids"][0]] + 1000.0 * counts[1, batch["ids"][1]]

    return Learner(init, update, predict)


def test_every_row_is_shown_once_with_its_own_columns():
    one_pass, train, asked = OnePass(16, 0.1), draw(70), draw(9, seed=1)
    trained = train_and_predict(
        counting_learner(), one_pass, train, asked, ROWS, (2, 5)
    )
    counts = [np.bincount(ids, 1.0 + train.labels, 41) for ids in train.ids.T]
    for index, seed in enumerate((2, 5)):
        expected = counts[0][asked.ids[:, 0]] + 1000.0 * counts[1][asked.ids[:, 1]]
        expected += float(jax.random.uniform(jax.random.key(seed)))
        np.testing.assert_allclose(trained.logits[index], expected, rtol=1e-6)
        # The row that stands for none adds nothing.
        sums = np.append(train.dense[:, 0], 0.0)[epoch_order(seed, 70, one_pass)]
        np.testing.assert_allclose(trained.losses[index], sums.sum(axis=1), atol=1e-5)


def plain_loop(config, one_pass, train, asked, seed):
    """The same training: dense gradients, ragged last batch, no scan."""
    model = dlrm(config)
    optimizer = dense_adagrad(one_pass.learning_rate, eps=one_pass.eps)

    @jax.jit
    def step(params, state, batch):
        loss, gradients = jax.value_and_grad(lambda p: model.loss(p, batch)[0])(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, loss

    params = model.init(jax.random.key(seed))
    state, losses = optimizer.init(params), []
    for chosen in epoch_order(seed, len(train.labels), one_pass):
        chosen = chosen[chosen < len(train.labels)]
        ids, labels = list(train.ids[chosen].T), train.labels[chosen]
        batch = make_batch(config, train.dense[chosen], ids, labels=labels)
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
    batch = make_batch(config, asked.dense, list(asked.ids.T))
    return np.asarray(jax.jit(model.apply)(params, batch)), losses


def test_one_program_equals_a_plain_loop_with_dense_gradients():
    one_pass = OnePass(batch_size=16, learning_rate=0.05)
    config = dlrm_config(ARMS["qr_mult_c4"], ROWS, 3, "dot", threshold=30)
    assert [table.built_method for table in config.tables] == ["qr", "full"]
    train, asked = draw(70), draw(9, seed=1)
    learner = dlrm_learner(config, one_pass)
    trained = train_and_predict(learner, one_pass, train, asked, ROWS, (2,))
    logits, losses = plain_loop(config, one_pass, train, asked, 2)
    np.testing.assert_allclose(trained.logits[0], logits, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(trained.losses[0], losses, rtol=1e-4)


def test_predictions_of_many_rows_are_those_of_few():
    """Compilers have got this wrong for large batches, and the score rests on one."""
    config = dlrm_config(ARMS["full"], ROWS, 3, "dot")
    asked, model = draw(20_000), dlrm(config)
    params = model.init(jax.random.key(0))
    columns = {"ids": asked.ids.T.astype(np.int32), "dense": asked.dense}
    many = jax.jit(model.apply)(params, columns)
    few = {"ids": columns["ids"][:, -50:], "dense": columns["dense"][-50:]}
    np.testing.assert_allclose(many[-50:], jax.jit(model.apply)(params, few), atol=1e-5)
    assert np.std(many) > 0.05
