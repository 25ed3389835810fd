"""The embedded corpus: the source text of the running Python's standard library.

About 12 MB of code and English that every machine already has. It differs between
Python versions, so results carry its hash.
"""

import os
import pathlib
import sysconfig

from experiments.data.documents import Corpus, digest

# Tests are long and repetitive, the others are not of the standard library.
_SKIPPED_FOLDERS = {
    "__pycache__",
    "dist-packages",
    "idle_test",
    "lib-dynload",
    "site-packages",
    "test",
    "tests",
}
# Written by whoever built or installed this Python; they name its folders.
_SKIPPED_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize")


def standard_library_files() -> list[pathlib.Path]:
    """The files of the corpus, in the order of their names."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        files += [
            pathlib.Path(folder, name)
            for name in names
            if name.endswith(".py") and not name.startswith(_SKIPPED_FILES)
        ]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def read_standard_library() -> Corpus:
    """Reads the corpus.

    Returns:
      One document per file that is not empty; line ends are those of Unix.

    Raises:
      ValueError: if this Python came without its sources.
    """
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    texts, names = [], []
    for path in standard_library_files():
        # The few files in another encoding hold it in comments and strings only.
        text = path.read_bytes().decode("utf-8", errors="replace")
        text = text.replace("\r\n", "\n")
        if text.strip():
            texts.append(text)
            names.append(path.relative_to(root).as_posix())
    if not texts:
        raise ValueError(
            f"data.source='stdlib' finds no Python sources in {root}: this Python came "
            "without them, choose data.source=text and give data.path"
        )
    contents = [text.encode("utf-8") for text in texts]
    return Corpus(texts, names, digest(names, contents))
