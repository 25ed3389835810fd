"""Criteo's click logs: text, vocabularies, splits, file formats and batches."""

from experiments.data.criteo.batches import stream_batches
from experiments.data.criteo.dense_features import log1p_dense, transform_dense
from experiments.data.criteo.kaggle import KaggleData, read_kaggle
from experiments.data.criteo.preprocessed import Preprocessed, open_preprocessed
from experiments.data.criteo.preprocessing import PreprocessConfig, preprocess
from experiments.data.criteo.row_sources import StoredRows, TextRows
from experiments.data.criteo.text_files import day_files
from experiments.data.criteo.vocabulary import (
    Vocabulary,
    VocabularyConfig,
    load_vocabulary,
)

__all__ = [
    "KaggleData",
    "Preprocessed",
    "PreprocessConfig",
    "StoredRows",
    "TextRows",
    "Vocabulary",
    "VocabularyConfig",
    "day_files",
    "load_vocabulary",
    "log1p_dense",
    "open_preprocessed",
    "preprocess",
    "read_kaggle",
    "stream_batches",
    "transform_dense",
]
