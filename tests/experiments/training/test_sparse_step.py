"""Steps with row-sparse updates: dense peers, the state, micro-batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.sharding.batch_shares import batch_shares
from experiments.sharding.table_placement import Plan
from experiments.training.sparse_step import add_sums, make_sparse_step
from models.dlrm import dlrm, make_batch
from optim_jax.row_sparse import (
    dense_adagrad,
    row_wise_adagrad,
    sparse_row_wise_adagrad,
    sparse_sgd,
)
from tests.experiments.training.sparse_runs import (
    FULL,
    adagrad_step,
    assert_trees_close,
    bag_batches,
    train,
)


@pytest.fixture(scope="module")
def params():
    return jax.device_get(dlrm(FULL).init(jax.random.key(0)))


def test_row_wise_adagrad_is_the_dense_one_on_touched_rows(params):
    model, batches = dlrm(FULL), list(bag_batches(FULL, 6))
    found, states, losses = train(adagrad_step(FULL), params, batches)
    optimizer = optax.partition(
        {"rows": row_wise_adagrad(0.1), "dense": dense_adagrad(0.1)},
        {name: "rows" if name == "tables" else "dense" for name in params},
    )

    @jax.jit
    def dense_step(params, opt_state, batch):
        (loss, _), gradients = jax.value_and_grad(model.loss, has_aux=True)(
            params, batch
        )
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    dense, opt_state = params, optimizer.init(params)
    for batch, loss in zip(batches, losses, strict=True):
        dense, opt_state, expected = dense_step(dense, opt_state, batch)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert_trees_close(found, dense)
    accumulators = opt_state.inner_states["rows"].inner_state.accumulator["tables"]
    for table, rows in (("0", 40), ("1", 30)):
        kept = np.asarray(states[table]["table"].accumulator)
        assert_trees_close(kept, accumulators[table]["table"])
        untouched = np.arange(rows) >= rows // 2
        np.testing.assert_array_equal(
            found["tables"][table]["table"][untouched],
            params["tables"][table]["table"][untouched],
        )
        assert not kept[untouched].any() and kept[~untouched].any()


def test_sgd_is_the_dense_one_to_the_bit(params):
    rng = np.random.default_rng(0)
    # A power of two of samples: no product with a weight is rounded.
    batch = make_batch(
        FULL,
        rng.normal(size=(8, 3)),
        [rng.integers(0, rows, 8) for rows in (10, 5)],
        labels=rng.integers(0, 2, 8),
    )
    model = dlrm(FULL)
    step = make_sparse_step(model, optax.sgd(0.1), sparse_sgd(0.1))
    found, _, _ = train(step, params, [batch])
    gradients = jax.jit(jax.grad(lambda p: model.loss(p, batch)[0]))(params)
    expected = jax.tree.map(lambda p, g: p + (-0.1 * g), params, gradients)
    for table in ("0", "1"):
        np.testing.assert_array_equal(
            found["tables"][table]["table"], expected["tables"][table]["table"]
        )
    assert_trees_close(found, expected)


def test_order_of_samples_does_not_matter(params):
    (batch,) = bag_batches(FULL, 6, count=1, longest=1)
    order = np.array([3, 1, 5, 0, 4, 2])
    lengths = [np.bincount(s[s < 6], minlength=6) for s in batch["segments"]]
    ids = [
        np.concatenate([np.split(of[: sum(n)], np.cumsum(n)[:-1])[i] for i in order])
        for of, n in zip(batch["ids"], lengths, strict=True)
    ]
    turned = make_batch(
        FULL,
        batch["dense"][order],
        ids,
        lengths=[n[order] for n in lengths],
        labels=batch["labels"][order],
        weights=batch["weights"][order],
    )
    step = adagrad_step(FULL)
    assert_trees_close(train(step, params, [turned]), train(step, params, [batch]))


# The state: copied, donated, skipped.


def test_the_state_is_a_copy_and_is_donated(params):
    step, batches = adagrad_step(FULL), list(bag_batches(FULL, 6))
    arrays = jax.tree.map(jnp.asarray, params)
    state = step.init(arrays)
    shown = step.params(state)
    new, _ = step.step(state, batches[0])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    # What was given and what was shown are the caller's own.
    jax.tree.map(np.testing.assert_array_equal, arrays, params)
    jax.tree.map(np.testing.assert_array_equal, shown, params)
    with pytest.raises((RuntimeError, ValueError), match="deleted|donated"):
        step.step(state, batches[0])
    before = step.params(new)
    step.step(new, batches[1])
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(before))


def test_an_optimizer_that_keeps_the_parameters_owns_a_copy(params):
    keeping = optax.GradientTransformation(
        lambda params: params, lambda updates, state, params: (updates, state)
    )
    step = make_sparse_step(dlrm(FULL), keeping, sparse_sgd(0.1))
    state = step.init_state(jax.tree.map(jnp.asarray, params))
    (batch,) = bag_batches(FULL, 6, count=1)
    state, _ = step.step(state, batch)
    jax.tree.map(
        np.testing.assert_array_equal,
        state.opt_state["dense"]["top"],
        params["top"],
    )


def test_a_step_left_out_changes_no_row_and_no_count(params):
    step = adagrad_step(FULL)
    (batch,) = bag_batches(FULL, 6, count=1)
    state = step.init(params)
    sums = jax.jit(step.gradients)(state, step.place(batch))
    apply = jax.jit(
        lambda keep: step.apply_rows(
            step.row_rule, state, sums.rows, jnp.float32(jnp.nan), keep
        )
    )
    rows, states = apply(False)
    jax.tree.map(np.testing.assert_array_equal, rows, state.params["rows"])
    jax.tree.map(np.testing.assert_array_equal, states, state.opt_state["rows"])
    rows, states = apply(True)
    assert np.isnan(rows["0"]["table"]).any() and states["0"]["table"].count == 1


def test_samples_without_weight_teach_nothing(params):
    step = adagrad_step(FULL)
    (batch,) = bag_batches(FULL, 6, count=1)
    found, _, losses = train(step, params, [batch | {"weights": np.zeros(6, "f")}])
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert losses == [0.0]


# Micro-batches.


@pytest.mark.parametrize("rule", [sparse_sgd, sparse_row_wise_adagrad])
def test_micro_batches_are_one_large_batch(params, rule):
    (batch,) = bag_batches(FULL, 12, count=1)
    step = make_sparse_step(dlrm(FULL), dense_adagrad(0.1), rule(0.1))
    shares = batch_shares(batch, 3)
    micro = [jax.tree.map(lambda leaf: leaf[i], shares) for i in range(3)]  # noqa: B023
    state = step.init(params)
    gradients = jax.jit(step.gradients)
    sums = functools.reduce(add_sums, (gradients(state, part) for part in micro))
    whole = gradients(state, step.place(batch))
    assert sums.weight == batch["weights"].sum()
    assert_trees_close(sums._replace(rows=()), whole._replace(rows=()))
    apply = jax.jit(functools.partial(step.apply_rows, step.row_rule))
    found, expected = (apply(state, s.rows, s.weight) for s in (sums, whole))
    assert_trees_close(found, expected)
    # Rows of several micro-batches do repeat.
    ids = np.asarray(sums.rows.ids["0"]["table"])
    assert len(np.unique(ids[ids < 40])) < (ids < 40).sum()


# What is compiled.


def test_few_programs_for_bags_of_any_length(params):
    step = adagrad_step(FULL)
    state = step.init(params)
    for seed in range(100):
        (batch,) = bag_batches(FULL, 3, count=1, longest=1 + seed % 2, seed=seed)
        state, _ = step.step(state, batch)
    # Room for 1, 2, 4 or 8 ids, as many as the fullest table has.
    assert step._compiled._cache_size() <= 4


def test_refuses_models_without_tables(params):
    model = dataclasses.replace(dlrm(FULL), row_ids=None)
    with pytest.raises(ValueError, match="no embedding tables to update by rows"):
        make_sparse_step(model, optax.sgd(0.1), sparse_sgd(0.1))


def test_refuses_plans_of_other_models():
    with pytest.raises(ValueError, match="the plan has 3 layouts, the model has 2"):
        adagrad_step(FULL, plan=["row"] * 3)
    with pytest.raises(ValueError, match="the plan is for 4 devices, the mesh has 1"):
        adagrad_step(FULL, plan=Plan((), 4))
