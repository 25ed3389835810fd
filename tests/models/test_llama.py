import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import build_llama, llama_preset

PICO = llama_preset("llama_pico")
LENGTH = 16


def make_batch(config=PICO, rows=3, length=LENGTH, seed=1):
    tokens = jax.random.randint(
        jax.random.key(seed), (rows, length + 1), 0, config.vocab_size
    )
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}


@functools.cache
def make_params(config=PICO, scale=3.0):
    # Larger than the initialisation, so that attention is far from uniform.
    params = build_llama(config).init(jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf * scale, params)


def stack_layers(params, config):
    layers = [params["layers"][str(i)] for i in range(config.num_layers)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return {**params, "layers": stacked}


def apply(config, params, batch, **kwargs):
    run = functools.partial(build_llama(config).apply, **kwargs)
    return jax.jit(run)(params, batch)


def loss_of(config, params, batch):
    return jax.jit(build_llama(config).loss)(params, batch)


def value_and_grad(config, params, batch, **kwargs):
    def objective(params):
        return build_llama(config).loss(params, batch, **kwargs)[0]

    return jax.jit(jax.value_and_grad(objective))(params)


def assert_trees_close(actual, desired, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
        actual,
        desired,
    )


def test_matches_an_independent_numpy_forward_pass():
    config, params, batch = PICO, make_params(), make_batch()
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * scale

    def turn(x):
        t, half = np.arange(x.shape[0]), width // 2
        angle = t[:, None] * config.rope_theta ** (-np.arange(half) / half)
        z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], -1)

    def attention(x, p):
        q, k, v = (x @ p[name]["kernel"] for name in ("query", "key", "value"))
        causal = np.tril(np.ones((len(x), len(x)), bool))
        outputs = []
        for head in range(heads):
            group = head * kv_heads // heads
            here = slice(head * width, (head + 1) * width)
            there = slice(group * width, (group + 1) * width)
            scores = turn(q[:, here]) @ turn(k[:, there]).T / np.sqrt(width)
            scores = np.exp(np.where(causal, scores, -np.inf))
            outputs.append(scores / scores.sum(-1, keepdims=True) @ v[:, there])
        return np.concatenate(outputs, -1) @ p["output"]["kernel"]

    def feed_forward(x, p):
        gate, up = x @ p["gate"]["kernel"], x @ p["up"]["kernel"]
        return (gate / (1 + np.exp(-gate)) * up) @ p["down"]["kernel"]

    expected = []
    for row in np.asarray(batch["tokens"]):
        x = p["token_embedding"]["embedding"][row]
        for layer in p["layers"].values():
            x = x + attention(
                norm(x, layer["attention_norm"]["scale"]), layer["attention"]
            )
            normed = norm(x, layer["feed_forward_norm"]["scale"])
            x = x + feed_forward(normed, layer["feed_forward"])
        expected.append(norm(x, p["final_norm"]["scale"]) @ p["head"]["kernel"])
    logits = apply(config, params, batch)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=2e-4)


def test_params_are_a_plain_dict_with_readable_paths():
    params = build_llama(PICO).init(jax.random.key(0))
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    layer = {
        "attention/key/kernel": (32, 16),
        "attention/output/kernel": (32, 32),
        "attention/query/kernel": (32, 32),
        "attention/value/kernel": (32, 16),
        "attention_norm/scale": (32,),
        "feed_forward/down/kernel": (96, 32),
        "feed_forward/gate/kernel": (32, 96),
        "feed_forward/up/kernel": (32, 96),
        "feed_forward_norm/scale": (32,),
    }
    assert names == {
        "final_norm/scale": (32,),
        "head/kernel": (32, 256),
        "token_embedding/embedding": (256, 32),
        **{f"layers/{i}/{k}": v for i in range(2) for k, v in layer.items()},
    }
    stack = [params]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            assert type(node) is dict
            stack.extend(node.values())
        else:
            assert isinstance(node, jax.Array)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_gradients_are_a_plain_dict_like_the_params(scan_layers):
    config = dataclasses.replace(PICO, scan_layers=scan_layers)
    params = make_params(config)
    _, gradients = value_and_grad(config, params, make_batch())
    assert type(gradients) is dict
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    for gradient, leaf in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(params), strict=True
    ):
        assert gradient.shape == leaf.shape and gradient.dtype == leaf.dtype
        assert np.abs(gradient).max() > 0


