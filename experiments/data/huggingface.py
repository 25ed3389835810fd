"""Data sets of the Hugging Face `datasets` library, on disk or on the Hub.

`data.path` is a folder written by `save_to_disk`, a folder of data files, or a name on
the Hub, to which a configuration and a split can be added: `allenai/c4:en` or
`allenai/c4:en:validation`. Data on disk are shuffled over the whole epoch. Data of the
Hub are streamed in their order and mixed by the pipeline's window.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import grain

from experiments.data.documents import DocumentSource, IndexedDocuments, Shard
from experiments.data.extras import import_extra
from experiments.data.json_lines import text_field


def open_huggingface(
    path: str, field: str, num_threads: int, flag: str, split: str
) -> DocumentSource:
    """Opens a data set.

    Args:
      path: folder, or `name`, `name:config`, `name:config:split` on the Hub.
      field: column that holds the text.
      num_threads: that read ahead.
      flag: the flag that holds the path, for messages.
      split: the split taken if the path names none.

    Returns:
      The source.

    Raises:
      ImportError: without `datasets`.
      ValueError: if the data set, its split or its column does not exist, or the
        Hub cannot be reached.
    """
    library = import_extra("datasets", "data.source='huggingface'")
    local = os.path.expanduser(path)
    if os.path.isdir(local):
        data, part = _load_local(library, local, split, flag)
    else:
        data, part = _load_from_hub(library, path, split, flag)
    names = data.column_names
    if names is None:  # a stream without declared columns: look at one record
        names = list(next(iter(data), {field: None}))
    if field not in names:
        raise ValueError(
            f"{flag}={path!r}: no column {field!r} (data.text_field); "
            f"there are {', '.join(names)}"
        )
    if isinstance(data, library.IterableDataset):
        return StreamedDocuments([part], _hash(part), data, field)
    texts = _Texts(data.select_columns([field]), field, path)
    # The fingerprint is the library's own name for the contents.
    facts = _hash(str(data.num_rows), data._fingerprint)
    return IndexedDocuments([part], facts, texts, num_threads)


def _hash(*facts: str) -> str:
    """Stands for contents that are not read whole."""
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _load_local(library: Any, folder: str, split: str, flag: str) -> tuple[Any, str]:
    """The data, and a name for this part of them."""
    saved = ("state.json", "dataset_dict.json")
    try:
        if any(os.path.exists(os.path.join(folder, name)) for name in saved):
            data = library.load_from_disk(folder)
        else:
            data = library.load_dataset(folder)
    except Exception as error:  # the library raises its own and many built-in kinds
        raise ValueError(f"{flag}={folder!r}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        return data, folder
    if split not in data:
        raise ValueError(
            f"{flag}={folder!r}: no split {split!r}; there are {', '.join(data)}"
        )
    return data[split], f"{folder}:{split}"


def _load_from_hub(library: Any, path: str, split: str, flag: str) -> tuple[Any, str]:
    """The data, and a name for this part of them."""
    name, _, rest = path.partition(":")
    config, _, named_split = rest.partition(":")
    split = named_split or split
    arguments = {"name": config or None, "split": split}
    part = f"{name}:{config}:{split}"
    try:
        try:
            return library.load_dataset(name, streaming=True, **arguments), part
        except (ConnectionError, OSError):
            # Without a network a copy in the library's cache serves as well.
            with contextlib.suppress(Exception):
                return library.load_dataset(name, **arguments), part
            raise
    except (ConnectionError, OSError) as error:
        raise ValueError(
            f"{flag}={path!r}: the Hugging Face Hub cannot be reached or has no such "
            "data set, and there is no such folder; point data.path to local files "
            f"with data.source=jsonl, parquet or text instead ({error})"
        ) from error
    except ValueError as error:  # unknown configuration or split
        raise ValueError(f"{flag}={path!r}: {error}") from error


class _Texts:
    """The texts of a data set that is mapped into memory."""

    def __init__(self, data: Any, field: str, name: str):
        self._data, self._field, self._name = data, field, name

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> str | None:
        place = f"{self._name}, record {index}"
        return text_field(self._data[int(index)], self._field, place)


@dataclasses.dataclass(frozen=True)
class StreamedDocuments:
    """A data set that `datasets` streams; the order is the stored one."""

    files: Sequence[str]
    sha256: str
    data: Any  # datasets.IterableDataset
    field: str

    def open(
        self, order_seed: int | None, shard: Shard
    ) -> grain.DatasetIterator[str | None]:
        """One epoch in the stored order."""
        del order_seed
        return _StreamIterator(self, shard)


class _StreamIterator(grain.DatasetIterator):
    """State: what the library's own `state_dict` says."""

    def __init__(self, source: StreamedDocuments, shard: Shard):
        super().__init__()
        self._source, self._shard = source, shard
        self._begin()

    def _begin(self) -> None:
        data = self._source.data
        if self._shard.count > 1:
            split = import_extra("datasets.distributed", "data.source='huggingface'")
            data = split.split_dataset_by_node(
                data, self._shard.index, self._shard.count
            )
        # An object of our own: the library keeps the position in it.
        self._data = data.select_columns([self._source.field])
        self._examples, self._taken = iter(self._data), 0

    def __next__(self) -> str | None:
        example = next(self._examples)
        self._taken += 1
        place = f"{self._source.files[0]}, record {self._taken} of this process"
        return text_field(example, self._source.field, place)

    def get_state(self) -> dict[str, Any]:
        # Before the first example the library has no state to give.
        stream = self._data.state_dict() if self._taken else None
        return {"taken": self._taken, "stream": stream}

    def set_state(self, state: dict[str, Any]) -> None:
        self._begin()
        if state["stream"] is not None:
            self._data.load_state_dict(state["stream"])
            self._taken = state["taken"]
