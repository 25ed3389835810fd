"""Texts to tokens, tokens to rows: the settings both sides of the data share."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np

from experiments.data.packing import (
    PackedRows,
    join_documents,
    pack_rows,
    token_dtype,
)
from experiments.data.tokenizers import Tokenizer

# Documents tokenized in one call; the libraries spread them over their threads.
_DOCUMENTS_AT_A_TIME = 64


@dataclasses.dataclass(frozen=True)
class TokenizedText:
    """Documents end to end.

    Attributes:
      tokens: of all documents.
      lengths: tokens of each document, its marks included.
      bytes: UTF-8 length of the texts.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    bytes: int

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.lengths)

    @property
    def predictions(self) -> int:
        """Tokens that are predicted: all but the first of each document."""
        return int(np.maximum(self.lengths - 1, 0).sum())


@dataclasses.dataclass(frozen=True)
class RowFormat:
    """How documents become rows."""

    tokenizer: Tokenizer
    seq_len: int

    def read(
        self,
        documents: Iterator[str],
        *,
        predictions: float = math.inf,
        pieces: float = math.inf,
    ) -> TokenizedText:
        """Tokenizes documents until there are enough of them or none is left.

        Args:
          documents: advanced by as many documents as are taken.
          predictions: enough, in predicted tokens.
          pieces: enough, in pieces of at most `seq_len` predictions.

        Returns:
          The documents taken.
        """
        dtype = token_dtype(self.tokenizer.vocab_size)
        parts = [(np.zeros(0, dtype), np.zeros(0, np.int64))]
        have_predictions = have_pieces = size = 0
        while have_predictions < predictions and have_pieces < pieces:
            texts = list(itertools.islice(documents, _DOCUMENTS_AT_A_TIME))
            if not texts:
                break
            parts.append(self._join(texts, dtype))
            size += sum(len(text.encode("utf-8", errors="replace")) for text in texts)
            counts = np.maximum(parts[-1][1] - 1, 0)
            have_predictions += counts.sum()
            have_pieces += (-(-counts // self.seq_len)).sum()
        tokens, lengths = (
            np.concatenate(arrays) for arrays in zip(*parts, strict=True)
        )
        return TokenizedText(tokens, lengths, size)

    def pack(self, text: TokenizedText, seed: tuple[int, ...]) -> PackedRows:
        """Rows in an order drawn from `seed`."""
        return pack_rows(
            text.tokens,
            text.lengths,
            seq_len=self.seq_len,
            pad_id=self.tokenizer.pad_id,
            rng=np.random.default_rng(seed),
        )

    def _join(self, texts: list[str], dtype) -> tuple[np.ndarray, np.ndarray]:
        return join_documents(
            self.tokenizer.encode_batch(texts),
            bos_id=self.tokenizer.bos_id,
            eos_id=self.tokenizer.eos_id,
            dtype=dtype,
        )
