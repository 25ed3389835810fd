import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from experiments.data.packing import (
    cut_pieces,
    join_documents,
    pack_rows,
    token_dtype,
)

settings = hypothesis.settings(max_examples=40, deadline=None)


def test_documents_are_joined_between_their_marks():
    encoded = [np.array([5, 6]), np.array([], int), np.array([7])]
    tokens, lengths = join_documents(encoded, bos_id=1, eos_id=2, dtype=np.uint8)
    assert tokens.tolist() == [1, 5, 6, 2, 1, 2, 1, 7, 2] and tokens.dtype == np.uint8
    assert lengths.tolist() == [4, 2, 3]
    tokens, lengths = join_documents(encoded, bos_id=None, eos_id=2, dtype=np.int32)
    assert tokens.tolist() == [5, 6, 2, 2, 7, 2] and lengths.tolist() == [3, 1, 2]
    tokens, lengths = join_documents([], bos_id=1, eos_id=2, dtype=np.int32)
    assert tokens.shape == lengths.shape == (0,)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.int32)],
)
def test_tokens_are_held_in_the_smallest_type(vocab_size, dtype):
    assert token_dtype(vocab_size) is dtype


def test_pieces_share_one_token_with_their_neighbour():
    # 0 and 1 tokens predict nothing; 9 tokens are 8 predictions, 10 are 9.
    starts, sizes = cut_pieces(np.array([0, 1, 9, 2, 10]), 4)
    assert starts.tolist() == [1, 5, 10, 12, 16, 20]
    assert sizes.tolist() == [4, 4, 1, 4, 4, 1]


def pack(lengths, seq_len, seed=0):
    lengths = np.asarray(lengths, np.int64)
    # Every token its own number: a piece says where it was cut.
    tokens = np.arange(1, lengths.sum() + 1, dtype=np.int32)
    rng = np.random.default_rng(seed)
    rows = pack_rows(tokens, lengths, seq_len=seq_len, pad_id=0, rng=rng)
    return tokens, rows


@settings
@hypothesis.given(
    st.lists(st.integers(0, 40), max_size=30), st.integers(2, 12), st.integers(0, 5)
)
def test_every_token_but_the_first_is_predicted_once(lengths, seq_len, seed):
    tokens, rows = pack(lengths, seq_len, seed)
    batch = rows.batch(0, len(rows))
    used = batch["weights"] > 0
    pairs = list(zip(batch["tokens"][used], batch["targets"][used], strict=True))
    assert all(target == token + 1 for token, target in pairs)
    ends = np.cumsum(lengths)
    firsts = {end - n + 1 for end, n in zip(ends, lengths, strict=True) if n}
    expected = collections.Counter(set(tokens.tolist()) - firsts)
    assert collections.Counter(int(target) for _, target in pairs) == expected


@settings
@hypothesis.given(
    st.lists(st.integers(0, 40), max_size=30), st.integers(2, 12), st.integers(0, 5)
)
def test_rows_are_dense_segments_in_order(lengths, seq_len, seed):
    _, rows = pack(lengths, seq_len, seed)
    for r in range(len(rows)):
        batch = {key: value[0] for key, value in rows.batch(r, r + 1).items()}
        sizes = rows.sizes[rows.row_splits[r] : rows.row_splits[r + 1]]
        padding = [0] * (seq_len - sizes.sum())
        assert len(padding) >= 0 and len(sizes) > 0
        segments = np.repeat(np.arange(len(sizes)) + 1, sizes)
        assert batch["segment_ids"].tolist() == [*segments, *padding]
        positions = np.concatenate([np.arange(size) for size in sizes])
        assert batch["positions"].tolist() == [*positions, *padding]
        assert batch["weights"].tolist() == [1.0] * sizes.sum() + padding


@settings
@hypothesis.given(st.lists(st.integers(2, 40), min_size=1, max_size=30))
def test_the_number_of_rows_depends_on_lengths_alone(lengths):
    counts = {len(pack(lengths, 8, seed)[1]) for seed in range(5)}
    counts.add(len(pack(lengths[::-1], 8)[1]))
    assert len(counts) == 1


def test_short_pieces_are_packed_tightly():
    # Predictions 1..7 in equal numbers fill rows of 8 in pairs without a gap.
    _, rows = pack([n + 1 for n in range(1, 8)] * 20, 8)
    assert rows.batch(0, len(rows))["weights"].mean() == 1.0
    assert len(rows) == 20 * 28 / 8


def test_batches_are_slices_of_all_rows():
    _, rows = pack([3, 17, 30, 5, 9, 2], 6)
    whole = rows.batch(0, len(rows))
    for first in range(len(rows)):
        for stop in range(first, len(rows) + 1):
            part = rows.batch(first, stop)
            for key, value in whole.items():
                assert (part[key] == value[first:stop]).all()


def test_selected_rows_keep_their_contents():
    _, rows = pack([3, 17, 30, 5, 9, 2], 6)
    chosen = np.array([4, 0, 2])
    picked = rows.select(chosen).batch(0, 3)
    for key, value in rows.batch(0, len(rows)).items():
        assert (picked[key] == value[chosen]).all()
    assert len(rows.select(np.array([], int))) == 0


def test_a_batch_is_padded_to_its_height():
    tokens = np.arange(1, 8, dtype=np.uint16)
    rng = np.random.default_rng(0)
    rows = pack_rows(tokens, np.array([7]), seq_len=4, pad_id=9, rng=rng)
    batch = rows.batch(0, 2, rows=3)
    assert batch["tokens"].shape == (3, 4)
    assert batch["tokens"][2].tolist() == [9] * 4
    for key in ("targets", "positions", "segment_ids", "weights"):
        assert not batch[key][2].any()


def test_seeds_order_rows_and_pieces():
    lengths = [2, 3, 4, 5] * 30
    first, again, other = (pack(lengths, 8, seed)[1] for seed in (0, 0, 1))
    assert (first.starts == again.starts).all()
    assert (first.starts != other.starts).any()
