"""From a configuration to batches of clicks: every source of `ClickDataConfig`."""

import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grain
import numpy as np

from experiments.click_config import ClickDataConfig, numbers
from experiments.data.click_batches import (
    ArrayBatches,
    BagBatches,
    Clicks,
    Part,
    StreamedBatches,
    batch_of_bags,
    validation_batches,
)
from experiments.data.criteo import (
    PreprocessConfig,
    Preprocessed,
    StoredRows,
    VocabularyConfig,
    day_files,
    open_preprocessed,
    preprocess,
    stream_batches,
)
from experiments.data.criteo.formats import (
    RowFiles,
    open_reference_npz,
    open_torchrec,
    select_rows,
)
from experiments.data.criteo.multi_hot import MultiHot
from experiments.data.criteo.parsing import NUM_DENSE, NUM_IDS
from experiments.data.criteo.splits import KAGGLE_PARTS, part_sizes, split_parts
from experiments.data.name_calls import read_name_calls
from experiments.data.planted import four_feature_world, one_feature_world, sample
from experiments.data.reference_random import random_batches, synthetic_batches
from experiments.data.stack_distances import profile_path, read_profile
from models.click_batch import BatchRules

_ROWS_AT_A_TIME = 1 << 16
_WORLDS = {"P1": four_feature_world, "O1": one_feature_world}


@dataclasses.dataclass(frozen=True)
class ClickData:
    """Everything a run needs of its samples.

    Attributes:
      rules: rows of the tables, dense features and policies.
      train: endless, checkpointable iterator over micro-batches of this process.
      validation: opens the validation batches, the same ones at every call.
      samples: of one epoch, over all processes.
      metadata: JSON-able facts: source, hash and sizes.
    """

    rules: BatchRules
    train: grain.DatasetIterator
    validation: Callable[[], Iterator[dict[str, Any]]]
    samples: int
    metadata: dict[str, Any]


