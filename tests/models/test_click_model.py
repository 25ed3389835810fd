import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from models.categorical import split_tables
from models.click_model import require_integer
from models.dcn import DCNConfig, dcn
from models.dlrm import DLRMConfig, dlrm, make_batch
from models.embeddings import TableConfig

TABLES = (
    TableConfig(9, 3, "path", collisions=2, path_hidden=2),
    TableConfig(9, 3, "mixed", component_dims=(2,)),
    TableConfig(9, 3),
)
DLRM = DLRMConfig(TABLES, (4, 3), (5, 1), loss="wbce", loss_weights=(1.0, 2.0))
DCN = DCNConfig(TABLES, (4, 3), 2, (5,), loss_threshold=0.1)
MODELS = {"dlrm": (DLRM, dlrm(DLRM)), "dcn": (DCN, dcn(DCN))}
IDS = np.asarray([[0, 8, 3, 5, 5], [1, 2, 7, 0, 0], [4, 4, 4, 4, 4]])
DENSE = np.random.default_rng(0).standard_normal((5, 4))
BATCH = make_batch(DLRM, DENSE, IDS, labels=[0, 1, 1, 0, 1], weights=[1, 1, 2, 0, 1])


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    config, model = MODELS[request.param]
    return config, model, model.init(jax.random.key(0))


def test_loss_of_looked_up_rows_is_the_loss(case):
    config, model, params = case
    tables, dense = split_tables(params)
    rows = {
        index: {leaf: tables[index][leaf][ids] for leaf, ids in leaves.items()}
        for index, leaves in model.row_ids(BATCH).items()
    }
    grad = jax.jit(jax.value_and_grad(model.loss, has_aux=True))
    (loss, aux), whole = grad(params, BATCH)
    grad = jax.jit(jax.value_and_grad(model.loss_from_rows, (0, 1), has_aux=True))
    (same, of_rows), (row_gradient, rest) = grad(rows, dense, BATCH)
    np.testing.assert_allclose(same, loss, rtol=1e-6)
    for name in ("loss", "weight", "logits"):
        np.testing.assert_allclose(of_rows[name], aux[name], rtol=1e-6)
    _, expected = split_tables(whole)
    for ours, theirs in zip(*map(jax.tree.leaves, (rest, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    # The third table was looked up at one row only.
    np.testing.assert_allclose(
        row_gradient["2"]["table"].sum(0), whole["tables"]["2"]["table"][4], rtol=1e-4
    )


def test_the_auxiliary_values(case):
    config, model, params = case
    loss, aux = jax.jit(model.loss)(params, BATCH)
    logits = jax.jit(model.apply)(params, BATCH)
    assert set(aux) == {"loss", "weight", "logits"}
    assert aux["logits"].shape == (5,) and aux["logits"].dtype == jnp.float32
    np.testing.assert_allclose(aux["logits"], logits, rtol=1e-6)
    assert aux["weight"] == 5.0 and aux["loss"] == loss
    each = config.click_loss.per_sample(logits, BATCH["labels"])
    mean = np.average(each, weights=BATCH["weights"])
    np.testing.assert_allclose(loss, mean, rtol=1e-5)
    # Keys and the mode of training are for models that draw or drop.
    again, _ = model.loss(params, BATCH, key=jax.random.key(0), train=True)
    np.testing.assert_allclose(again, loss, rtol=1e-6)


def test_rows_of_tables_are_split_and_nothing_else(case):
    _, model, params = case
    for path, _ in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        is_row = name.startswith("tables/") and not any(
            part in name for part in ("functions", "projection")
        )
        expected = PartitionSpec("fsdp") if is_row else PartitionSpec()
        rules = model.partition_rules
        first = next(spec for pattern, spec in rules if re.search(pattern, name))
        assert first == expected, name


def test_what_the_leaves_of_a_table_are(case):
    _, model, params = case
    axes = model.matrix_axes(params)["tables"]
    functions = axes["0"]["functions"]["part_1"]
    assert functions["hidden_kernel"].kind == "hidden"
    assert functions["hidden_kernel"].batch_axes == (0,)
    assert functions["output_bias"].kind == "bias"
    assert axes["1"]["projection"].kind == "hidden"
    assert {axes["0"]["part_0"].kind, axes["1"]["table"].kind} == {"embedding"}


def test_the_rules_for_batches_come_from_the_tables():
    rules = DLRM.batch_rules
    assert rules.rows == (9, 9, 9) and rules.num_dense == 4
    assert rules.id_policy == "error" and DCN.batch_rules == rules
    again = make_batch(rules, DENSE, IDS)
    np.testing.assert_array_equal(again["ids"], BATCH["ids"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dense": DENSE[:, :2]}, r"dense must have shape \[B, 4\], got \(5, 2\)"),
        ({"ids": IDS[:2]}, "the model has 3 tables, but the batch ids of 2"),
        ({"labels": None}, "the loss needs labels, and the batch has none"),
    ],
)
def test_batches_of_other_shapes_are_refused(case, change, message):
    _, model, params = case
    batch = {k: v for k, v in (BATCH | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.loss, params, batch)


@pytest.mark.parametrize("value", [0, 1.0, "1", True, None, np.float32(2)])
def test_integers_are_integers(value):
    with pytest.raises(ValueError, match="rank must be an integer >= 1, got"):
        require_integer("rank", value, 1)


def test_integers_of_any_kind_are_read():
    assert require_integer("rank", np.uint8(3), 1) == 3
    assert type(require_integer("rank", np.int64(3), 1)) is int
