"""Local text files, read whole."""

import gzip
import pathlib
import zlib

from experiments.data.documents import Corpus, digest
from experiments.data.files import find_files, relative_names

PATTERNS = ("*.txt", "*.txt.gz")

# A longer file is cut at line ends into documents of about this many characters, so
# that one long file can be split into training and validation text as well.
DOCUMENT_CHARACTERS = 16_384


def read_text_files(path: str, flag: str) -> Corpus:
    """Reads UTF-8 text files into memory.

    Args:
      path: file, folder or glob.
      flag: the flag that holds the path, for messages.

    Returns:
      The documents: one per file, or several for a long one.

    Raises:
      ValueError: for a file that is missing, empty or not UTF-8 text.
    """
    files = find_files(path, PATTERNS, flag)
    contents = [_read(file) for file in files]
    texts = []
    for file, content in zip(files, contents, strict=True):
        try:
            texts += cut_documents(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} is not UTF-8 text: byte {error.start} is "
                f"0x{content[error.start]:02x}"
            ) from error
    if not texts:
        raise ValueError(f"{flag}={path!r}: the files hold nothing but white space")
    return Corpus(texts, files, digest(relative_names(files), contents))


def cut_documents(text: str) -> list[str]:
    """Cuts a text at line ends; white space alone is no document."""
    documents, start = [], 0
    while start < len(text):
        stop = start + DOCUMENT_CHARACTERS
        if stop < len(text):
            # A text without line ends is cut anyway.
            stop = (text.rfind("\n", start, stop) + 1) or stop
        documents.append(text[start:stop])
        start = stop
    return [document for document in documents if document.strip()]


def _read(file: str) -> bytes:
    try:
        data = pathlib.Path(file).read_bytes()
        return gzip.decompress(data) if file.endswith(".gz") else data
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
