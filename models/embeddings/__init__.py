"""Embedding tables of categorical features: full, hashed and compositional."""

from models.embeddings.bags import (
    check_bags,
    check_offsets,
    lengths_from_offsets,
    offsets_from_lengths,
    segments_from_offsets,
)
from models.embeddings.components import (
    DENSE_LEAVES,
    component_ids,
    component_shapes,
    count_table_params,
    dense_leaves,
    dense_shapes,
    num_vectors,
    output_width,
    row_leaves,
)
from models.embeddings.dimension_rule import mixed_dimensions
from models.embeddings.initialization import init_table
from models.embeddings.lookup import embedding_bag, gather_rows
from models.embeddings.partitions import (
    chinese_remainder,
    choose_moduli,
    expected_clashes,
    first_clash,
    hashing,
    is_complementary,
    mixed_radix,
    quotient_remainder,
)
from models.embeddings.pooling import pool_rows
from models.embeddings.quantization import (
    QuantizedRows,
    dequantize_rows,
    gather_quantized_rows,
    quantize_rows,
)
from models.embeddings.table_checks import METHODS
from models.embeddings.table_config import TableConfig
from models.embeddings.uniqueness import Uniqueness, check_unique

__all__ = [
    "DENSE_LEAVES",
    "METHODS",
    "QuantizedRows",
    "TableConfig",
    "Uniqueness",
    "check_bags",
    "check_offsets",
    "check_unique",
    "chinese_remainder",
    "choose_moduli",
    "component_ids",
    "component_shapes",
    "count_table_params",
    "dense_leaves",
    "dense_shapes",
    "dequantize_rows",
    "embedding_bag",
    "expected_clashes",
    "first_clash",
    "gather_quantized_rows",
    "gather_rows",
    "hashing",
    "init_table",
    "is_complementary",
    "lengths_from_offsets",
    "mixed_dimensions",
    "mixed_radix",
    "num_vectors",
    "offsets_from_lengths",
    "output_width",
    "pool_rows",
    "quantize_rows",
    "quotient_remainder",
    "row_leaves",
    "segments_from_offsets",
]
