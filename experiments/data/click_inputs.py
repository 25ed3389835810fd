"""New samples for a trained click model."""

import gzip
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.click_config import ClickDataConfig
from experiments.data.click_batches import (
    Clicks,
    Part,
    StreamedBatches,
    validation_batches,
)
from experiments.data.click_data import prepare_criteo
from experiments.data.criteo import TextRows, stream_batches
from experiments.data.criteo.parsing import NUM_DENSE, NUM_IDS
from models.click_batch import BatchRules


def read_samples(
    path: str, config: ClickDataConfig, rules: BatchRules, batch_size: int
) -> Iterator[dict[str, Any]]:
    """Batches of samples to predict, in their order; the last one filled up.

    Args:
      path: `.npz` with `dense` [N, num_dense] and `ids` [N, T] (rows of the tables), or
        Criteo text with or without labels, which is numbered like the training data.
      config: of the training data.
      rules: of the model.
      batch_size: samples of a batch.

    Returns:
      Batches of `models.dlrm.make_batch`.

    Raises:
      ValueError, OSError: the file cannot be read, or does not fit the model.
    """
    part = Part(batch_size)
    if path.endswith(".npz"):
        return validation_batches(_arrays(path), rules, part, most=1 << 62)
    if config.source not in ("criteo", "prepared"):
        raise ValueError(
            f"{path}: text needs the vocabulary of Criteo training data, the run was "
            f"trained on data.source={config.source!r}; give an .npz"
        )
    prepared = prepare_criteo(config)
    rows = TextRows(
        [path],
        prepared.vocabulary(),
        dense_transform=prepared.manifest["config"]["dense_transform"],
        dense_minimum=prepared.manifest["dense_minimum"],
        labelled=_is_labelled(path),
        on_bad_line=config.on_bad_line,
    )
    stream = stream_batches(rows, batch_size=batch_size, epochs=1)
    return iter(StreamedBatches(lambda: stream, rules, part))


def _arrays(path: str) -> Clicks:
    with np.load(path, allow_pickle=False) as arrays:
        missing = [name for name in ("dense", "ids") if name not in arrays]
        if missing:
            raise ValueError(
                f"{path} lacks {' and '.join(missing)}; it has "
                f"{', '.join(arrays) or 'nothing'}"
            )
        dense, ids = arrays["dense"], arrays["ids"]
    if dense.ndim != 2 or ids.ndim != 2 or len(dense) != len(ids):
        raise ValueError(
            f"{path} must hold dense [N, num_dense] and ids [N, T], got shapes "
            f"{dense.shape} and {ids.shape}"
        )
    return Clicks(dense, ids, np.zeros(len(dense), np.float32))


def _is_labelled(path: str) -> bool:
    """Whether the first line begins with a label: it has one field more."""
    with open(path, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
    with (gzip.open if zipped else open)(path, "rb") as file:
        fields = file.readline().count(b"\t") + 1
    return fields == 1 + NUM_DENSE + NUM_IDS
