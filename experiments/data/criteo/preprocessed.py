"""A folder that `preprocess` made, opened for reading."""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from experiments.data.criteo.formats import RowFiles, open_torchrec, select_rows
from experiments.data.criteo.row_sources import StoredRows
from experiments.data.criteo.splits import split_parts
from experiments.data.criteo.vocabulary import Vocabulary, load_vocabulary

FORMAT_VERSION = 1
MANIFEST, VOCABULARY = "manifest.json", "vocabulary.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class Preprocessed:
    """The folder.

    Attributes:
      folder: its path.
      manifest: what it was made from, and its sizes: `rows`, `day_count`, `counts`,
        `positives`, `vocabulary_sha256`, `skipped_lines` and others.
      parts: the rows of each part, in the order of time.
    """

    folder: str
    manifest: dict[str, Any]
    parts: tuple[RowFiles, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of every table."""
        return tuple(self.manifest["counts"])

    def rows(self, side: str, *, halves: str = "test_first") -> StoredRows:
        """Rows of one side, to make batches of.

        Args:
          side: `train`, `test` or `validation`.
          halves: which half of the last part is which; see `split_parts`.

        Returns:
          The rows; ids are checked against `counts` as they are read.

        Raises:
          ValueError: for another side, or if it has no row.
        """
        split = split_parts(self.manifest["day_count"], halves)
        if side not in split._fields:
            raise ValueError(
                f"side must be one of {', '.join(split._fields)}, got {side!r}"
            )
        return StoredRows(
            select_rows(self.parts, getattr(split, side)),
            counts=self.counts,
            identity=self.sha256,
        )

    def vocabulary(self) -> Vocabulary:
        """Reads the vocabulary, to number other text by.

        Raises:
          ValueError: if it is not the one that the rows were made with.
        """
        path = os.path.join(self.folder, VOCABULARY)
        vocabulary = load_vocabulary(path)
        if vocabulary.sha256 != self.manifest["vocabulary_sha256"]:
            raise ValueError(f"{path} is not the vocabulary that the manifest names")
        return vocabulary

    @property
    def sha256(self) -> str:
        """Digest of the manifest."""
        content = json.dumps(self.manifest, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def open_preprocessed(folder: str) -> Preprocessed:
    """Opens the folder.

    Args:
      folder: what `preprocess` wrote.

    Returns:
      Manifest and memory-mapped rows.

    Raises:
      ValueError: if it is no such folder, of another version, or lacks rows.
    """
    manifest = read_manifest(folder)
    parts = []
    for day, rows in enumerate(manifest["day_count"]):
        part = open_torchrec(part_prefix(pathlib.Path(folder), day))
        if len(part) != rows:
            raise ValueError(
                f"{part.name} has {len(part)} rows, the manifest names {rows}"
            )
        parts.append(part)
    return Preprocessed(folder, manifest, tuple(parts))


def read_manifest(folder: str) -> dict[str, Any]:
    """The manifest of a preprocessed folder.

    Raises:
      ValueError: if there is none, or it is of another version.
    """
    path = pathlib.Path(folder, MANIFEST)
    try:
        manifest = json.loads(path.read_text())
        version = manifest["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no preprocessed folder: {error}") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} is of format version {version}, this reads {FORMAT_VERSION}"
        )
    return manifest


def part_prefix(folder: pathlib.Path, day: int) -> str:
    """What the names of a part's files begin with."""
    return str(folder / f"day_{day}")
