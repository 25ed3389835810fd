import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from models.dlrm import (
    DLRMConfig,
    count_params,
    dlrm,
    forward_flops,
    interact,
    make_batch,
)
from models.dlrm_reference import reference_params
from models.embeddings import TableConfig

# Rows of the 26 categorical columns of the Kaggle display advertising data.
KAGGLE_ROWS = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593),
    *(3194, 27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105),
    142572,
)
TABLES = (TableConfig(9, 3), TableConfig(5, 3))
CONFIG = DLRMConfig(TABLES, (4, 6, 3), (5, 1))
DENSE_LEAVES = ("functions", "projection")


def draw_vectors(count, width=3, batch=5, seed=0):
    x, embeddings = np.split(
        np.random.default_rng(seed).standard_normal((batch, count, width)), [1], axis=1
    )
    return x[:, 0], embeddings


def double_loop(x, embeddings, itself):
    """What the interaction is, one product after another."""
    vectors = [x, *np.swapaxes(embeddings, 0, 1)]
    columns = [
        np.sum(vectors[i] * vectors[j], axis=1)
        for i in range(len(vectors))
        for j in range(i + 1 if itself else i)
    ]
    return np.column_stack([x, *columns])


# The interaction.


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("count", range(1, 9))
def test_products_equal_the_double_loop(count, itself):
    x, embeddings = draw_vectors(count)
    found = interact(jnp.float32(x), jnp.float32(embeddings), "dot", itself)
    pairs = count * (count + 1) // 2 if itself else count * (count - 1) // 2
    assert found.shape == (5, 3 + pairs) and found.dtype == jnp.float32
    expected = double_loop(x, embeddings, itself)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_compiled_products_of_a_large_batch_equal_the_double_loop():
    # A product and its sum over a middle axis, fused by XLA for CPUs (jaxlib 0.10.2),
    # came out wrong from a few thousand samples on.
    x, embeddings = draw_vectors(12, width=4, batch=16_384)
    found = jax.jit(interact)(jnp.float32(x), jnp.float32(embeddings))
    expected = double_loop(x, embeddings, False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_products_come_row_by_row_after_the_dense_vector():
    # Vectors of one prime number each: every product says whose it is.
    numbers = jnp.float32([2, 3, 5, 7])
    vectors = numbers[None, :, None] * jnp.ones((1, 4, 1))
    found = interact(vectors[:, 0], vectors[:, 1:])
    np.testing.assert_array_equal(found, [[2, 6, 10, 15, 14, 21, 35]])
    found = interact(vectors[:, 0], vectors[:, 1:], itself=True)
    np.testing.assert_array_equal(found, [[2, 4, 6, 9, 10, 15, 25, 14, 21, 35, 49]])


@pytest.mark.parametrize("itself", [False, True])
def test_concatenation_is_all_vectors_one_after_another(itself):
    x, embeddings = map(jnp.float32, draw_vectors(4))
    found = interact(x, embeddings, "cat", itself)
    expected = np.concatenate([x[:, None], embeddings], axis=1).reshape(5, 12)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_gradients_of_any_order(count, itself, x64):
    check_grads(
        lambda x, embeddings: interact(x, embeddings, "dot", itself),
        draw_vectors(count),
        order=2,
        modes=["rev"],
        atol=1e-6,
        rtol=1e-6,
    )


def test_the_interaction_of_one_sample_at_a_time():
    x, embeddings = map(jnp.float32, draw_vectors(4))
    together = jax.grad(lambda e: jnp.sum(interact(x, e) ** 3))(embeddings)
    each = jax.vmap(
        jax.grad(lambda e, x: jnp.sum(interact(x[None], e[None]) ** 3)), (0, 0)
    )(embeddings, x)
    np.testing.assert_allclose(each, together, rtol=1e-5, atol=1e-5)


def test_neither_direction_scatters():
    def both(x, embeddings, cotangent):
        value, backward = jax.vjp(interact, x, embeddings)
        return value, backward(cotangent)

    shapes = (jnp.zeros((8, 4)), jnp.zeros((8, 6, 4)), jnp.zeros((8, 4 + 21)))
    assert "scatter" not in jax.jit(both).lower(*shapes).as_text()


def test_unknown_operations_are_refused():
    with pytest.raises(ValueError, match="op must be one of dot, cat, got 'sum'"):
        interact(*map(jnp.float32, draw_vectors(2)), "sum")


# The config.


def test_the_fields_and_their_defaults():
    fields = [field.name for field in dataclasses.fields(DLRMConfig)]
    assert fields[:9] == [
        "tables",
        "bottom",
        "top",
        "interaction",
        "interaction_itself",
        "weighted_pooling",
        "loss",
        "loss_weights",
        "loss_threshold",
    ]
    assert CONFIG.interaction == "dot" and not CONFIG.interaction_itself
    assert CONFIG.weighted_pooling == "none" and CONFIG.loss == "bce"
    assert CONFIG.loss_weights == (1.0, 1.0) and CONFIG.loss_threshold == 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.top = (1,)


def test_json_round_trip():
    config = DLRMConfig(
        [TableConfig(9, 3, "qr", collisions=2), TableConfig(9, 3, "crt")],
        [np.int64(4), 3],
        [1],
        interaction="cat",
        loss="wbce",
        loss_weights=[1, np.float32(0.5)],
        loss_threshold=0,
    )
    text = config.to_json()
    assert json.loads(text)["tables"][0]["method"] == "qr"
    again = DLRMConfig.from_json(text)
    assert again == config and hash(again) == hash(config)
    assert again.bottom == (4, 3) and again.tables == config.tables
    assert DLRMConfig.from_dict(config.to_dict()) == config
    # The same config is the same model, so that compiled functions are found again.
    assert dlrm(again) is dlrm(config)
    with pytest.raises(ValueError, match="unknown fields depth of DLRMConfig; there"):
        DLRMConfig.from_dict({**config.to_dict(), "depth": 3})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bottom": (4, 6, 2)}, r"ends in 2 and tables\[0\].dim=3"),
        (
            {"bottom": (4, 6, 2), "interaction": "cat"},
            r"ends in 2 and tables\[0\].dim=3",
        ),
        ({"tables": (*TABLES, TableConfig(5, 4))}, r"in 3 and tables\[2\].dim=4"),
        ({"top": (5, 2)}, r"top must end in 1 \(the logit\), got \(5, 2\)"),
        ({"top": ()}, "top must hold at least 1 widths"),
        ({"bottom": (3,)}, "bottom must hold at least 2 widths, got"),
        ({"bottom": (4, 0, 3)}, r"bottom\[1\] must be an integer >= 1, got 0"),
        ({"top": (2.5, 1)}, r"top\[0\] must be an integer >= 1, got 2.5"),
        ({"top": (True,)}, r"top\[0\] must be an integer >= 1, got True"),
        ({"interaction": "sum"}, "interaction must be one of dot, cat, got 'sum'"),
        ({"weighted_pooling": "yes"}, "must be one of none, fixed, learned, got 'yes'"),
        ({"compute_dtype": "int8"}, "compute_dtype must be one of float32, bfloat16"),
        ({"loss": "hinge"}, "loss must be one of bce, wbce, mse, got 'hinge'"),
        ({"loss_weights": (1.0,)}, "loss_weights must be two finite numbers"),
        ({"loss_weights": (1.0, -1.0)}, "loss_weights must be two finite numbers"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **fields)


def test_tables_are_table_configs():
    with pytest.raises(TypeError, match=r"tables\[1\] must be a TableConfig, got 9"):
        dataclasses.replace(CONFIG, tables=(TABLES[0], 9))


@pytest.mark.parametrize("weighted", ["fixed", "learned"])
@pytest.mark.parametrize(
    "table",
    [
        TableConfig(9, 3, "qr"),
        TableConfig(9, 3, "qr", threshold=200),
        TableConfig(9, 3, "mixed", component_dims=(2,)),
    ],
    ids=["qr", "qr below its threshold", "mixed"],
)
def test_pooling_weights_go_with_full_tables_only(weighted, table):
    message = rf"='{weighted}' goes with full tables only, but tables\[1\].method="
    with pytest.raises(ValueError, match=message):
        DLRMConfig((TABLES[0], table), (4, 3), (1,), weighted_pooling=weighted)


# Sizes.

PUBLISHED = {
    "kaggle": (16, (13, 512, 256, 64, 16), (512, 256, 1), 367, 155_984, 320_001),
    "terabyte": (64, (13, 512, 256, 64), (512, 512, 256, 1), 415, 154_944, 607_233),
    "mlperf": (
        *(128, (13, 512, 256, 128), (1024, 1024, 512, 256, 1)),
        *(479, 171_392, 2_197_505),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    dim, bottom, top, width, of_bottom, of_top = PUBLISHED[name]
    tables = tuple(TableConfig(rows, dim) for rows in KAGGLE_ROWS)
    config = DLRMConfig(tables, bottom, top)
    counts = count_params(config)
    assert config.interaction_width == width
    assert (counts["bottom"], counts["top"]) == (of_bottom, of_top)
    assert counts["tables"] == 33_762_577 * dim
    assert counts["total"] == counts["tables"] + of_bottom + of_top


VARIANTS = {
    "dot": CONFIG,
    "itself": dataclasses.replace(CONFIG, interaction_itself=True),
    "cat": dataclasses.replace(CONFIG, interaction="cat"),
    "learned": dataclasses.replace(CONFIG, weighted_pooling="learned"),
    "fixed": dataclasses.replace(CONFIG, weighted_pooling="fixed"),
    "no tables": DLRMConfig((), (4, 3), (5, 1)),
    "compressed": DLRMConfig(
        (
            TableConfig(9, 3, "features", collisions=2),
            TableConfig(9, 3, "path", collisions=2, path_hidden=2),
            TableConfig(9, 3, "mixed", component_dims=(2,)),
        ),
        (4, 3),
        (5, 1),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_are_those_of_the_arrays(name):
    config = VARIANTS[name]
    model = dlrm(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    sizes = {
        group: sum(leaf.size for leaf in jax.tree.leaves(params[group]))
        for group in ("tables", "bottom", "top")
    }
    assert count_params(config) == sizes | {"total": sum(sizes.values())}
    kinds = jax.tree.map(
        lambda leaf, axes: axes.kind, params, model.matrix_axes(params)
    )
    last = f"layer_{len(config.top) - 1}"
    assert kinds["top"][last] == {"kernel": "head", "bias": "bias"}
    assert kinds["bottom"]["layer_0"] == {"kernel": "hidden", "bias": "bias"}
    for table in kinds["tables"].values():
        rows = {name: kind for name, kind in table.items() if name not in DENSE_LEAVES}
        assert set(rows.values()) == {"embedding"}


def test_widths_of_the_interaction():
    widths = {name: config.interaction_width for name, config in VARIANTS.items()}
    assert widths["dot"] == 3 + 3 and widths["itself"] == 3 + 6
    assert widths["cat"] == 9 and widths["no tables"] == 3
    # Two vectors of `features` and one each of the others, beside the dense one.
    assert VARIANTS["compressed"].num_vectors == 5 and widths["compressed"] == 3 + 10


def test_operations_of_a_sample():
    perceptrons = 2 * (4 * 6 + 6 * 3) + 2 * (6 * 5 + 5)
    assert forward_flops(CONFIG) == perceptrons + 3 * 3 * 3
    assert dlrm(CONFIG).flops_per_example == 3 * forward_flops(CONFIG)
    cat = VARIANTS["cat"]
    assert forward_flops(cat) == 2 * (4 * 6 + 6 * 3) + 2 * (9 * 5 + 5)


# The model.


def draw_batch(config, size=6, seed=0):
    generator = np.random.default_rng(seed)
    return make_batch(
        config,
        generator.standard_normal((size, config.bottom[0])),
        [generator.integers(0, table.rows, size) for table in config.tables],
        labels=generator.integers(0, 2, size),
    )


@functools.cache
def params_of(name):
    config = VARIANTS[name]
    if name == "compressed":
        return dlrm(config).init(jax.random.key(1))
    return jax.tree.map(jnp.asarray, reference_params(config))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_leaf_has_a_finite_gradient(name):
    config, params = VARIANTS[name], params_of(name)
    batch = draw_batch(config, 32)
    gradient = jax.jit(jax.grad(lambda p: dlrm(config).loss(p, batch)[0]))(params)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all() and np.any(leaf != 0)


def test_without_tables_the_dense_vector_is_all_there_is():
    config, params = VARIANTS["no tables"], params_of("no tables")
    batch = draw_batch(config)
    assert batch["ids"].shape == (0, 6) and params["tables"] == {}
    logits = jax.jit(dlrm(config).apply)(params, batch)
    x = batch["dense"]
    for group in ("bottom", "top"):
        for index, layer in enumerate(params[group].values()):
            x = x @ layer["kernel"] + layer["bias"]
            x = x if (group, index) == ("top", 1) else np.maximum(x, 0)
    np.testing.assert_allclose(logits, x[:, 0], rtol=1e-5, atol=1e-6)


def test_fixed_weights_have_no_parameter_and_change_nothing():
    params, batch = params_of("dot"), draw_batch(CONFIG)
    logits = jax.jit(dlrm(CONFIG).apply)(params, batch)
    fixed = dlrm(VARIANTS["fixed"])
    np.testing.assert_array_equal(jax.jit(fixed.apply)(params, batch), logits)
    learned = params_of("learned")
    assert learned["tables"]["1"]["pooling_weight"].shape == (5, 1)
    np.testing.assert_array_equal(learned["tables"]["1"]["pooling_weight"], 1.0)
    found = jax.jit(dlrm(VARIANTS["learned"]).apply)(learned, batch)
    np.testing.assert_allclose(found, logits, rtol=1e-6)


def test_half_precision_products_keep_logits_apart():
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    params, batch = params_of("dot"), draw_batch(CONFIG, 200)
    exact = jax.jit(dlrm(CONFIG).apply)(params, batch)
    logits = jax.jit(dlrm(config).apply)(params, batch)
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - exact).max() < 0.05 * np.abs(exact).max()
    assert len(np.unique(logits)) == len(np.unique(exact))
    gradient = jax.jit(jax.grad(lambda p: dlrm(config).loss(p, batch)[0]))(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


def test_parameters_depend_on_the_key_alone():
    params, again, other = (
        dlrm(CONFIG).init(jax.random.key(seed)) for seed in (1, 1, 2)
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))
    assert not any(jax.tree.leaves(jax.tree.map(np.array_equal, params, other)))
