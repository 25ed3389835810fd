import dataclasses
import json

import jax
import numpy as np
import pytest

from models.cross import cross_params
from models.dcn import DCNConfig, count_params, cross_layer, dcn, forward_flops
from models.dlrm import make_batch
from models.embeddings import TableConfig

# Rows of the 26 tables of the Terabyte benchmark under its cap of 40 million.
TERABYTE_ROWS = (
    *(40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956),
    *(405282, 10, 2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000),
    *(590152, 12973, 108, 36),
)
TABLES = (TableConfig(9, 3), TableConfig(5, 2))  # widths may differ
CROSSES = {
    "vector": {},
    "matrix": {},
    "low_rank": {"rank": 2},
    "mixture": {"rank": 2, "experts": 3},
}
HEADS = {"parallel": (6, 4), "stacked": (6, 1)}
DENSE = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
IDS = np.asarray([[0, 8, 3, 5, 5, 1], [1, 2, 4, 0, 0, 3]])
each_cross = pytest.mark.parametrize("cross", CROSSES)
each_head = pytest.mark.parametrize("head", HEADS)


def config_of(cross, head, bottom=(4,), layers=2, tables=TABLES):
    return DCNConfig(
        tables, bottom, layers, HEADS[head], cross, head=head, **CROSSES[cross]
    )


