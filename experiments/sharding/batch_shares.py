"""A host batch of a click model, cut in one share for each device."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

_NO_ROW = np.iinfo(np.int32).max  # as an id: out of the range of every table


def batch_shares(batch: Any, parts: int, processes: int = 1) -> dict[str, Any]:
    """Cuts a batch of `models.click_batch` in equal shares of consecutive samples.

    Bags keep their order and few shapes: a share has room for its proportion of each
    table's ids, or for twice, four times … as many, up to the capacity of the batch,
    where the fullest share of any table needs it.

    Args:
      batch: NumPy arrays; of bags, with sorted segments.
      parts: number of shares, >= 1.
      processes: that do the same at the same time, each with its own samples; all
        shares are then shaped alike.

    Returns:
      The same names, and `weights` in any case, every array with a leading axis of
      `parts`. Samples that fill up the last shares have weight 0 and look nothing up.
    """
    size = len(batch["dense"])
    (largest,) = _over_processes([size], processes)
    share = max(1, -(-largest // parts))
    missing = share * parts - size
    found: dict[str, Any] = {}
    for name in ("dense", "labels", "weights"):
        if name in batch or name == "weights":
            array = np.asarray(batch.get(name, np.ones(size, np.float32)))
            padding = [(0, missing)] + [(0, 0)] * (array.ndim - 1)
            found[name] = np.pad(array, padding).reshape(parts, share, *array.shape[1:])
    if "segments" not in batch:
        for name, fill in (("ids", _NO_ROW), ("id_weights", 0)):
            if name in batch:
                array = np.asarray(batch[name])
                padded = np.pad(array, ((0, 0), (0, missing)), constant_values=fill)
                shares = padded.reshape(len(array), parts, share).swapaxes(0, 1)
                found[name] = np.ascontiguousarray(shares)
        return found
    return found | _bags(batch, parts, share, share / max(largest, 1), processes)


def _bags(
    batch: Any, parts: int, share: int, fraction: float, processes: int
) -> dict[str, Any]:
    """Ids, segments and weights of the bags; `fraction` of the samples are a share."""
    size, tables = len(batch["dense"]), range(len(batch["ids"]))
    segments = [np.asarray(batch["segments"][table]) for table in tables]
    # Where each share begins and the last one ends; padding has the segment `size`.
    bounds = np.minimum(share * np.arange(parts + 1), size)
    cuts = [np.searchsorted(of_table, bounds) for of_table in segments]
    numbers = [len(of_table) for of_table in segments]
    numbers += [int(np.diff(cut).max()) for cut in cuts]
    whole, most = np.split(np.asarray(_over_processes(numbers, processes), int), 2)
    capacities = share_capacities(whole, most, fraction)
    found: dict[str, Any] = {}
    fills = {"ids": _NO_ROW, "segments": share, "id_weights": 0}
    for name in fills.keys() & batch.keys():
        found[name] = [
            np.full((parts, capacities[table]), fills[name], batch[name][table].dtype)
            for table in tables
        ]
        for table in tables:
            values, cut = np.asarray(batch[name][table]), cuts[table]
            for part in range(parts):
                piece = values[cut[part] : cut[part + 1]]
                if name == "segments":
                    piece = piece - part * share
                found[name][table][part, : len(piece)] = piece
        if not isinstance(batch["ids"], tuple):
            found[name] = np.stack(found[name], axis=1)
        else:
            found[name] = tuple(found[name])
    return found


def share_capacities(
    whole: np.ndarray, most: np.ndarray, fraction: float
) -> np.ndarray:
    """Room for the ids of each table in a share.

    Args:
      whole: room in the batch.
      most: ids in the fullest share.
      fraction: of the samples that is in a share.
    """
    capacities = np.ceil(whole * fraction).astype(int)
    while (capacities < most).any():
        capacities = np.minimum(2 * capacities, whole)
    return capacities


def _over_processes(numbers: Sequence[int], processes: int) -> Sequence[int]:
    """The largest of each number over the processes."""
    if processes == 1:
        return numbers
    return multihost_utils.process_allgather(np.asarray(numbers)).max(axis=0)