def test_scaled_init_cuts_at_three_sigma_and_shrinks_residual_outputs():
    config = dataclasses.replace(PICO, num_layers=8, d_model=64, d_ff=256)
    params = build_llama(config).init(jax.random.key(0))
    assert np.abs(params["head"]["kernel"]).max() <= 0.06
    layer = params["layers"]["3"]
    for kernel, expected in (
        (layer["attention"]["query"]["kernel"], 0.02),
        (layer["attention"]["output"]["kernel"], 0.02 / 4),
        (layer["feed_forward"]["gate"]["kernel"], 0.02),
        (layer["feed_forward"]["down"]["kernel"], 0.02 / 4),
        (params["token_embedding"]["embedding"], 0.02),
    ):
        np.testing.assert_allclose(
            np.std(kernel["kernel"] if isinstance(kernel, dict) else kernel),
            expected,
            rtol=0.05,
        )
    np.testing.assert_array_equal(layer["attention_norm"]["scale"], 1.0)


def test_llama_init_is_uncut_and_unscaled():
    config = dataclasses.replace(PICO, init="llama", d_ff=512)
    params = build_llama(config).init(jax.random.key(0))
    down = params["layers"]["0"]["feed_forward"]["down"]["kernel"]
    np.testing.assert_allclose(np.std(down), 0.02, rtol=0.05)
    assert np.abs(params["head"]["kernel"]).max() > 0.06


def test_layers_and_kernels_are_drawn_independently():
    params = build_llama(PICO).init(jax.random.key(0))
    leaves = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    first = {float(leaf[0, 0]) for leaf in leaves}
    # attention/output and feed_forward/down differ by scale only if drawn alike.
    assert len(first) == len(leaves)
    other = build_llama(PICO).init(jax.random.key(1))
    assert not np.array_equal(params["head"]["kernel"], other["head"]["kernel"])


def test_init_draws_the_same_model_in_every_type_and_layout():
    params = build_llama(PICO).init(jax.random.key(3))
    half = dataclasses.replace(PICO, param_dtype="bfloat16")
    scan = dataclasses.replace(PICO, scan_layers=True)
    assert_trees_close(
        build_llama(half).init(jax.random.key(3)),
        jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params),
        rtol=0,
        atol=0,
    )
    assert_trees_close(
        build_llama(scan).init(jax.random.key(3)),
        stack_layers(params, PICO),
        rtol=0,
        atol=0,
    )


def test_future_tokens_do_not_matter():
    params, batch = make_params(), make_batch()
    cut = 9
    changed = batch["tokens"].at[:, cut:].set(7)
    before = apply(PICO, params, batch)
    after = apply(PICO, params, {"tokens": changed})
    np.testing.assert_array_equal(before[:, :cut], after[:, :cut])
    assert np.abs(before[:, cut:] - after[:, cut:]).max() > 0.01


@pytest.mark.parametrize("restart_positions", [False, True])
def test_a_packed_segment_equals_the_segment_alone(restart_positions):
    params = make_params()
    alone = [make_batch(rows=1, length=n, seed=n)["tokens"] for n in (6, 5)]
    padding = jnp.zeros((1, 3), jnp.int32)
    packed = {
        "tokens": jnp.concatenate([*alone, padding], axis=1),
        "segment_ids": jnp.array([[1] * 6 + [2] * 5 + [0] * 3]),
    }
    if restart_positions:
        packed["positions"] = jnp.array([[*range(6), *range(5), *range(3)]])
    logits = apply(PICO, params, packed)
    assert np.isfinite(logits).all()
    for segment, tokens in ((slice(0, 6), alone[0]), (slice(6, 11), alone[1])):
        expected = apply(PICO, params, {"tokens": tokens})
        np.testing.assert_allclose(logits[:, segment], expected, atol=2e-5)


def test_padding_weighs_nothing_by_default():
    params, batch = make_params(), make_batch(rows=1)
    segment_ids = jnp.array([[1] * 10 + [0] * 6])
    padded = {**batch, "segment_ids": segment_ids}
    objective, aux = loss_of(PICO, params, padded)
    short = {name: value[:, :10] for name, value in batch.items()}
    expected, _ = loss_of(PICO, params, short)
    assert aux["weight"] == 10
    np.testing.assert_allclose(objective, expected, rtol=1e-5)


