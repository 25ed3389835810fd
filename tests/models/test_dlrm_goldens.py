"""Forward pass, loss and gradients of the original implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.categorical import POOLING_WEIGHT, split_tables
from models.dlrm import dlrm, interact
from models.dlrm_reference import from_reference_state, to_reference_state
from models.layers.mlp import apply_mlp
from tests.models.dlrm_cases import NAMES, batch_of, config_of, read_case, state_of

close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=NAMES)
def case(request, golden_dir):
    settings, arrays = read_case(golden_dir, request.param)
    config = config_of(settings)
    assert config.top_widths == tuple(settings["ln_top"])
    params = from_reference_state(config, state_of(arrays, "w0"))
    return config, params, batch_of(config, arrays), arrays


def test_intermediate_values(case):
    config, params, batch, arrays = case
    tables = config.categorical
    x = apply_mlp(params["bottom"], batch["dense"], relu_last=True)
    close(x, arrays["mid/bottom"])
    rows = tables.lookup(params["tables"], tables.row_ids(batch))
    pooled = tables.pool(rows, {}, batch)
    for index, vectors in enumerate(pooled):
        close(vectors, arrays[f"mid/emb_{index}"])
    features = interact(
        x, jnp.stack(pooled, axis=1), config.interaction, config.interaction_itself
    )
    close(features, arrays["mid/interact"])


def test_predictions_and_loss(case):
    config, params, batch, arrays = case
    model = dlrm(config)
    logits = jax.jit(model.apply)(params, batch)
    close(config.click_loss.probability(logits), arrays["out/prob"][:, 0])
    objective, aux = jax.jit(model.loss)(params, batch)
    close(objective, arrays["out/loss"])
    assert aux["loss"] == objective and aux["weight"] == len(logits)
    np.testing.assert_allclose(aux["logits"], logits, rtol=1e-6)


def test_gradients_of_dense_weights_and_of_tables(case):
    config, params, batch, arrays = case
    gradient = jax.jit(jax.grad(lambda p: dlrm(config).loss(p, batch)[0]))(params)
    ours = to_reference_state(config, gradient)
    expected = state_of(arrays, "grad")
    for name, values in state_of(arrays, "grad_vals").items():
        expected[name] = np.zeros_like(ours[name])
        expected[name][arrays[f"grad_rows/{name}"]] = values
    assert set(ours) == set(expected)
    for name, values in expected.items():
        close(ours[name], values, err_msg=name)


def test_gradients_of_rows_add_up_to_those_of_tables(case):
    config, params, batch, arrays = case
    model = dlrm(config)
    tables, dense = split_tables(params)
    ids = model.row_ids(batch)
    rows = config.categorical.lookup(tables, ids)
    gradient = jax.jit(jax.grad(lambda r: model.loss_from_rows(r, dense, batch)[0]))
    of_rows = gradient(rows)
    names = {"table": "weight", "quotient": "weight_q", "remainder": "weight_r"}
    for index, leaves in of_rows.items():
        for leaf, values in leaves.items():
            size = len(tables[index][leaf])
            summed = np.zeros((size + 1, values.shape[1]), np.float32)
            np.add.at(summed, np.asarray(ids[index][leaf]), np.asarray(values))
            # What is looked up past the end belongs to no bag.
            np.testing.assert_array_equal(summed[size], 0.0)
            if leaf == POOLING_WEIGHT:
                close(summed[:size, 0], arrays[f"grad/v_W_l.{index}"])
                continue
            name = f"emb_l.{index}.{names[leaf]}"
            looked_up = arrays[f"grad_rows/{name}"]
            close(summed[looked_up], arrays[f"grad_vals/{name}"])
            others = np.setdiff1d(np.arange(size), looked_up)
            np.testing.assert_array_equal(summed[others], 0.0)
