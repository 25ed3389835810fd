"""Text <-> token ids, behind one protocol.

`byte` needs no file and no download: ids 0..255 are bytes and the 0 byte, which text
does not contain, separates documents and fills padding. `byte_special` gives padding
and the two document marks ids of their own. The wrappers of files load their library
on first use and pickle as the path alone.
"""

import abc
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from experiments.data.extras import import_extra


class Tokenizer(Protocol):
    """What the pipeline and the sampler need of a tokenizer.

    Attributes:
      name: what it was made from: `byte`, `byte_special` or a path.
      vocab_size: ids are below it.
      pad_id: fills positions of weight 0.
      bos_id: begins a document; None if the vocabulary has no such mark.
      eos_id: ends a document; None if the vocabulary has no such mark.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def vocab_size(self) -> int: ...  # noqa: D102
    @property
    def pad_id(self) -> int: ...  # noqa: D102
    @property
    def bos_id(self) -> int | None: ...  # noqa: D102
    @property
    def eos_id(self) -> int | None: ...  # noqa: D102

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without document marks."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of several texts, as integer arrays."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; document marks and padding vanish."""
        ...


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes; byte 0 is separator and padding alike."""

    name: str = "byte"
    vocab_size: int = 256
    pad_id: int = 0
    bos_id: int = 0
    eos_id: int = 0

    def encode(self, text: str) -> list[int]:
        """Bytes of the text; a lone surrogate, which UTF-8 cannot hold, becomes `?`."""
        return list(text.encode("utf-8", errors="replace"))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of several texts without a copy per byte."""
        return [
            np.frombuffer(text.encode("utf-8", errors="replace"), np.uint8)
            for text in texts
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the bytes; marks vanish, invalid sequences become U+FFFD."""
        marks = {self.pad_id, self.bos_id, self.eos_id}
        kept = bytes(int(i) for i in ids if 0 <= i < 256 and int(i) not in marks)
        return kept.decode("utf-8", errors="replace")


@dataclasses.dataclass(frozen=True)
class _TokenizerFile(abc.ABC):
    """A vocabulary in a file; the library that reads it is loaded on first use."""

    name: str  # path of the file

    # Pickles as the path: the loaded object need not cross process borders.
    def __reduce__(self):
        return type(self), (self.name,)

    @property
    def sha256(self) -> str:
        """Digest of the file."""
        return hashlib.sha256(pathlib.Path(self.name).read_bytes()).hexdigest()

    @property
    def bos_id(self) -> int | None:
        """The mark that begins a document; the end mark where there is only that."""
        begin, end, _ = self._marks
        return begin if begin is not None else end

    @property
    def eos_id(self) -> int | None:
        """The mark that ends a document."""
        return self._marks[1]

    @property
    def pad_id(self) -> int:
        """The padding mark; id 0 where there is none (its weight is 0 anyway)."""
        pad = self._marks[2]
        return 0 if pad is None else pad

    @property
    @abc.abstractmethod
    def _marks(self) -> tuple[int | None, int | None, int | None]:
        """Ids of begin, end and padding; None where the vocabulary has none."""


# Names under which vocabularies keep their marks, the more specific first.
_BEGIN = ("<s>", "<bos>", "<|begin_of_text|>", "[BOS]", "<|startoftext|>")
_END = ("</s>", "<eos>", "<|end_of_text|>", "[EOS]", "<|endoftext|>")
_PAD = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>")


class HuggingFaceTokenizer(_TokenizerFile):
    """A `tokenizer.json` of the Hugging Face `tokenizers` library."""

    @functools.cached_property
    def _tokenizer(self) -> Any:
        library = import_extra("tokenizers", f"data.tokenizer={self.name!r}")
        try:
            return library.Tokenizer.from_file(self.name)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(
                f"data.tokenizer={self.name!r} is not a tokenizer.json that the "
                f"tokenizers library can read: {error}"
            ) from error

    @functools.cached_property
    def _marks(self) -> tuple[int | None, int | None, int | None]:
        def first(names: tuple[str, ...]) -> int | None:
            ids = map(self._tokenizer.token_to_id, names)
            return next((i for i in ids if i is not None), None)

        return first(_BEGIN), first(_END), first(_PAD)

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: added tokens may leave gaps."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without the marks a post-processor would add."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of several texts, in the library's own threads."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.asarray(one.ids, np.int32) for one in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


class SentencePieceTokenizer(_TokenizerFile):
    """A SentencePiece `.model` file."""

    @functools.cached_property
    def _tokenizer(self) -> Any:
        library = import_extra("sentencepiece", f"data.tokenizer={self.name!r}")
        try:
            return library.SentencePieceProcessor(model_file=self.name)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"data.tokenizer={self.name!r} is not a SentencePiece model: {error}"
            ) from error

    @functools.cached_property
    def _marks(self) -> tuple[int | None, int | None, int | None]:
        model = self._tokenizer
        ids = (model.bos_id(), model.eos_id(), model.pad_id())
        begin, end, pad = (i if i >= 0 else None for i in ids)
        return begin, end, pad

    @functools.cached_property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return self._tokenizer.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Ids of the text."""
        return self._tokenizer.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of several texts."""
        return [
            np.asarray(ids, np.int32) for ids in self._tokenizer.encode(list(texts))
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids."""
        return self._tokenizer.decode([int(i) for i in ids])


_BUILT_IN = {
    "byte": ByteTokenizer(),
    "byte_special": ByteTokenizer(
        # A multiple of 64, so that the vocabulary axis divides over devices.
        name="byte_special",
        vocab_size=320,
        pad_id=256,
        bos_id=257,
        eos_id=258,
    ),
}


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of `data.tokenizer`.

    Args:
      name: `byte`, `byte_special`, the path of a `tokenizer.json` or that of a
        SentencePiece `.model`.

    Returns:
      A tokenizer, its file already read.

    Raises:
      ValueError: for another name, a missing file, or one that cannot be read.
      ImportError: if the library that reads the file is not installed.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    kinds = {".json": HuggingFaceTokenizer, ".model": SentencePieceTokenizer}
    kind = kinds.get(pathlib.Path(name).suffix)
    if kind is None:
        raise ValueError(
            f"data.tokenizer must be one of {', '.join(_BUILT_IN)}, the path of a "
            f"Hugging Face tokenizer.json or of a SentencePiece .model, got {name!r}"
        )
    if not pathlib.Path(name).is_file():
        raise ValueError(
            f"data.tokenizer={name!r}: there is no such file; without a file choose "
            f"one of {', '.join(_BUILT_IN)}"
        )
    tokenizer = kind(name)
    _ = tokenizer.vocab_size  # reads the file, so that a bad one fails here
    return tokenizer


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a run's metadata say of its tokenizer."""
    return {
        "name": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "pad_id": tokenizer.pad_id,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "sha256": getattr(tokenizer, "sha256", None),
    }
