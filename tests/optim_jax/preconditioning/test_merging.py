"""Merging and cutting dims."""

import json
import math

import numpy as np
import pytest

from optim_jax.preconditioning.merging import block_slices, merge_small_dims


def _number(value):
    return math.inf if value == "inf" else value


def test_replays_the_stored_shapes(golden_dir):
    tables = json.loads((golden_dir / "shampoo" / "functions.json").read_text())
    for row in tables["merge_small_dims"]:
        merged = merge_small_dims(
            row["shape"], _number(row["threshold"]), _number(row["target"])
        )
        assert list(merged) == row["merged"], row
    for row in tables["block_shapes"]:
        blocks = block_slices(row["shape"], _number(row["max_dim"]))
        shapes = [[part.stop - part.start for part in block] for block in blocks]
        assert shapes == row["blocks"], row
        numbers = np.arange(math.prod(row["shape"])).reshape(row["shape"])
        first = [int(numbers[block].ravel()[0]) for block in blocks]
        assert first == row["first_flat_index"], row


@pytest.mark.parametrize(
    ("shape", "limit", "target", "merged"),
    [
        ((1, 2, 5, 1), 10, 1, (10,)),
        ((1, 2, 5, 1), 1, 1, (2, 5)),
        ((32, 3, 64, 64), 8192, 1, (96, 4096)),
        ((32, 3, 64, 64), 10**6, 2, (32, 12288)),
        ((512, 512, 3, 3), 1024, 1, (512, 512, 9)),
        ((64, 3, 7, 7), 1024, 1, (64, 147)),
        ((6, 4), 1024, 1, (24,)),
        ((6, 4), 1024, 2, (6, 4)),
        ((2, 1, 3), 100, math.inf, (2, 1, 3)),
        ((), 8, math.inf, ()),
        ((0, 3), 8, 1, (0,)),
    ],
)
def test_merged_shapes(shape, limit, target, merged):
    assert merge_small_dims(shape, limit, target) == merged


def test_blocks_cover_every_entry_once():
    shape = (7, 5, 3)
    seen = np.zeros(shape, int)
    for block in block_slices(shape, 3):
        seen[block] += 1
    assert np.all(seen == 1)
    assert block_slices((), 3) == ((),)


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (merge_small_dims, ((2,), 0, 1), "max_preconditioner_dim must be an integer"),
        (merge_small_dims, ((2,), 2.5, 1), "max_preconditioner_dim must be an integer"),
        (merge_small_dims, ((2,), 4, 0), "target_dimensionality must be an integer"),
        (merge_small_dims, ((-2,), 4, 1), "shape must hold sizes >= 0"),
        (block_slices, ((2,), float("nan")), "b must be an integer >= 1 or inf"),
    ],
)
def test_bad_input(function, arguments, words):
    with pytest.raises(ValueError, match=words):
        function(*arguments)
