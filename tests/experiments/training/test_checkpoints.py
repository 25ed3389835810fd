import json
import pathlib
import shutil
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.training.checkpoints import CheckpointError, Checkpoints

# Reads still under way when one of them failed; they hit a closed event loop.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


class AveragingState(NamedTuple):
    z: Any  # like params; None where the leaf is not averaged
    base: Any
    count: jax.Array


class State(NamedTuple):
    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array


def make_state(step: int = 0) -> State:
    params = {
        "layer_0": {"kernel": jnp.arange(12.0).reshape(3, 4) + step},
        "head": {"kernel": jnp.full((4, 2), 0.1, jnp.bfloat16) * step},
        "nothing": jnp.zeros((0, 3)),
    }
    base = optax.partition(
        {"a": optax.adam(1e-3), "b": optax.sgd(1e-2)},
        {"layer_0": "a", "head": "b", "nothing": "a"},
    ).init(params)
    averaging = AveragingState(
        z={"layer_0": None, "head": params["head"], "nothing": ()},
        base=base,
        count=jnp.int32(step),
    )
    key = jax.random.fold_in(jax.random.key(7), step)
    return State(jnp.int32(step), params, (averaging, optax.EmptyState()), key)


def abstract(state: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def make_iterator(moved: int = 0):
    dataset = grain.MapDataset.range(1000).shuffle(seed=3).batch(2)
    iterator = iter(dataset.to_iter_dataset())
    for _ in range(moved):
        next(iterator)
    return iterator


def assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def save_steps(directory, steps, *, keep=10, metrics=None) -> None:
    checkpoints = Checkpoints(directory, keep=keep)
    iterator = make_iterator()
    done = 0
    for step in steps:
        for _ in range(step - done):
            next(iterator)
        done = step
        values = None if metrics is None else {"eval/loss": metrics[step]}
        checkpoints.save(step, make_state(step), iterator, {"step": step}, values)
    checkpoints.close()


def restore(directory, iterator=None):
    return Checkpoints(directory, keep=10).restore_latest(
        abstract(make_state()), iterator
    )


def warnings_of(monkeypatch) -> list[str]:
    seen = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: seen.append(text % args)
    )
    return seen


def test_round_trip_of_state_data_and_metadata(tmp_path):
    state, iterator = make_state(3), make_iterator(moved=3)
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    metadata = {"config": {"dims": (1, 2), "target": float("-inf")}, "wall_s": 1.5}
    checkpoints.save(3, state, iterator, metadata, {"eval/loss": jnp.float32(2.0)})
    checkpoints.wait()
    expected = next(iterator)

    fresh = make_iterator()
    restored = checkpoints.restore_latest(abstract(state), fresh)
    checkpoints.close()

    assert restored.step == 3
    assert_same(restored.state, state)
    assert restored.metrics == {"eval/loss": 2.0}
    assert restored.metadata == {
        "config": {"dims": [1, 2], "target": float("-inf")},
        "wall_s": 1.5,
    }
    assert checkpoints.read_metadata() == restored.metadata
    np.testing.assert_array_equal(next(fresh), expected)


def test_no_checkpoint_is_none_and_creates_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none", keep=1)
    assert checkpoints.restore_latest(abstract(make_state())) is None
    assert checkpoints.restore_best(abstract(make_state())) is None
    assert checkpoints.read_metadata() is None
    assert not (tmp_path / "none").exists()
    checkpoints.close()


def test_saved_without_iterator(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, make_state(1), None, {}, None)
    checkpoints.wait()
    assert checkpoints.restore_latest(abstract(make_state())).step == 1
    with pytest.raises(CheckpointError, match="without a data position"):
        checkpoints.restore_latest(abstract(make_state()), make_iterator())
    checkpoints.close()


def test_second_save_of_a_step_is_ignored(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, make_state(1), None, {"first": True}, None)
    checkpoints.save(1, make_state(5), None, {"first": False}, None)
    checkpoints.wait()
    assert checkpoints.read_metadata() == {"first": True}
    restored = checkpoints.restore_latest(abstract(make_state()))
    assert_same(restored.state, make_state(1))
    checkpoints.close()


@pytest.mark.parametrize("rows", [1, 4096])
def test_arrays_may_be_donated_right_after_save(tmp_path, rows):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P("data"))

    def state(value):
        return {
            "whole": jnp.full((rows, 256), value),
            "split": jax.device_put(jnp.full((4 * rows, 64), value), split),
        }

    overwrite = jax.jit(
        lambda tree: jax.tree.map(lambda x: x - 100.0, tree), donate_argnums=0
    )
    probe = state(0.0)
    jax.block_until_ready(overwrite(probe))
    assert probe["whole"].is_deleted()  # donation is in effect on this backend

    checkpoints = Checkpoints(tmp_path, keep=10)
    for step in range(1, 5):
        tree = jax.block_until_ready(state(float(step)))
        checkpoints.save(step, tree, None, {}, None)
        for _ in range(4):
            tree = overwrite(tree)
        jax.block_until_ready(tree)
    checkpoints.wait()
    for step in range(1, 5):
        restored = checkpoints.restore_step(step, abstract(state(0.0))).state
        assert all(bool((leaf == step).all()) for leaf in restored.values()), step
    checkpoints.close()


