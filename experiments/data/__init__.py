"""Text as batches: one module per source, one pipeline for all of them."""

from experiments.data.pipeline import TextData, build_text_data
from experiments.data.tokenizers import Tokenizer, load_tokenizer

__all__ = ["TextData", "Tokenizer", "build_text_data", "load_tokenizer"]
