"""The data sources by name."""

from experiments.config import DataConfig
from experiments.data.array_records import open_array_records
from experiments.data.documents import Corpus, DocumentSource
from experiments.data.embedded import read_standard_library
from experiments.data.huggingface import open_huggingface
from experiments.data.json_lines import open_json_lines
from experiments.data.parquet import open_parquet
from experiments.data.plain_text import read_text_files


def open_source(config: DataConfig, *, validation: bool) -> Corpus | DocumentSource:
    """Opens the text of one side.

    Args:
      config: names the source.
      validation: opens `validation_path` in place of `path`.

    Returns:
      A corpus read whole, or a source of streams.

    Raises:
      ValueError: if the files cannot be found or read.
      ImportError: if the format's package is not installed.
    """
    flag = "data.validation_path" if validation else "data.path"
    path = config.validation_path if validation else config.path
    field, threads = config.text_field, config.num_threads
    match config.source:
        case "stdlib":
            if validation:
                raise ValueError(
                    "data.validation_path has no meaning for data.source='stdlib', got "
                    f"{path!r}: its validation text is held out by content"
                )
            return read_standard_library()
        case "text":
            return read_text_files(path, flag)
        case "jsonl":
            return open_json_lines(path, field, flag)
        case "parquet":
            return open_parquet(path, field, flag)
        case "array_record":
            return open_array_records(path, field, threads, flag)
        case "huggingface":
            split = "validation" if validation else "train"
            return open_huggingface(path, field, threads, flag, split)
    raise ValueError(f"data.source={config.source!r} has no reader")
