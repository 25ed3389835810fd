"""Text files to a folder of memory-mappable rows, in constant memory.

The folder holds, for every part i of the data, `day_i_dense.npy`, `day_i_sparse.npy`
and `day_i_labels.npy` in the form that torchrec reads, the vocabulary as
`vocabulary.npz`, and `manifest.json`. It appears as a whole or not at all.

One text file is cut into seven parts, as the Kaggle data are; of several files each is
a part, as the days of the Terabyte data are. The last part is for validation and test.
"""

import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.data.criteo.atomic_files import atomic_folder
from experiments.data.criteo.dense_features import check_transform, transform_dense
from experiments.data.criteo.formats import Rows, write_torchrec
from experiments.data.criteo.parsing import NUM_DENSE, NUM_IDS
from experiments.data.criteo.preprocessed import (
    FORMAT_VERSION,
    MANIFEST,
    VOCABULARY,
    Preprocessed,
    open_preprocessed,
    part_prefix,
    read_manifest,
)
from experiments.data.criteo.shuffling import two_pass_shuffle
from experiments.data.criteo.splits import (
    KAGGLE_PARTS,
    SubSampling,
    check_randomize,
    part_sizes,
)
from experiments.data.criteo.text_files import (
    SkippedLines,
    TextBlock,
    check_on_bad_line,
    join_blocks,
    read_blocks,
)
from experiments.data.criteo.vocabulary import (
    Vocabulary,
    VocabularyBuilder,
    VocabularyConfig,
)
from experiments.data.files import names_and_sizes_sha256, relative_names

_ROWS_AT_A_TIME = 1 << 14
_ROW = np.dtype(
    [
        ("dense", np.float32, NUM_DENSE),
        ("ids", np.int32, NUM_IDS),
        ("labels", np.int32),
    ]
)


@dataclasses.dataclass(frozen=True)
class PreprocessConfig:
    """What becomes of the text.

    Attributes:
      vocabulary: which rows ids get.
      sub_sample_rate: see `SubSampling`.
      seed: of sub-sampling and of `randomize`.
      dense_transform: see `transform_dense`; the minimum of `log_shift` is that of the
        training rows.
      randomize: `none`, `day` or `total`: shuffles the training rows, in two passes.
      rows_in_memory: of that shuffle; 160 bytes each.
      on_bad_line: `error` or `skip`.
    """

    vocabulary: VocabularyConfig = VocabularyConfig()
    sub_sample_rate: float = 0.0
    seed: int = 123
    dense_transform: str = "log1p_clip"
    randomize: str = "none"
    rows_in_memory: int = 1 << 22
    on_bad_line: str = "error"

    def __post_init__(self) -> None:
        SubSampling(self.sub_sample_rate, self.seed)
        shifts = self.dense_transform == "log_shift"
        check_transform(self.dense_transform, 0 if shifts else None)
        check_randomize(self.randomize)
        check_on_bad_line(self.on_bad_line)
        if self.rows_in_memory < 1:
            raise ValueError(f"rows_in_memory must be >= 1, got {self.rows_in_memory}")


@dataclasses.dataclass
class _Census:
    """What the first pass learns.

    Attributes:
      rows: kept rows of each part.
      positives: those of label 1.
      minimum: least integer of the training rows, or 0.
      skipped: bad lines.
    """

    rows: np.ndarray
    positives: np.ndarray
    minimum: int
    skipped: SkippedLines


