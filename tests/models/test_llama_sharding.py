"""The same model on every mesh."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from models import build_llama, llama_preset

PICO = llama_preset("llama_pico")
SCANNED = dataclasses.replace(PICO, scan_layers=True)
SHAPES = [(1, 1, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2)]


def make_mesh(shape):
    devices = jax.devices()[: int(np.prod(shape))]
    axes = ("data", "fsdp", "model")
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 3, devices=devices)


def specs_by_name(model, params):
    table = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        matches = [s for r, s in model.partition_rules if re.search(r, name)]
        assert len(matches) == 1, (name, matches)
        table[name] = (matches[0], leaf.shape)
    return table


def shardings(model, params, mesh):
    def fits(spec, shape):
        entries = [
            axis if axis is None or size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, shape, strict=False)
        ]
        return NamedSharding(mesh, PartitionSpec(*entries))

    table = specs_by_name(model, params)
    flat = [fits(*table[name]) for name in table]
    return jax.tree.unflatten(jax.tree.structure(params), flat)


@pytest.mark.parametrize("config", [PICO, SCANNED], ids=["unrolled", "scanned"])
def test_partition_rules_split_every_matrix_over_fsdp_and_model_only(config):
    model = build_llama(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    for name, (spec, shape) in specs_by_name(model, params).items():
        if name.endswith("norm/scale"):
            assert spec == PartitionSpec()
        else:
            assert len(spec) == len(shape)
            assert set(spec) - {None} == {"fsdp", "model"}


@pytest.mark.parametrize("shape", SHAPES)
def test_init_is_bit_identical_on_every_mesh(shape):
    model = build_llama(PICO)
    key = jax.random.key(0)
    params = model.init(key)
    mesh = make_mesh(shape)
    init = jax.jit(model.init, out_shardings=shardings(model, params, mesh))
    with jax.set_mesh(mesh):
        sharded = init(key)
    jax.tree.map(np.testing.assert_array_equal, sharded, params)
    if shape == (2, 2, 2):
        kernel = sharded["layers"]["0"]["feed_forward"]["up"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (16, 48)


@pytest.mark.parametrize(
    ("config", "shape"),
    [(PICO, (8, 1, 1)), (PICO, (2, 2, 2)), (SCANNED, (2, 2, 2))],
    ids=["replicated", "unrolled", "scanned"],
)
def test_loss_and_gradients_agree_on_meshes(config, shape):
    model = build_llama(config)
    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (8, 17), 0, config.vocab_size)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    step = jax.value_and_grad(model.loss, has_aux=True)
    (expected, _), gradients = jax.jit(step)(params, batch)
    mesh = make_mesh(shape)
    layout = shardings(model, params, mesh)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh):
        (loss, _), other = jax.jit(step, out_shardings=(None, layout))(
            jax.device_put(params, layout), jax.device_put(batch, rows)
        )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        other,
        gradients,
    )


def test_a_batch_that_the_mesh_does_not_divide_still_runs():
    model = build_llama(PICO)
    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (3, 8), 0, PICO.vocab_size)
    expected = jax.jit(model.apply)(params, {"tokens": tokens})
    with jax.set_mesh(make_mesh((2, 4, 1))):
        logits = jax.jit(model.apply)(params, {"tokens": tokens})
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_the_loss_runs_inside_shard_map():
    model = build_llama(PICO)
    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (8, 9), 0, PICO.vocab_size)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    mesh = make_mesh((4, 1, 2))

    def local_loss(params, batch):
        return jax.lax.pmean(model.loss(params, batch)[0], "data")

    mapped = jax.shard_map(
        local_loss,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(),
        axis_names={"data"},
        mesh=mesh,
    )
    with jax.set_mesh(mesh):
        loss = jax.jit(mapped)(params, batch)
    np.testing.assert_allclose(loss, jax.jit(model.loss)(params, batch)[0], rtol=1e-6)