def test_restores_onto_another_mesh(tmp_path):
    devices = jax.devices()
    line = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=devices[:4])
    square = jax.make_mesh(
        (2, 2), ("data", "model"), (AxisType.Auto,) * 2, devices=devices[4:]
    )
    values = jnp.arange(64.0).reshape(8, 8)
    saved = {
        "w": jax.device_put(values, NamedSharding(line, P("data"))),
        "key": jax.device_put(jax.random.key(1), NamedSharding(line, P())),
        "none": jax.device_put(jnp.zeros((0, 4)), NamedSharding(line, P())),
    }
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, saved, None, {}, None)
    checkpoints.wait()
    specs = {"w": P("model", "data"), "key": P(), "none": P()}
    wanted = {
        name: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(square, specs[name])
        )
        for name, leaf in saved.items()
    }
    restored = checkpoints.restore_latest(wanted).state
    for name, leaf in restored.items():
        assert leaf.sharding.is_equivalent_to(wanted[name].sharding, leaf.ndim), name
    assert_same(restored, saved)
    checkpoints.close()


def test_part_of_the_state_without_shardings(tmp_path):
    save_steps(tmp_path, [2])
    shapes = jax.eval_shape(lambda: {"params": make_state().params})
    restored = Checkpoints(tmp_path, keep=1).restore_latest(shapes)
    assert_same(restored.state, {"params": make_state(2).params})


def test_keeps_the_newest_and_the_best(tmp_path):
    losses = {1: 5.0, 2: 1.0, 3: 2.0, 4: float("nan"), 5: 3.0, 6: 1.0}
    save_steps(tmp_path, losses, keep=2, metrics=losses)
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.best_step() == 2
    assert checkpoints.restore_best(abstract(make_state())).step == 2
    assert checkpoints.restore_latest(abstract(make_state())).step == 6


def test_the_best_is_remembered_by_a_later_process(tmp_path):
    save_steps(tmp_path, [1, 2], keep=1, metrics={1: 0.5, 2: 0.7})
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(3, make_state(3), None, {}, {"eval/loss": 0.6})
    checkpoints.save(4, make_state(4), None, {}, None)
    checkpoints.close()
    assert checkpoints.steps() == [1, 4]


def test_only_the_newest_without_metrics(tmp_path):
    save_steps(tmp_path, [1, 2, 3, 4], keep=2)
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.steps() == [3, 4]
    assert checkpoints.best_step() is None


def array_files(step: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in (step / "state").rglob("d/*") if path.is_file()]


def truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_directory(step: pathlib.Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


TEARS = {
    "no state": lambda step: shutil.rmtree(step / "state"),
    "no data": lambda step: shutil.rmtree(step / "data"),
    "no record": lambda step: shutil.rmtree(step / "record"),
    "empty record": lambda step: (step / "record" / "metadata").write_text(""),
    "foreign record": lambda step: (step / "record" / "metadata").write_text("{}"),
    "torn data": lambda step: truncate(step / "data" / "process_0-of-1.json"),
    "useless data": lambda step: (step / "data" / "process_0-of-1.json").write_text(
        '{"next_index": "x"}'
    ),
    "torn arrays": lambda step: [truncate(path) for path in array_files(step)],
    "no arrays": lambda step: [path.unlink() for path in array_files(step)],
    "no array manifest": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
    "torn array metadata": lambda step: truncate(step / "state" / "_METADATA"),
    "empty directory": empty_directory,
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_newest_checkpoint_falls_back(tmp_path, monkeypatch, tear):
    save_steps(tmp_path, [2, 5])
    TEARS[tear](tmp_path / "5")
    warnings = warnings_of(monkeypatch)
    iterator, expected = make_iterator(moved=9), make_iterator(moved=2)

    checkpoints = Checkpoints(tmp_path, keep=2)
    restored = checkpoints.restore_latest(abstract(make_state()), iterator)

    assert restored.step == 2
    assert restored.metadata == {"step": 2}
    assert_same(restored.state, make_state(2))
    np.testing.assert_array_equal(next(iterator), next(expected))
    assert len(warnings) == 1
    assert "step 5" in warnings[0] and "step 2" in warnings[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "5"]  # read only

    # The run goes on, past the step of the torn one.
    checkpoints.save(3, make_state(3), iterator, {}, None)
    checkpoints.save(5, make_state(5), iterator, {"again": True}, None)
    checkpoints.close()
    assert checkpoints.steps() == [3, 5]
    assert checkpoints.read_metadata() == {"again": True}
    assert (tmp_path / "5.unreadable.0").is_dir()
    assert_same(restore(tmp_path).state, make_state(5))


def test_the_iterator_stays_where_it_was_if_nothing_can_be_read(tmp_path):
    save_steps(tmp_path, [2, 5])
    for step in ("2", "5"):
        TEARS["torn arrays"](tmp_path / step)
    iterator, untouched = make_iterator(moved=7), make_iterator(moved=7)
    with pytest.raises(CheckpointError) as error:
        restore(tmp_path, iterator)
    assert "no checkpoint in" in str(error.value)
    assert "step 5: " in str(error.value) and "step 2: " in str(error.value)
    np.testing.assert_array_equal(next(iterator), next(untouched))


@pytest.mark.parametrize("damage", [pathlib.Path.unlink, truncate])
def test_every_file_counts(tmp_path, damage):
    """Removing or cutting any one file is either noticed or harmless."""
    state = {"w": jnp.arange(999.0), "b": jnp.ones(3), "key": jax.random.key(2)}
    checkpoints = Checkpoints(tmp_path / "whole", keep=1)
    checkpoints.save(2, state, make_iterator(moved=2), {"a": 1}, None)
    checkpoints.close()
    files = [p for p in (tmp_path / "whole").rglob("*") if p.is_file()]
    noticed = set()
    for path in files:
        broken = tmp_path / "broken"
        shutil.copytree(tmp_path / "whole", broken)
        damage(broken / path.relative_to(tmp_path / "whole"))
        iterator = make_iterator()
        try:
            restored = Checkpoints(broken, keep=1).restore_latest(
                abstract(state), iterator
            )
        except CheckpointError:
            noticed.add(path.name)
        else:
            assert_same(restored.state, state)
            assert restored.metadata == {"a": 1}
            assert iterator.get_state() == make_iterator(moved=2).get_state()
        shutil.rmtree(broken)
    assert {"metadata", "process_0-of-1.json"} <= noticed


@pytest.mark.parametrize("damage", ["flipped bit", "zeroed block"])
def test_damaged_bytes_of_an_array_are_noticed(tmp_path, monkeypatch, damage):
    values = jax.random.normal(jax.random.key(0), (64, 64))
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, {"w": values}, None, {}, None)
    checkpoints.close()
    path = max(array_files(tmp_path / "2"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    if damage == "flipped bit":
        content[len(content) // 2] ^= 1
    else:
        content[4096:8192] = bytes(4096)
    path.write_bytes(content)
    warnings = warnings_of(monkeypatch)
    restored = checkpoints.restore_latest({"w": values})
    assert restored.step == 1
    assert_same(restored.state, {"w": values})
    assert "step 2" in warnings[0]
    if damage == "flipped bit":  # only the checksum sees it
        assert "leaf 'w' is damaged" in warnings[0]


def test_leftovers_of_an_interrupted_save_are_ignored_then_removed(
    tmp_path, monkeypatch
):
    save_steps(tmp_path, [2])
    leftover = tmp_path / "5.orbax-checkpoint-tmp-123"
    leftover.mkdir()
    warnings = warnings_of(monkeypatch)
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.restore_latest(abstract(make_state())).step == 2
    assert not warnings
    checkpoints.save(5, make_state(5), None, {}, None)
    checkpoints.close()
    assert checkpoints.steps() == [2, 5]
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"params": {"head": {"kernel": jnp.zeros((4, 3), jnp.bfloat16)}}},
            r"leaf 'params/head/kernel' was saved with shape \(4, 2\) bfloat16, "
            r"wanted with shape \(4, 3\) bfloat16",
        ),
        (
            {"params": {"head": {"kernel": jnp.zeros((4, 2))}}},
            "bfloat16, wanted with shape .* float32",
        ),
        (
            {"params": {"tail": jnp.zeros(2)}},
            "leaf 'params/tail' is not in it",
        ),
    ],
)
def test_a_checkpoint_of_another_model(tmp_path, change, message):
    save_steps(tmp_path, [1, 2])
    iterator, untouched = make_iterator(), make_iterator()
    with pytest.raises(CheckpointError, match=message) as error:
        Checkpoints(tmp_path, keep=2).restore_latest(abstract(change), iterator)
    assert "step 2" in str(error.value) and "another model" in str(error.value)
    np.testing.assert_array_equal(next(iterator), next(untouched))


def test_another_number_of_processes(tmp_path):
    save_steps(tmp_path, [1])
    path = tmp_path / "1" / "record" / "metadata"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"processes": 2}))
    with pytest.raises(CheckpointError, match="of 2 processes, this run has 1"):
        restore(tmp_path, make_iterator())
    assert restore(tmp_path).step == 1  # the state alone can be had


def test_a_step_that_does_not_exist(tmp_path):
    save_steps(tmp_path, [1, 2])
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; it has 1, 2"):
        Checkpoints(tmp_path, keep=2).restore_step(7, abstract(make_state()))


def test_paths_must_be_unique(tmp_path):
    state = {"a": {"b": jnp.zeros(1)}, "a/b": jnp.ones(1)}
    with pytest.raises(ValueError, match="path 'a/b'"):
        Checkpoints(tmp_path, keep=1).save(1, state, None, {}, None)


def test_keep_is_checked(tmp_path):
    with pytest.raises(ValueError, match="keep must be >= 1, got 0"):
        Checkpoints(tmp_path, keep=0)


def test_reached_preemption_is_false_in_one_process(tmp_path):
    assert not Checkpoints(tmp_path, keep=1).reached_preemption(3)
