"""Sharded is unsharded, and the compiled step communicates only what it must."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optim_jax

STEPS = 8
# With blocks of at most 8: buckets of 1, 3, 4, 6 and 8 blocks, 1-D to 3-D.
SHAPES = {
    "ragged": (20, 12),
    "eight": (64, 8),
    "cube": (3, 8, 8),
    "bias": (5,),
    "scalar": (),
}
# The eigenbasis of a singular factor is not unique: rounding alone picks one, and SOAP
# works in it. After six steps the factor of a vector of five has full rank.
FULL_RANK = {"precondition_frequency": 2, "start_preconditioning_step": 6}
METHODS = {
    "shampoo": (optim_jax.shampoo, {"precondition_frequency": 2}),
    "soap": (optim_jax.soap, FULL_RANK),
    "kl_shampoo": (optim_jax.kl_shampoo, {}),
    "soap_qr": (
        optim_jax.soap,
        {
            **FULL_RANK,
            "preconditioner": optim_jax.EigenvalueCorrected(method=optim_jax.QR()),
        },
    ),
    "newton": (
        optim_jax.shampoo,
        {"preconditioner": optim_jax.RootInverse(method=optim_jax.CoupledNewton())},
    ),
    "eigendecomposed": (
        optim_jax.shampoo,
        {"preconditioner": optim_jax.Eigendecomposed()},
    ),
    "staggered": (
        optim_jax.shampoo,
        {"refresh": "staggered", "precondition_frequency": 2},
    ),
}


def _draw(dtype, seed):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape), dtype)
        for name, shape in SHAPES.items()
    }


def _build(method, dtype, **options):
    factory, keywords = METHODS[method]
    # A large epsilon: otherwise singular factors amplify the rounding of a solve that
    # pads them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return factory(
            0.1,
            weight_decay=0.1,
            max_preconditioner_dim=8,
            target_dimensionality=2,
            factor_dtype=dtype,
            inverse_dtype=dtype,
            **{"eps": 1e-2, **keywords, **options},
        )


def _stepper(tx):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


def _run(tx, dtype, shardings=None):
    params, step = _draw(dtype, 0), _stepper(tx)
    if shardings is not None:
        params = jax.device_put(params, shardings)
    state = tx.init(params)
    for index in range(STEPS):
        grads = _draw(dtype, 1 + index)
        if shardings is not None:
            grads = jax.device_put(grads, shardings)
        params, state = step(params, state, grads)
    # The first state lies where every later one does. (On a mesh of one device the
    # compiler answers with another, equivalent sharding.)
    alone = len(params["eight"].sharding.device_set) == 1
    assert alone or step._cache_size() == 1
    return jax.tree.map(np.asarray, params), state


def _mesh(devices, kind=AxisType.Auto):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(kind,), devices=jax.devices()[:devices]
    )


def _assert_close(actual, expected, atol):
    for name, leaf in expected.items():
        np.testing.assert_allclose(actual[name], leaf, rtol=0.0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_eight_devices_are_one_in_double_precision(method, x64):
    expected, _ = _run(_build(method, "float64"), "float64")
    mesh = _mesh(8)
    tx = _build(method, "float64", mesh=mesh)
    actual, state = _run(tx, "float64", NamedSharding(mesh, P()))
    _assert_close(actual, expected, 1e-12)
    stack = jax.tree.leaves(state[0].buckets["8x8_float64"].factors)[0]
    assert stack.sharding.spec[0] in ("data", ("data",))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("method", ["shampoo", "soap"])
def test_any_number_of_devices_is_one(method, devices):
    expected, _ = _run(_build(method, "float32"), "float32")
    mesh = _mesh(devices)
    tx = _build(method, "float32", mesh=mesh)
    actual, _ = _run(tx, "float32", NamedSharding(mesh, P()))
    _assert_close(actual, expected, 1e-6)


@pytest.mark.parametrize("method", ["shampoo", "soap_qr", "staggered"])
def test_explicit_axes(method, x64):
    expected, _ = _run(_build(method, "float64"), "float64")
    mesh = _mesh(4, AxisType.Explicit)
    tx = _build(method, "float64", mesh=mesh)
    # The types of computed arrays name every axis; so must those of the first params.
    specs = {name: P(*[None] * len(shape)) for name, shape in SHAPES.items()}
    specs["eight"] = P("data", None)
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    with jax.set_mesh(mesh):
        actual, _ = _run(tx, "float64", shardings)
    _assert_close(actual, expected, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["shard", ("replica", "shard"), None])
def test_replicas_of_shards_with_sharded_params(axis, x64):
    expected, _ = _run(_build("shampoo", "float64"), "float64")
    mesh = jax.make_mesh((2, 4), ("replica", "shard"), axis_types=(AxisType.Auto,) * 2)
    specs = dict.fromkeys(SHAPES, P()) | {
        "ragged": P("shard"),
        "eight": P(None, "shard"),
    }
    tx = _build("shampoo", "float64", mesh=mesh, axis=axis, param_specs=specs)
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    params = jax.device_put(_draw("float64", 0), shardings)
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    for name, leaf in updates.items():
        assert leaf.sharding.is_equivalent_to(shardings[name], leaf.ndim)
    actual, _ = _run(tx, "float64", shardings)
    _assert_close(actual, expected, 1e-12)


@pytest.mark.slow
def test_communication_dtype_is_the_same_on_every_mesh():
    plain, _ = _run(_build("shampoo", "float32"), "float32")
    expected, _ = _run(_build("shampoo", "float32", comm_dtype="bfloat16"), "float32")
    mesh = _mesh(4)
    tx = _build("shampoo", "float32", mesh=mesh, comm_dtype=jnp.bfloat16)
    actual, _ = _run(tx, "float32", NamedSharding(mesh, P()))
    _assert_close(actual, expected, 1e-3)  # a rounding may tip over
    assert np.abs(expected["eight"] - plain["eight"]).max() > 1e-4


COLLECTIVE = re.compile(
    r"= (\S+) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\("
)


def _computations(text):
    """HLO computations by name: their lines."""
    parts, name = {}, None
    for line in text.splitlines():
        header = re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            name = header.group(1)
            parts[name] = []
        elif name is not None:
            parts[name].append(line)
    return parts


def _called(parts, roots):
    """Names of all computations that can be reached from some."""
    seen, todo = set(), list(roots)
    while todo:
        name = todo.pop()
        if name in seen or name not in parts:
            continue
        seen.add(name)
        for line in parts[name]:
            todo += re.findall(
                r"(?:body|condition|calls|to_apply|branch_computations=\{|"
                r"true_computation|false_computation)=?%?([\w.\-]+)",
                line,
            )
            for group in re.findall(r"branch_computations=\{([^}]*)\}", line):
                todo += [entry.strip().lstrip("%") for entry in group.split(",")]
    return seen


def _compiled(method, **options):
    mesh = _mesh(4)
    tx = _build(method, "float32", mesh=mesh, **options)
    everywhere = NamedSharding(mesh, P())
    params = jax.device_put(_draw("float32", 0), everywhere)
    state = tx.init(params)
    text = _stepper(tx).lower(params, state, params).compile().as_text()
    return text, state[0]


@pytest.mark.parametrize(
    ("method", "refresh"),
    [
        ("shampoo", "cond"),
        ("newton", "cond"),
        ("newton", "staggered"),
        ("shampoo", "external"),
    ],
)
def test_the_compiled_step(method, refresh):
    text, state = _compiled(method, refresh=refresh, precondition_frequency=2)
    parts = _computations(text)
    conditionals = len(re.findall(r" conditional\(", text))
    assert conditionals == (1 if refresh == "cond" else 0)
    bodies = re.findall(r" while\(.*body=%?([\w.\-]+)", text)
    for name in _called(parts, bodies):
        assert not any(COLLECTIVE.search(line) for line in parts[name])
    branches = re.findall(r" conditional\(.*\{([^}]*)\}", text)
    branch_names = [
        name.strip().lstrip("%") for group in branches for name in group.split(",")
    ]
    in_refresh = _called(parts, branch_names)
    outside = [
        match
        for name, lines in parts.items()
        if name not in in_refresh
        for match in map(COLLECTIVE.search, lines)
        if match
    ]
    gathers = [match for match in outside if match.group(2) == "all-gather"]
    # XLA may gather several buckets at once.
    assert 1 <= len(gathers) <= len(state.buckets)
    directions = max(stack.size for stack in state.mu.values())
    for match in outside:
        sizes = re.findall(r"\w+\[([\d,]*)\]", match.group(1))
        entries = [int(np.prod([int(d) for d in s.split(",") if d])) for s in sizes]
        assert max(entries) <= directions