def preprocess(
    paths: str | Sequence[str], output: str, config: PreprocessConfig
) -> Preprocessed:
    """Makes the folder, or opens it if it is there already.

    Args:
      paths: one labelled text file, or one per day in their order.
      output: the folder.
      config: what becomes of the text.

    Returns:
      The opened folder.

    Raises:
      ValueError: if the folder was made from other files or with another
        configuration, naming what differs, or is something else; naming file and line
        for a bad line; if no row is left for training.
    """
    files = [paths] if isinstance(paths, str) else list(paths)
    for path in files:
        if not os.path.isfile(path):
            raise ValueError(f"there is no file {path}")
    if len(set(map(os.path.abspath, files))) != len(files) or not files:
        raise ValueError(f"need different files, got {files}")
    facts = _facts(files, config)
    if os.path.isfile(output):
        raise ValueError(f"{output} is a file, expected a folder or nothing")
    if os.path.isdir(output) and os.listdir(output):
        _check_same(output, facts)
        return open_preprocessed(output)
    census, vocabulary = _first_pass(files, config)
    with atomic_folder(output) as folder:
        minimum = census.minimum if config.dense_transform == "log_shift" else None
        blocks = _encoded(files, config, vocabulary, minimum)
        blocks = _shuffled(blocks, census.rows, config, folder)
        _write_parts(folder, blocks, census.rows)
        vocabulary.save(str(folder / VOCABULARY))
        manifest = facts | {
            "rows": int(census.rows.sum()),
            "day_count": census.rows.tolist(),
            "positives": census.positives.tolist(),
            "counts": vocabulary.counts.tolist(),
            "dense_minimum": minimum,
            "vocabulary_sha256": vocabulary.sha256,
            "skipped_lines": dataclasses.asdict(census.skipped),
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return open_preprocessed(output)


def _facts(files: list[str], config: PreprocessConfig) -> dict[str, Any]:
    """What a folder must have been made from to be used again, as JSON gives it."""
    settings = dataclasses.asdict(config)
    if config.randomize == "none":
        del settings["rows_in_memory"]
    facts = {
        "format_version": FORMAT_VERSION,
        "source": {
            "files": relative_names(files),
            "names_and_sizes_sha256": names_and_sizes_sha256(files),
        },
        "config": settings,
        "numpy": np.__version__,
    }
    return json.loads(json.dumps(facts))


def _check_same(output: str, facts: dict[str, Any]) -> None:
    manifest = read_manifest(output)
    wanted, found = _flat(facts), _flat({key: manifest.get(key) for key in facts})
    # The numbers of another NumPy are as good.
    names = sorted((set(wanted) | set(found)) - {"numpy"})
    differences = [
        f"{name} is {found.get(name)!r} there, {wanted.get(name)!r} here"
        for name in names
        if wanted.get(name) != found.get(name)
    ]
    if differences:
        raise ValueError(
            f"{output} was preprocessed differently: {'; '.join(differences)}"
        )


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _first_pass(
    files: list[str], config: PreprocessConfig
) -> tuple[_Census, Vocabulary]:
    """Counts the rows of every part and collects the ids that decide."""
    parts = KAGGLE_PARTS if len(files) == 1 else len(files)
    skipped = SkippedLines()
    census = _Census(np.zeros(parts, np.int64), np.zeros(parts, np.int64), 0, skipped)
    builder = VocabularyBuilder(config.vocabulary)
    for part, block in _kept_rows(files, config, skipped):
        census.rows[part] += len(block)
        census.positives[part] += block.labels.sum()
        trains = part < parts - 1
        if trains and len(block):
            census.minimum = min(census.minimum, int(block.dense.min()))
        if trains or not config.vocabulary.from_training_rows:
            builder.add(block.ids, block.missing)
    skipped.report()
    if not census.rows[:-1].sum():
        raise ValueError(f"{', '.join(files)}: no row is left for training")
    return census, builder.build()


def _kept_rows(
    files: list[str], config: PreprocessConfig, skipped: SkippedLines
) -> Iterator[tuple[int, TextBlock]]:
    """Rows that sub-sampling leaves, with the number of their part."""
    sampling = SubSampling(config.sub_sample_rate, config.seed)
    for part, block in _all_rows(files, config, skipped):
        keep = sampling.keep(block.labels)
        yield part, block if keep.all() else block.select(keep)


def _all_rows(
    files: list[str], config: PreprocessConfig, skipped: SkippedLines
) -> Iterator[tuple[int, TextBlock]]:
    def blocks(path: str, skipped: SkippedLines) -> Iterator[TextBlock]:
        read = read_blocks(path, on_bad_line=config.on_bad_line, skipped=skipped)
        return join_blocks(read, _ROWS_AT_A_TIME)

    if len(files) > 1:
        for part, path in enumerate(files):
            for block in blocks(path, skipped):
                yield part, block
        return
    # How many rows there are decides where the parts end.
    total = sum(len(block) for block in blocks(files[0], SkippedLines()))
    ends = np.cumsum(part_sizes(total))
    row = 0
    for block in blocks(files[0], skipped):
        stop = row + len(block)
        for part in range(
            int(np.searchsorted(ends, row, side="right")),
            int(np.searchsorted(ends, stop - 1, side="right")) + 1,
        ):
            start = ends[part - 1] if part else 0
            inside = slice(max(start - row, 0), min(ends[part], stop) - row)
            yield part, block.select(inside)
        row = stop


def _encoded(
    files: list[str],
    config: PreprocessConfig,
    vocabulary: Vocabulary,
    minimum: int | None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Rows as they are written, with the number of their part."""
    for part, block in _kept_rows(files, config, SkippedLines()):
        rows = np.empty(len(block), _ROW)
        rows["dense"] = transform_dense(
            block.dense, config.dense_transform, minimum=minimum
        )
        rows["ids"] = vocabulary.encode(block.ids, block.missing)
        rows["labels"] = block.labels
        yield part, rows


def _shuffled(
    blocks: Iterator[tuple[int, np.ndarray]],
    day_count: np.ndarray,
    config: PreprocessConfig,
    folder: pathlib.Path,
) -> Iterator[np.ndarray]:
    """Rows in the order of the files to write; the last part keeps its own."""
    groups = [list(range(len(day_count)))]
    if config.randomize == "day":
        groups = [[day] for day in range(len(day_count))]
    elif config.randomize == "total":
        groups = [groups[0][:-1], groups[0][-1:]]
    ahead = next(blocks, None)
    for number, group in enumerate(groups):

        def of_group(last: int = group[-1]) -> Iterator[np.ndarray]:
            nonlocal ahead
            while ahead is not None and ahead[0] <= last:
                yield ahead[1]
                ahead = next(blocks, None)

        if config.randomize == "none" or group[-1] == len(day_count) - 1:
            yield from of_group()
            continue
        rows = int(day_count[group].sum())
        buckets = part_sizes(rows, max(1, -(-rows // config.rows_in_memory)))
        with tempfile.TemporaryDirectory(dir=folder.parent) as buckets_folder:
            yield from two_pass_shuffle(
                of_group(),
                buckets,
                folder=buckets_folder,
                seed=(config.seed, number),
            )


def _write_parts(
    folder: pathlib.Path, blocks: Iterator[np.ndarray], day_count: np.ndarray
) -> None:
    rest = np.empty(0, _ROW)
    changed = "the text changed while it was read"

    def take(rows: int) -> Iterator[Rows]:
        nonlocal rest
        while rows:
            if not len(rest):
                rest = next(blocks, None)
                if rest is None:
                    raise ValueError(changed)
            taken, rest = rest[:rows], rest[rows:]
            rows -= len(taken)
            yield Rows(taken["dense"], taken["ids"], taken["labels"])

    for day, rows in enumerate(day_count):
        write_torchrec(part_prefix(folder, day), take(int(rows)), int(rows))
    if len(rest) or next(blocks, None) is not None:
        raise ValueError(changed)