def draw_params(config, seed=0):
    """Weights of ordinary size, biases too."""
    shapes = jax.eval_shape(dcn(config).init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    generator = np.random.default_rng(seed)
    drawn = [
        (generator.standard_normal(leaf.shape) / 2).astype(np.float32)
        for leaf in leaves
    ]
    return jax.tree.unflatten(tree, drawn)


def logits_of(config, params, dense=DENSE, ids=IDS):
    batch = make_batch(config, dense, ids[: len(config.tables)])
    return jax.jit(dcn(config).apply)(params, batch)


def perceptron(layers, x, relu_last):
    for index in range(len(layers)):
        layer = layers[f"layer_{index}"]
        x = x @ layer["kernel"] + layer["bias"]
        if relu_last or index + 1 < len(layers):
            x = np.maximum(x, 0)
    return x


def features_of(params, dense=DENSE):
    if "bottom" in params:
        dense = perceptron(params["bottom"], dense, relu_last=True)
    tables = params["tables"]
    return np.hstack([dense, *(tables[t]["table"][IDS[int(t)]] for t in tables)])


def crossed_by_hand(cross, layer, x0, x):
    """One layer, sample by sample, in float64."""
    layer = {name: np.asarray(leaf, np.float64) for name, leaf in layer.items()}
    rows = []
    for start, before in zip(x0, x, strict=True):
        if cross == "vector":
            inner = start * (before @ layer["weight"]) + layer["bias"]
        elif cross == "matrix":
            inner = start * (layer["kernel"].T @ before + layer["bias"])
        elif cross == "low_rank":
            narrow = layer["down"].T @ before
            inner = start * (layer["up"].T @ narrow + layer["bias"])
        else:
            gates = np.exp(before @ layer["gate"])
            gates = gates / gates.sum()
            inner = np.zeros_like(start)
            for expert, gate in enumerate(gates):
                hidden = np.maximum(layer["down"][expert].T @ before, 0)
                hidden = np.maximum(layer["core"][expert].T @ hidden, 0)
                wide = layer["up"][expert].T @ hidden
                inner += gate * start * (wide + layer["bias"])
        rows.append(inner + before)
    return np.asarray(rows)


@pytest.mark.parametrize("bottom", [(4,), (4, 5, 3)], ids=["raw", "bottom"])
@each_head
@each_cross
def test_logits_are_written_out(cross, head, bottom):
    config = config_of(cross, head, bottom)
    params = draw_params(config)
    assert ("bottom" in params) == (len(bottom) > 1)
    x0 = x = features_of(params).astype(np.float64)
    assert x0.shape[1] == config.width
    for layer in range(2):
        x = crossed_by_hand(cross, params["cross"][str(layer)], x0, x)
    if head == "stacked":
        expected = perceptron(params["deep"], x, relu_last=False)
    else:
        deep = perceptron(params["deep"], x0, relu_last=True)
        joined = np.hstack([x, deep])
        expected = perceptron(params["head"], joined, relu_last=False)
    found = logits_of(config, params)
    np.testing.assert_allclose(found, expected[:, 0], rtol=1e-4, atol=1e-4)


@each_head
@each_cross
def test_without_weights_crossing_is_the_identity(cross, head):
    config = config_of(cross, head)
    params = draw_params(config)
    params["cross"] = jax.tree.map(np.zeros_like, params["cross"])
    none = dataclasses.replace(config, cross_layers=0)
    found = logits_of(none, params | {"cross": {}})
    np.testing.assert_allclose(logits_of(config, params), found, rtol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_version_one_is_a_polynomial_of_degree_layers_plus_one(layers, x64):
    # With a linear head, along a line through dense features that are crossed raw:
    # differences of a higher order vanish, those of this degree do not.
    config = DCNConfig((), (4,), layers, (1,), head="stacked")
    params = jax.tree.map(np.float64, draw_params(config))
    line = np.outer(np.arange(layers + 4), [1.0, -0.5, 0.25, 2.0])
    batch = {"dense": line, "ids": np.zeros((0, len(line)), np.int32)}
    logits = np.asarray(dcn(config).apply(params, batch))
    scale = np.abs(np.diff(logits, layers + 1)).min()
    assert scale > 1e-3
    assert np.abs(np.diff(logits, layers + 2)).max() < 1e-9 * np.abs(logits).max()


def test_a_matrix_of_equal_columns_is_version_one():
    vector, matrix = (config_of(cross, "parallel") for cross in ("vector", "matrix"))
    params = draw_params(vector)
    ones = np.ones(vector.width, np.float32)
    for layer in params["cross"].values():
        layer["bias"] = np.zeros_like(ones)
    crossed = {
        index: {"kernel": np.outer(layer["weight"], ones), "bias": layer["bias"]}
        for index, layer in params["cross"].items()
    }
    np.testing.assert_allclose(
        logits_of(matrix, params | {"cross": crossed}),
        logits_of(vector, params),
        rtol=1e-4,
        atol=1e-5,
    )


def test_one_expert_without_bends_is_of_low_rank():
    layer = draw_params(config_of("low_rank", "parallel"))["cross"]["0"]
    layer = {name: np.abs(leaf) for name, leaf in layer.items()}
    width, rank = layer["down"].shape
    mixture = {
        "down": layer["down"][None],
        "core": np.eye(rank, dtype=np.float32)[None],
        "up": layer["up"][None],
        "gate": np.zeros((width, 1), np.float32),
        "bias": layer["bias"],
    }
    x = np.abs(np.random.default_rng(0).standard_normal((3, width)).astype(np.float32))
    np.testing.assert_allclose(
        cross_layer("mixture", mixture, x, 2 * x),
        cross_layer("low_rank", layer, x, 2 * x),
        rtol=1e-5,
    )


# Sizes and initial weights.


def test_published_parameter_counts():
    config = DCNConfig(
        tuple(TableConfig(rows, 128) for rows in TERABYTE_ROWS),
        (13, 512, 256, 128),
        3,
        (1024, 1024, 512, 256, 1),
        "low_rank",
        rank=512,
        head="stacked",
    )
    assert config.width == 27 * 128 == 3456
    assert count_params(config) == {
        "tables": 204_184_588 * 128,
        "bottom": 171_392,
        "cross": 10_627_200,
        "deep": 5_245_953,
        "head": 0,
        "total": 26_135_627_264 + 171_392 + 10_627_200 + 5_245_953,
    }
    perceptrons = 2 * (171_392 - 896 + 5_245_953 - 2817)  # without biases
    assert forward_flops(config) == perceptrons + 2 * 10_627_200


@each_head
@each_cross
def test_counts_are_those_of_the_arrays(cross, head):
    config = config_of(cross, head, bottom=(4, 5, 3))
    model = dcn(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    counts = count_params(config)
    total = counts.pop("total")
    for group, count in counts.items():
        leaves = jax.tree.leaves(params.get(group, {}))
        assert count == sum(leaf.size for leaf in leaves), group
    assert total == sum(counts.values())
    rank, experts = config.rank, config.experts
    assert counts["cross"] == 2 * cross_params(cross, config.width, rank, experts)
    axes = model.matrix_axes(params)
    group, layer = ("head", "0") if head == "parallel" else ("deep", "1")
    assert axes[group][f"layer_{layer}"]["kernel"].kind == "head"
    kinds = {name: found.kind for name, found in axes["cross"]["0"].items()}
    assert kinds.pop("bias") == "bias" and kinds.pop("weight", "bias") == "bias"
    assert set(kinds.values()) <= {"hidden"}


def test_matrices_begin_glorot_normal_and_biases_at_zero():
    width = 400
    config = DCNConfig((), (width,), 2, (3,), "mixture", rank=100, experts=3)
    params = dcn(config).init(jax.random.key(0))["cross"]
    assert not np.array_equal(params["0"]["core"], params["1"]["core"])
    for name, variance in (
        ("down", 2 / (width + 100)),
        ("core", 2 / (100 + 100)),
        ("up", 2 / (width + 100)),
        ("gate", 2 / (width + 3)),
    ):
        values = np.asarray(params["0"][name], np.float64)
        assert abs(values.var() / variance - 1) < 4 * np.sqrt(2 / values.size)
    np.testing.assert_array_equal(params["0"]["bias"], 0.0)
    vector = DCNConfig((), (width,), 1, (3,))
    weight = dcn(vector).init(jax.random.key(0))["cross"]["0"]["weight"]
    assert abs(weight.var() * (width + 1) / 2 - 1) < 4 * np.sqrt(2 / width)


@each_head
@each_cross
def test_every_leaf_has_a_finite_gradient(cross, head):
    config = config_of(cross, head)
    params = draw_params(config)
    batch = make_batch(config, DENSE, IDS, labels=[0, 1, 1, 0, 1, 0])
    gradient = jax.jit(jax.grad(lambda p: dcn(config).loss(p, batch)[0]))(params)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.any(leaf != 0), path


# The config.


def test_json_round_trip():
    config = DCNConfig(
        [TableConfig(9, 3, "qr")],
        [np.int64(4)],
        np.int32(2),
        [5],
        "mixture",
        rank=np.int64(2),
        loss="wbce",
        loss_weights=[1, 2],
    )
    again = DCNConfig.from_json(config.to_json())
    assert again == config and hash(again) == hash(config) and dcn(again) is dcn(config)
    assert json.loads(config.to_json())["cross_layers"] == 2
    with pytest.raises(
        ValueError, match="unknown fields weighted_pooling of DCNConfig"
    ):
        DCNConfig.from_dict(config.to_dict() | {"weighted_pooling": "learned"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bottom": ()}, "bottom must hold at least 1 widths"),
        ({"deep": ()}, "deep must hold at least 1 widths"),
        ({"deep": (5, 0)}, r"deep\[1\] must be an integer >= 1, got 0"),
        (
            {"head": "stacked"},
            r"deep must end in 1 \(the logit\) for head='stacked', g",
        ),
        ({"head": "both"}, "head must be one of parallel, stacked, got 'both'"),
        (
            {"cross": "cube"},
            "cross must be one of vector, matrix, low_rank, mixture, g",
        ),
        ({"cross": "low_rank"}, "rank must be an integer >= 1, got 0"),
        ({"cross": "mixture", "rank": 2, "experts": 0}, "experts must be an integer"),
        ({"cross_layers": -1}, "cross_layers must be an integer >= 0, got -1"),
        ({"cross_layers": 1.5}, "cross_layers must be an integer >= 0, got 1.5"),
        ({"loss": "hinge"}, "loss must be one of bce, wbce, mse, got 'hinge'"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config_of("vector", "parallel"), **fields)


def test_tables_are_table_configs_and_have_no_pooling_weights():
    with pytest.raises(TypeError, match=r"tables\[0\] must be a TableConfig, got 9"):
        config_of("vector", "parallel", tables=(9,))
    with pytest.raises(TypeError, match="weighted_pooling"):
        DCNConfig(TABLES, (4,), 1, (5,), weighted_pooling="learned")
