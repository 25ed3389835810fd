"""Reads one checkpoint: whole or not at all, and alike on every process.

Goes through Orbax's item handlers and not its manager, whose restore ends in a
barrier: a process that fails to read must be able to say so before the others go on.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from grain import checkpoint as grain_checkpoint
from jax.experimental import multihost_utils

from experiments.training.leaves import (
    checksums,
    first_difference,
    named_leaves,
    signature,
)

_RECORD_FIELDS = {
    "metadata",
    "metrics",
    "leaves",  # path -> shape and dtype
    "checksums",  # path -> number
    "has_data",
    "processes",
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the reason."""


class Restored(NamedTuple):
    """What a checkpoint gave back."""

    step: int  # completed steps
    state: Any  # like the abstract state asked for
    metadata: dict  # as given to `save`, through JSON
    metrics: dict[str, float]  # as given to `save`; empty if none were


def attempt(read: Callable[[], Any]) -> tuple[Any, str]:
    """Returns what `read` returns, or None and the reason.

    Every exception counts: what a damaged file raises (JSON, key, value, system and
    TensorStore errors) is not part of anyone's interface.
    """
    try:
        return read(), ""
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return None, f"{type(error).__name__}: {lines[0][:300]}"


def read_record(folder: pathlib.Path) -> dict:
    """What was saved besides the arrays; raises anything if it is damaged."""
    for item in ("state", "record"):
        if not (folder / item).is_dir():
            raise FileNotFoundError(f"{folder / item} is missing")
    handler = ocp.JsonCheckpointHandler()
    try:
        record = handler.restore(epath.Path(folder / "record"))
    finally:
        handler.close()
    missing = _RECORD_FIELDS - set(record)
    if missing:
        raise KeyError(f"{folder / 'record'} lacks {', '.join(sorted(missing))}")
    return record


def read_checkpoint(
    folder: pathlib.Path,
    abstract_state: Any,
    iterator: grain.DatasetIterator | None,
) -> tuple[Restored | None, str]:
    """Reads the checkpoint in this folder.

    All processes get it or none does; the iterator moves only where they do.

    Args:
      folder: named by the step.
      abstract_state: tree of (abstract) arrays; any part of the saved tree.
      iterator: moved to the saved position, in place; None leaves data alone.

    Returns:
      What was saved; or None and why it cannot be read.

    Raises:
      CheckpointError: it can be read, but does not fit this run.
    """
    wanted = named_leaves(abstract_state)
    record, failure = agree(*attempt(lambda: read_record(folder)))
    if record is None:
        return None, failure
    _require_usable(folder, record, wanted, iterator)
    position, failure = agree(*attempt(lambda: _read_position(folder, iterator)))
    if position is None:
        return None, failure
    leaves, failure = agree(*attempt(lambda: _read_leaves(folder, wanted)))
    if leaves is None:
        return None, failure
    # Without these a flipped or zeroed byte of an array would go unnoticed.
    for name, value in checksums(leaves).items():
        if value != record["checksums"][name]:
            return None, f"leaf {name!r} is damaged: its checksum differs"
    failure = _move(iterator, folder)
    if failure:
        return None, failure
    state = jax.tree.unflatten(
        jax.tree.structure(abstract_state), [leaves[name] for name in wanted]
    )
    return Restored(int(folder.name), state, record["metadata"], record["metrics"]), ""


def _require_usable(
    folder: pathlib.Path, record: dict, wanted: dict[str, Any], iterator: Any
) -> None:
    """Raises where an older checkpoint of the same run would not help either."""
    name = f"the checkpoint of step {folder.name} in {folder.parent}"
    difference = first_difference(record["leaves"], wanted)
    if difference:
        raise CheckpointError(f"{name} is of another model: {difference}")
    if iterator is None:
        return
    if not record["has_data"]:
        raise CheckpointError(f"{name} was saved without a data position")
    if record["processes"] != jax.process_count():
        raise CheckpointError(
            f"{name} holds the data position of {record['processes']} processes, "
            f"this run has {jax.process_count()}; use the same number"
        )


def _read_position(folder: pathlib.Path, iterator: Any) -> dict:
    """The saved data position of this process; {} where none is asked for."""
    if iterator is None:
        return {}
    name = f"process_{jax.process_index()}-of-{jax.process_count()}.json"
    return {"position": json.loads((folder / "data" / name).read_text())}


def _read_leaves(folder: pathlib.Path, wanted: dict[str, Any]) -> dict[str, jax.Array]:
    """The arrays by path, on the devices asked for."""
    leaves, abstract = {}, {}
    for name, leaf in wanted.items():
        if 0 in leaf.shape:  # never saved
            leaves[name] = jnp.zeros(leaf.shape, leaf.dtype, device=_sharding(leaf))
        else:
            abstract[name] = jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=_sharding(leaf)
            )
    if abstract:
        arguments = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        handler = ocp.PyTreeCheckpointHandler()
        try:
            leaves |= handler.restore(epath.Path(folder / "state"), args=arguments)
        finally:
            handler.close()
    # Orbax guesses where a file that describes the arrays is damaged.
    found = {name: signature(leaf) for name, leaf in leaves.items()}
    difference = first_difference(found, wanted)
    if difference:
        raise ValueError(f"read back wrongly: {difference}")
    return jax.block_until_ready(leaves)


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    sharding = getattr(leaf, "sharding", None)
    # Without one, Orbax would ask for the devices of the run that saved.
    if sharding is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return sharding


def _move(iterator: grain.DatasetIterator | None, folder: pathlib.Path) -> str:
    """Moves the iterator on every process or on none; returns why not."""
    if iterator is None:
        return ""
    before = iterator.get_state()
    handler = grain_checkpoint.CheckpointHandler()
    moved, failure = agree(
        *attempt(lambda: handler.restore(epath.Path(folder / "data"), item=iterator))
    )
    if moved is None:
        iterator.set_state(before)
    return failure


def agree(result: Any, failure: str) -> tuple[Any, str]:
    """Returns the result if every process has one, else None and a reason."""
    if jax.process_count() == 1:
        return result, failure
    succeeded = multihost_utils.process_allgather(np.array(result is not None))
    if succeeded.all():
        return result, failure
    return None, failure or "another process cannot read it"
