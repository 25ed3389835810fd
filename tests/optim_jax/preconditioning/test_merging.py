import collections
import json
import math

import numpy as np
import pytest

from optim_jax.preconditioning.assignment import refresh_cost
from optim_jax.preconditioning.merging import block_slices, merge_small_dims
from tests.optim_jax.preconditioning.architectures import gpt2_shapes, resnet50_shapes


def _stored(golden_dir, name):
    path = golden_dir / "shampoo" / "functions.json"
    return json.loads(path.read_text())[name]


def _number(value):
    return math.inf if value == "inf" else value


def _block_shape(block):
    return tuple(part.stop - part.start for part in block)


def _blocks(shape, limit):
    return [_block_shape(block) for block in block_slices(shape, limit)]


def test_merges_as_stored(golden_dir):
    cases = _stored(golden_dir, "merge_small_dims")
    assert len(cases) == 24
    for case in cases:
        merged = merge_small_dims(
            case["shape"], _number(case["threshold"]), _number(case["target"])
        )
        assert merged == tuple(case["merged"]), case


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
        ((6, 1, 4), 1024, 2, (6, 4)),
        ((3, 4, 5), math.inf, 1, (60,)),
        ((3, 4, 5), math.inf, 2, (3, 20)),
        ((3, 1, 4), math.inf, math.inf, (3, 1, 4)),
        ((), math.inf, math.inf, ()),
        ((), 8, 1, (1,)),
        ((1, 1), 8, 2, (1,)),
        ((3, 0), 8, 1, (0,)),
        ((3, 0), 8, math.inf, (0,)),
        ((32, 32), 1024, 1, (1024,)),  # the limit itself is allowed
        ((32, 33), 1024, 1, (32, 33)),
        # A product that is too large ends a dim; the dims before it still merge.
        ((2, 3, 100, 4), 16, 1, (6, 100, 4)),
    ],
)
def test_merges_from_the_last_dim(shape, limit, target, merged):
    assert merge_small_dims(shape, limit, target) == merged


def test_merging_and_blocks_keep_the_elements_in_order():
    rng = np.random.default_rng(0)
    for _ in range(100):
        shape = tuple(int(size) for size in rng.integers(1, 6, rng.integers(0, 5)))
        limit = int(rng.integers(1, 13))
        target = int(rng.integers(1, 4))
        merged = merge_small_dims(shape, limit, target)
        array = np.arange(math.prod(shape)).reshape(merged)
        blocks = [array[block] for block in block_slices(merged, limit)]
        assert all(size <= limit for block in blocks for size in block.shape)
        covered = np.concatenate([block.ravel() for block in blocks])
        np.testing.assert_array_equal(np.sort(covered), np.arange(array.size))
        # Last dim fastest: the first elements of the blocks ascend.
        firsts = [int(block.flat[0]) for block in blocks]
        assert firsts == sorted(firsts)


def test_cuts_as_stored(golden_dir):
    cases = _stored(golden_dir, "block_shapes")
    assert len(cases) == 7
    for case in cases:
        limit = _number(case["max_dim"])
        blocks = block_slices(case["shape"], limit)
        flat = np.arange(math.prod(case["shape"])).reshape(case["shape"])
        assert [_block_shape(b) for b in blocks] == list(map(tuple, case["blocks"]))
        assert [int(flat[b].flat[0]) for b in blocks] == case["first_flat_index"]


def test_slices_are_concrete():
    assert block_slices((5, 3), 4) == (
        (slice(0, 4), slice(0, 3)),
        (slice(4, 5), slice(0, 3)),
    )
    assert block_slices((), 4) == ((),)
    assert block_slices((0,), 4) == ()
    assert block_slices((0, 3), math.inf) == ()
    assert block_slices((7, 2), math.inf) == ((slice(0, 7), slice(0, 2)),)
    assert block_slices((5,), 2.0) == block_slices((5,), 2)
    embedding = _blocks((50257, 768), 1024)
    assert embedding == [(1024, 768)] * 49 + [(81, 768)]


# The numbers of two models, with the limit b on the dims and everything merged.

MODELS = {"gpt2": gpt2_shapes, "resnet50": resnet50_shapes}


def test_models_have_the_published_number_of_parameters():
    totals = {
        name: sum(map(math.prod, shapes().values())) for name, shapes in MODELS.items()
    }
    assert totals == {"gpt2": 124_439_808, "resnet50": 25_557_032}
    assert len(resnet50_shapes()) == 161
    assert len(gpt2_shapes()) == 148


@pytest.mark.parametrize(
    ("model", "limit", "blocks", "shapes", "dims", "ratio", "packed", "cubes", "flops"),
    [
        ("gpt2", 256, 2373, 3, 2, 2.248, 1.129, 7.16e10, 1.27e11),
        ("gpt2", 1024, 317, 8, 4, 2.967, 1.485, 3.38e11, 4.38e11),
        ("gpt2", 8192, 154, 10, 6, 7.681, 3.842, 4.70e12, 1.27e12),
        ("resnet50", 1024, 176, 25, 9, 3.269, 1.637, 7.47e10, 6.35e10),
        ("resnet50", 2048, 161, 28, 11, 4.574, 2.289, 1.75e11, 8.40e10),
    ],
)
def test_counts_of_known_models(
    model, limit, blocks, shapes, dims, ratio, packed, cubes, flops
):
    cut = collections.Counter()
    parameters = 0
    for shape in MODELS[model]().values():
        parameters += math.prod(shape)
        cut.update(_blocks(merge_small_dims(shape, limit, 1), limit))
    factors = [size for shape in cut.elements() for size in shape]
    assert sum(cut.values()) == blocks
    assert len(cut) == shapes
    assert len(set(factors)) == dims
    elements = sum(size**2 for size in factors)
    triangles = sum(size * (size + 1) // 2 for size in factors)
    assert elements / parameters == pytest.approx(ratio, abs=5e-4)
    assert triangles / parameters == pytest.approx(packed, abs=5e-4)
    # Three digits are stated.
    assert sum(map(refresh_cost, cut.elements())) == pytest.approx(cubes, rel=5e-3)
    apply = sum(2 * math.prod(shape) * sum(shape) for shape in cut.elements())
    assert apply == pytest.approx(flops, rel=5e-3)


def test_many_blocks_of_gpt2_are_vectors():
    cut = [
        block
        for shape in gpt2_shapes().values()
        for block in _blocks(merge_small_dims(shape, 1024, 1), 1024)
    ]
    lengths = [block[0] for block in cut if len(block) == 1]
    assert (len(lengths), len(cut)) == (146, 317)
    assert (min(lengths), max(lengths)) == (256, 1024)


@pytest.mark.parametrize("limit", [0, -1, 2.5, math.nan, -math.inf, "8", None])
def test_refuses_limits(limit):
    match = r"max_preconditioner_dim must be an integer >= 1 or inf, got"
    with pytest.raises(ValueError, match=match):
        merge_small_dims((6, 4), limit, 1)
    with pytest.raises(ValueError, match=match):
        block_slices((6, 4), limit)
    match = r"target_dimensionality must be an integer >= 1 or inf, got"
    with pytest.raises(ValueError, match=match):
        merge_small_dims((6, 4), 8, limit)


@pytest.mark.parametrize("shape", [(3, -1), (2.0, 3), ("a",), 5, None])
def test_refuses_shapes(shape):
    match = r"shape must be a sequence of integers >= 0, got"
    with pytest.raises(ValueError, match=match):
        merge_small_dims(shape, 8, 1)
    with pytest.raises(ValueError, match=match):
        block_slices(shape, 8)