def test_grouped_queries_equal_repeated_heads():
    grouped = dataclasses.replace(PICO, num_heads=4, num_kv_heads=2)
    full = dataclasses.replace(grouped, num_kv_heads=4)
    params, batch = make_params(grouped), make_batch()

    def repeat(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith(("attention/key/kernel", "attention/value/kernel")):
            return leaf
        heads = leaf.reshape(leaf.shape[0], 2, grouped.head_dim)
        return jnp.repeat(heads, 2, axis=1).reshape(leaf.shape[0], -1)

    np.testing.assert_allclose(
        apply(grouped, params, batch),
        apply(full, jax.tree.map_with_path(repeat, params), batch),
        atol=2e-5,
    )


def test_tied_embeddings_equal_untied_with_a_transposed_head():
    tied = dataclasses.replace(PICO, tie_embeddings=True)
    params, batch = make_params(tied), make_batch()
    assert "head" not in params
    head = {"kernel": params["token_embedding"]["embedding"].T}
    np.testing.assert_allclose(
        apply(tied, params, batch),
        apply(PICO, {**params, "head": head}, batch),
        atol=2e-5,
    )
    _, gradient = value_and_grad(tied, params, batch)
    _, parts = value_and_grad(PICO, {**params, "head": head}, batch)
    np.testing.assert_allclose(
        gradient["token_embedding"]["embedding"],
        parts["token_embedding"]["embedding"] + parts["head"]["kernel"].T,
        atol=1e-6,
    )


@functools.cache
def step_with_dropout(**layout):
    config = dataclasses.replace(PICO, dropout=0.1, **layout)
    params = make_params()
    given = stack_layers(params, PICO) if config.scan_layers else params
    key = jax.random.key(5)
    return value_and_grad(config, given, make_batch(), key=key, train=True)


@pytest.mark.parametrize(
    ("scan_layers", "remat"),
    [
        (True, "none"),
        (False, "full"),
        (True, "full"),
        (False, "dots_with_no_batch_dims_saveable"),
        (True, "dots_with_no_batch_dims_saveable"),
    ],
)
def test_scan_and_remat_change_nothing(scan_layers, remat):
    loss, gradients = step_with_dropout()
    other_loss, other = step_with_dropout(scan_layers=scan_layers, remat=remat)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
    expected = stack_layers(gradients, PICO) if scan_layers else gradients
    assert_trees_close(other, expected)


def test_remat_of_a_scan_saves_memory():
    def temporary_bytes(remat):
        config = dataclasses.replace(PICO, num_layers=6, scan_layers=True, remat=remat)
        model, batch = build_llama(config), make_batch(rows=8, length=32)
        params = jax.eval_shape(model.init, jax.random.key(0))
        step = jax.jit(jax.grad(lambda p: model.loss(p, batch)[0]))
        return step.lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes("full") < 0.6 * temporary_bytes("none")


def test_dropout_needs_a_key_and_acts_in_training_only():
    config = dataclasses.replace(PICO, dropout=0.5)
    params, batch = make_params(), make_batch()
    plain = apply(PICO, params, batch)
    np.testing.assert_array_equal(apply(config, params, batch), plain)
    a, b = (
        apply(config, params, batch, key=jax.random.key(i), train=True) for i in (0, 1)
    )
    assert np.abs(a - b).max() > 0.01 and np.abs(a - plain).max() > 0.01
    with pytest.raises(ValueError, match=r"model.dropout=0.5 needs a key"):
        build_llama(config).loss(params, batch, train=True)


def test_bfloat16_compute_stays_near_float32_and_reports_float32():
    config = dataclasses.replace(PICO, compute_dtype="bfloat16")
    params, batch = make_params(scale=1.0), make_batch()
    logits = apply(config, params, batch)
    assert logits.dtype == jnp.float32
    exact = apply(PICO, params, batch)
    assert 0 < np.abs(logits - exact).max() < 0.02
    loss, gradients = value_and_grad(config, params, batch)
    exact_loss, exact_gradients = value_and_grad(PICO, params, batch)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, exact_loss, atol=2e-3)
    for a, b in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(exact_gradients), strict=True
    ):
        assert a.dtype == jnp.float32
        assert np.linalg.norm(a - b) < 0.03 * np.linalg.norm(b)


def test_z_loss_adds_the_squared_logsumexp_to_the_objective_only():
    config = dataclasses.replace(PICO, z_loss=1e-2)
    params, batch = make_params(), make_batch()
    objective, aux = loss_of(config, params, batch)
    log_z = jax.nn.logsumexp(apply(PICO, params, batch), axis=-1)
    np.testing.assert_allclose(
        objective - aux["loss"], 1e-2 * np.mean(np.square(log_z)), rtol=1e-4
    )


def test_micro_batches_average_exactly_by_weight():
    params = make_params()
    batch = make_batch(rows=4)
    batch["weights"] = jnp.float32(jnp.arange(4 * LENGTH).reshape(4, LENGTH) % 3)
    whole, aux = loss_of(PICO, params, batch)
    parts = [
        loss_of(PICO, params, {name: value[rows] for name, value in batch.items()})
        for rows in (slice(0, 1), slice(1, 4))
    ]
    total = sum(part[1]["weight"] for part in parts)
    mean = sum(part[0] * part[1]["weight"] for part in parts) / total
    np.testing.assert_allclose(total, aux["weight"])
    np.testing.assert_allclose(mean, whole, rtol=1e-6)


