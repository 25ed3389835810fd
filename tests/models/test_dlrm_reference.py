import jax
import numpy as np
import pytest

from models.dlrm import DLRMConfig, dlrm
from models.dlrm_reference import (
    from_reference_state,
    reference_params,
    to_reference_state,
)
from models.embeddings import TableConfig
from tests.models.dlrm_cases import NAMES, config_of, read_case, state_of

PLAIN = DLRMConfig((TableConfig(4, 2), TableConfig(3, 2)), (3, 2), (4, 1))


def test_initial_weights_are_the_originals_bit_by_bit(golden_dir):
    settings, arrays = read_case(golden_dir, "init_seed123")
    config = config_of(settings)
    params = reference_params(config, settings["seed"])
    expected = state_of(arrays, "w0")
    ours = to_reference_state(config, params)
    assert set(ours) == set(expected)
    for name, values in expected.items():
        assert ours[name].dtype == np.float32
        np.testing.assert_array_equal(ours[name], values, err_msg=name)
    default = reference_params(config)
    assert jax.tree.all(jax.tree.map(np.array_equal, default, params))


def test_initial_weights_fit_the_model_and_depend_on_the_seed():
    config = DLRMConfig((TableConfig(4, 2, threshold=9, method="qr"),), (3, 2), (4, 1))
    learned = DLRMConfig(PLAIN.tables, (3, 2), (4, 1), weighted_pooling="learned")
    for shape in (config, learned, PLAIN):
        drawn = reference_params(shape, 1)
        made = jax.eval_shape(dlrm(shape).init, jax.random.key(0))
        assert jax.tree.map(lambda a: (a.shape, a.dtype), drawn) == jax.tree.map(
            lambda a: (a.shape, a.dtype), made
        )
    # Weights of one take no draw.
    again = reference_params(learned, 1)
    np.testing.assert_array_equal(again["tables"]["1"].pop("pooling_weight"), 1.0)
    assert np.array_equal(
        again["top"]["layer_1"]["bias"], drawn["top"]["layer_1"]["bias"]
    )
    other = reference_params(PLAIN, 2)
    assert not np.array_equal(
        other["tables"]["0"]["table"], drawn["tables"]["0"]["table"]
    )


@pytest.mark.parametrize(
    "table",
    [
        TableConfig(9, 2, "qr"),
        TableConfig(9, 2, "hash"),
        TableConfig(9, 2, "mixed", component_dims=(1,)),
    ],
    ids=lambda table: table.method,
)
def test_only_full_tables_are_drawn(table):
    config = DLRMConfig((PLAIN.tables[0], table), (3, 2), (4, 1))
    with pytest.raises(ValueError, match=rf"tables\[1\].method='{table.method}'"):
        reference_params(config)


@pytest.mark.parametrize("name", NAMES)
def test_states_come_back_unchanged(golden_dir, name):
    settings, arrays = read_case(golden_dir, name)
    config, state = config_of(settings), state_of(arrays, "w0")
    params = from_reference_state(config, state)
    again = to_reference_state(config, params)
    assert set(again) == set(state)
    for key, values in state.items():
        np.testing.assert_array_equal(again[key], values, err_msg=key)
    made = jax.eval_shape(dlrm(config).init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda a: a.shape, made)


def test_what_comes_out_are_copies():
    params = reference_params(PLAIN)
    state = to_reference_state(PLAIN, params)
    again = from_reference_state(PLAIN, state)
    for array in state.values():
        array[...] = 7.0
    before = jax.tree.map(np.copy, again)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, before))
    assert not np.array_equal(params["tables"]["0"]["table"], state["emb_l.0.weight"])
    assert np.array_equal(
        reference_params(PLAIN)["bottom"]["layer_0"]["kernel"],
        again["bottom"]["layer_0"]["kernel"],
    )


def test_layers_are_transposed_and_numbered_by_twos():
    state = to_reference_state(PLAIN, reference_params(PLAIN))
    shapes = {name: array.shape for name, array in state.items()}
    width = PLAIN.interaction_width
    assert shapes == {
        "emb_l.0.weight": (4, 2),
        "emb_l.1.weight": (3, 2),
        "bot_l.0.weight": (2, 3),
        "bot_l.0.bias": (2,),
        "top_l.0.weight": (4, width),
        "top_l.0.bias": (4,),
        "top_l.2.weight": (1, 4),
        "top_l.2.bias": (1,),
    }


@pytest.mark.parametrize("width", [1, 2])
def test_names_of_mixed_tables(width):
    tables = (TableConfig(9, 2, "mixed", component_dims=(width,)),)
    config = DLRMConfig(tables, (3, 2), (4, 1))
    params = dlrm(config).init(jax.random.key(0))
    state = to_reference_state(config, params)
    assert state["emb_l.0.embs.weight"].shape == (9, width)
    # A table of full width is not projected.
    assert ("emb_l.0.proj.weight" in state) == (width < 2)
    if width < 2:
        assert state["emb_l.0.proj.weight"].shape == (2, width)
    again = from_reference_state(config, state)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))


def test_states_that_do_not_fit_are_refused():
    state = to_reference_state(PLAIN, reference_params(PLAIN))
    missing = {k: v for k, v in state.items() if k != "top_l.2.bias"}
    with pytest.raises(
        ValueError, match="missing top_l.2.bias; unknown emb_l.2.weight"
    ):
        from_reference_state(PLAIN, missing | {"emb_l.2.weight": np.zeros((1, 2))})
    with pytest.raises(
        ValueError, match=r"bot_l.0.weight has shape \(3, 2\), .*\(2, 3"
    ):
        from_reference_state(PLAIN, state | {"bot_l.0.weight": np.zeros((3, 2))})
    crt = DLRMConfig((TableConfig(9, 2, "crt"),), (3, 2), (4, 1))
    with pytest.raises(ValueError, match=r"'part_0' of tables\[0\].method='crt'"):
        to_reference_state(crt, dlrm(crt).init(jax.random.key(0)))