def build_click_data(
    config: ClickDataConfig,
    *,
    rows: int,
    evaluation_rows: int,
    evaluation_batches: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> ClickData:
    """Opens the samples of a run.

    Args:
      config: which ones.
      rows: samples of a training micro-batch, over all processes.
      evaluation_rows: samples of a validation batch, over all processes.
      evaluation_batches: most validation batches.
      seed: of the order of the training samples.
      process_index: this process.
      process_count: processes that share the data.

    Returns:
      The data.

    Raises:
      ValueError, OSError: for files that are missing, damaged or made otherwise, and
        for numbers out of range.
    """
    part = Part(rows, process_index, process_count)
    checked = Part(evaluation_rows, process_index, process_count)
    order = None if config.shuffle == "none" else seed
    if config.source in ("random", "synthetic"):
        return _random(config, rows, evaluation_batches, process_count)
    if config.source in ("criteo", "prepared", "npz", "torchrec"):
        sides = open_criteo(config)
        return _streamed(config, sides, part, checked, evaluation_batches, order)
    train, test, table_rows, facts = _in_memory(config)
    rules = _rules(config, table_rows, train.dense.shape[1])
    facts |= {"samples": len(train), "validation_samples": len(test)}
    return ClickData(
        rules=rules,
        train=iter(ArrayBatches(train, rules, part, order)),
        validation=lambda: validation_batches(test, rules, checked, evaluation_batches),
        samples=len(train),
        metadata=facts,
    )


def _rules(
    config: ClickDataConfig, rows: Any, num_dense: int, capacities: Any = None
) -> BatchRules:
    return BatchRules(
        tuple(int(count) for count in rows),
        num_dense,
        config.id_policy,
        config.nan_policy,
        capacities,
    )


def _in_memory(
    config: ClickDataConfig,
) -> tuple[Clicks, Clicks, tuple[int, ...], dict[str, Any]]:
    """Training and validation samples, rows of the tables, and facts."""
    if config.source == "name_calls":
        task = read_name_calls(config.cache_dir or None)
        train, test = (
            Clicks(side.dense, side.ids, side.labels)
            for side in (task.train, task.validation)
        )
        facts = {"source": "name_calls", "corpus_sha256": task.sha256}
        return train, test, tuple(task.rows), facts
    if config.world not in _WORLDS:
        raise ValueError(
            f"data.world must be one of {', '.join(_WORLDS)}, got {config.world!r}"
        )
    world = _WORLDS[config.world]()
    sides = [
        sample(world, count, split)
        for split, count in enumerate((config.train_rows, config.test_rows))
    ]
    train, test = (Clicks(side.dense, side.ids, side.labels) for side in sides)
    sizes = f"{config.world} {config.train_rows} {config.test_rows}"
    digest = hashlib.sha256(sizes.encode()).hexdigest()
    facts = {"source": "planted", "world": config.world, "corpus_sha256": digest}
    return train, test, world.rows, facts


def _random(
    config: ClickDataConfig, rows: int, evaluation_batches: int, processes: int
) -> ClickData:
    """The original's generated bags; the same batches train and validate."""
    if processes > 1:
        raise ValueError("data.source=random is for a single process")
    table_rows = numbers("data.tables", config.tables)
    common = dict(
        seed=config.seed,
        rows=table_rows,
        num_dense=config.num_dense,
        batch_size=rows,
        num_batches=0,
        data_size=config.samples,
        indices_per_lookup=config.ids_per_lookup,
        fixed=config.fixed_bags,
        round_targets=config.round_targets,
    )
    if config.source == "synthetic":
        profiles = [
            read_profile(profile_path(config.path, table))
            for table in range(len(table_rows))
        ]
        batches = list(synthetic_batches(profiles, **common))
    else:
        drawn = random_batches(
            **common,
            distribution=config.distribution,
            minimum=config.gaussian_min,
            maximum=config.gaussian_max,
            mu=config.gaussian_mu,
            sigma=config.gaussian_sigma,
        )
        batches = list(drawn)
    capacities = (rows * config.ids_per_lookup,) * len(table_rows)
    rules = _rules(config, table_rows, config.num_dense, capacities)
    settings = repr(dataclasses.astuple(config))

    def validation() -> Iterator[dict[str, Any]]:
        for batch in itertools.islice(batches, evaluation_batches):
            yield batch_of_bags(batch, rules, batches[0])

    return ClickData(
        rules=rules,
        train=iter(BagBatches(batches, rules)),
        validation=validation,
        samples=config.samples,
        metadata={
            "source": config.source,
            "samples": config.samples,
            "corpus_sha256": hashlib.sha256(settings.encode()).hexdigest(),
        },
    )


def prepare_criteo(config: ClickDataConfig) -> Preprocessed:
    """The prepared rows of `data.path`, made into `data.cache_dir` if need be.

    Raises:
      ValueError: where to put them is not said; see also `preprocess`.
    """
    if config.source == "prepared":
        return open_preprocessed(config.path)
    if not config.cache_dir:
        raise ValueError(
            "data.source=criteo needs data.cache_dir: the folder that the text is "
            "prepared into, once"
        )
    path = pathlib.Path(config.path)
    files = [str(f) for f in day_files(str(path))] if path.is_dir() else [str(path)]
    wanted = PreprocessConfig(
        vocabulary=VocabularyConfig(
            kind=config.vocabulary,
            max_ind_range=config.max_ind_range,
            min_count=config.min_count,
            hash_rows=config.hash_rows or None,
        ),
        sub_sample_rate=config.sub_sample_rate,
        seed=config.seed,
        dense_transform=config.dense_transform,
        randomize=config.shuffle,
        on_bad_line=config.on_bad_line,
    )
    return preprocess(files, config.cache_dir, wanted)


class CriteoSides(NamedTuple):
    """Rows of one side each, and what they are numbered by."""

    train: StoredRows
    validation: StoredRows
    test: StoredRows
    counts: tuple[int, ...]  # rows of every table
    sha256: str  # of what the rows are


def open_criteo(config: ClickDataConfig) -> CriteoSides:
    """Opens Criteo rows of any of their forms.

    Raises:
      ValueError: see `prepare_criteo` and the readers of `experiments.data.criteo`.
    """
    if config.source in ("criteo", "prepared"):
        prepared = prepare_criteo(config)
        sides = [
            prepared.rows(side, halves=config.halves)
            for side in ("train", "validation", "test")
        ]
        return CriteoSides(*sides, prepared.counts, prepared.sha256)
    if config.source == "npz":
        whole = open_reference_npz(config.path)
        days = part_sizes(len(whole), KAGGLE_PARTS)
        ends = [int(end) for end in np.cumsum(days)]
        parts = [whole.select(e - int(d), e) for d, e in zip(days, ends, strict=True)]
    else:
        prefixes = sorted(
            str(path)[: -len("_dense.npy")]
            for path in pathlib.Path(config.path).glob("*_dense.npy")
        )
        if len(prefixes) < 2:
            raise ValueError(
                f"data.path={config.path!r} must hold *_dense.npy files of at least "
                f"two days, the last one for validation and test; found {len(prefixes)}"
            )
        parts = [open_torchrec(prefix) for prefix in prefixes]
    counts = _largest_ids(parts)
    return _split(config, parts, counts)


def _split(
    config: ClickDataConfig, parts: list[RowFiles], counts: tuple[int, ...]
) -> CriteoSides:
    """Training parts, and the halves of the last one."""
    split = split_parts(np.array([len(part) for part in parts]), config.halves)
    settings = repr(([(part.name, len(part)) for part in parts], counts))
    digest = hashlib.sha256(settings.encode()).hexdigest()

    def side(wanted: slice) -> StoredRows:
        return StoredRows(
            select_rows(parts, wanted),
            dense_transform=config.dense_transform,
            counts=counts,
            identity=digest,
        )

    sides = side(split.train), side(split.validation), side(split.test)
    return CriteoSides(*sides, counts, digest)


def _largest_ids(parts: list[RowFiles]) -> tuple[int, ...]:
    """Rows of every table that the ids of these files need."""
    largest = np.zeros(NUM_IDS, np.int64)
    for part in parts:
        for start in range(0, len(part), _ROWS_AT_A_TIME):
            rows = part.read(start, min(start + _ROWS_AT_A_TIME, len(part)))
            np.maximum(largest, rows.ids.max(axis=0).astype(np.int64), out=largest)
    return tuple(int(most) + 1 for most in largest)


def _streamed(
    config: ClickDataConfig,
    sides: CriteoSides,
    part: Part,
    checked: Part,
    evaluation_batches: int,
    order: int | None,
) -> ClickData:
    train, validation = sides.train, sides.validation
    multi_hot = MultiHot(sides.counts) if config.multi_hot else None
    capacities = None
    if multi_hot is not None:
        share = part.size // part.count
        capacities = tuple(share * size for size in multi_hot.sizes)
    rules = _rules(config, sides.counts, NUM_DENSE, capacities)

    def open_train() -> grain.DatasetIterator:
        return stream_batches(
            train,
            batch_size=part.size,
            shuffle_rows=0 if order is None else config.shuffle_rows,
            seed=order or 0,
            prefetch=2,
        )

    def open_validation() -> Iterator[dict[str, Any]]:
        stream = stream_batches(validation, batch_size=checked.size, epochs=1)
        batches = iter(StreamedBatches(lambda: stream, rules, checked, multi_hot))
        return itertools.islice(batches, evaluation_batches)

    return ClickData(
        rules=rules,
        train=iter(StreamedBatches(open_train, rules, part, multi_hot)),
        validation=open_validation,
        samples=len(train),
        metadata={
            "source": config.source,
            "samples": len(train),
            "validation_samples": len(validation),
            "corpus_sha256": sides.sha256,
        },
    )