def test_matrix_axes_state_every_leaf():
    config = dataclasses.replace(PICO, num_layers=1)
    model = build_llama(config)
    axes = model.matrix_axes(jax.eval_shape(model.init, jax.random.key(0)))
    plain = ((), (0,), (1,))
    assert _axes_table(axes) == {
        "final_norm/scale": "norm",
        "head/kernel": ("head", *plain),
        "layers/0/attention/key/kernel": ("hidden", *plain),
        "layers/0/attention/output/kernel": ("hidden", *plain),
        "layers/0/attention/query/kernel": ("hidden", *plain),
        "layers/0/attention/value/kernel": ("hidden", *plain),
        "layers/0/attention_norm/scale": "norm",
        "layers/0/feed_forward/down/kernel": ("hidden", *plain),
        "layers/0/feed_forward/gate/kernel": ("hidden", *plain),
        "layers/0/feed_forward/up/kernel": ("hidden", *plain),
        "layers/0/feed_forward_norm/scale": "norm",
        "token_embedding/embedding": ("embedding", *plain),
    }


def test_matrix_axes_of_scanned_layers_name_the_layer_axis_as_batch():
    config = dataclasses.replace(PICO, scan_layers=True, tie_embeddings=True)
    model = build_llama(config)
    axes = model.matrix_axes(jax.eval_shape(model.init, jax.random.key(0)))
    stacked = ((0,), (1,), (2,))
    assert _axes_table(axes) == {
        "final_norm/scale": "norm",
        "layers/attention/key/kernel": ("hidden", *stacked),
        "layers/attention/output/kernel": ("hidden", *stacked),
        "layers/attention/query/kernel": ("hidden", *stacked),
        "layers/attention/value/kernel": ("hidden", *stacked),
        "layers/attention_norm/scale": "norm",
        "layers/feed_forward/down/kernel": ("hidden", *stacked),
        "layers/feed_forward/gate/kernel": ("hidden", *stacked),
        "layers/feed_forward/up/kernel": ("hidden", *stacked),
        "layers/feed_forward_norm/scale": "norm",
        "token_embedding/embedding": ("embedding", (), (0,), (1,)),
    }


def _axes_table(axes):
    leaves = jax.tree.leaves_with_path(axes, is_leaf=lambda x: hasattr(x, "kind"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            "norm" if leaf.kind == "norm" else tuple(leaf)
        )
        for path, leaf in leaves
    }


def test_the_same_config_gives_the_same_functions():
    assert build_llama(PICO) is build_llama(llama_preset("llama_pico"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("d_model", 0, "model.d_model must be an integer >= 1, got 0"),
        ("d_model", 34, "model.d_model must be a multiple of .*num_heads=4.* got 34"),
        ("d_ff", 1.5, "model.d_ff must be an integer >= 1, got 1.5"),
        ("num_layers", True, "model.num_layers must be an integer >= 1, got True"),
        ("num_kv_heads", 3, "model.num_kv_heads must divide model.num_heads=2, got 3"),
        ("vocab_size", -1, "model.vocab_size must be"),
        ("max_seq_len", 0, "model.max_seq_len must be"),
        ("norm_eps", float("nan"), "model.norm_eps must be positive, got nan"),
        ("rope_theta", float("inf"), "model.rope_theta must be positive"),
        ("init", "xavier", "model.init must be one of scaled, llama, got 'xavier'"),
        ("remat", "some", "model.remat must be one of none, full, .*, got 'some'"),
        ("compute_dtype", "float16", "model.compute_dtype must be one of float32"),
        ("param_dtype", "int8", "model.param_dtype must be one of"),
        ("dropout", 1.0, r"model.dropout must lie in \[0, 1\), got 1.0"),
        ("dropout", float("nan"), "model.dropout must lie in"),
        ("z_loss", -0.1, "model.z_loss must be >= 0 and finite, got -0.1"),
        ("z_loss", float("nan"), "model.z_loss must be >= 0"),
    ],
)
def test_bad_config_fields_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PICO, **{field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": jnp.zeros((2, 33), jnp.int32)}, "model.max_seq_len=32.*33"),
        ({"tokens": jnp.zeros((4,), jnp.int32)}, r"must have shape \[rows, length\]"),
        ({"weights": jnp.ones((3, 2))}, r"batch weights must have the shape \(3, 16\)"),
        ({"segment_ids": jnp.ones((1, 16))}, "batch segment_ids must have the shape"),
    ],
)
def test_bad_batches_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build_llama(PICO).loss(make_params(), {**make_batch(), **changes})
